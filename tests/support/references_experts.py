"""Sparse layers the slow way: one token, one expert, one number after the other, in float64."""

import math

import torch


def silu(x):
    return x / (1 + torch.exp(-x))


ACTIVATIONS = {"silu": silu, "relu2": lambda x: torch.relu(x) ** 2, "gelu_pytorch_tanh": torch.nn.GELU("tanh")}


def softmax(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def sigmoid(scores):
    return [1 / (1 + math.exp(-score)) for score in scores]


def sqrtsoftplus(scores):
    return [math.sqrt(math.log1p(math.exp(score))) for score in scores]


SCORES = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": sqrtsoftplus}


def best(values, count):
    """The indices of the `count` largest values."""
    return sorted(range(len(values)), key=lambda index: -values[index])[:count]


def masked_outside_groups(choice, config):
    size = len(choice) // config.n_group
    groups = [sorted(choice[g * size : (g + 1) * size], reverse=True) for g in range(config.n_group)]
    kept = best(
        [group[0] if config.router["group_score"] == "max" else group[0] + group[1] for group in groups],
        config.topk_group,
    )
    value = {"-inf": -math.inf, "zero": 0.0}[config.router["group_mask_value"]]
    return [score if index // size in kept else value for index, score in enumerate(choice)]


def pick_by_thresholds(logits, config):
    """sparsemixer in evaluation: each pick is the best left, weighed among those near it."""
    left, weights = dict(enumerate(logits)), {}
    for _ in range(config.num_experts_per_tok):
        expert = max(left, key=left.get)
        top = left[expert]
        near = {
            index: math.exp(score - top)
            for index, score in left.items()
            if (top - score) / max(abs(score), top) <= 2 * config.router["sparsemixer_jitter_eps"]
        }
        weights[expert] = near[expert] / sum(near.values())
        del left[expert]
    return weights


def route(logits, bias, config):
    """One token's logits (a list of floats) → {expert: weight}."""
    if config.scoring_func == "sparsemixer":
        return pick_by_thresholds(logits, config)
    score = SCORES[config.scoring_func]
    scores = logits if config.router["score_after_topk"] else score(logits)
    choice = [value + shift for value, shift in zip(scores, bias or [0.0] * len(scores), strict=True)]
    if config.n_group:
        choice = masked_outside_groups(choice, config)
    experts = best(choice, config.num_experts_per_tok)
    weights = [scores[expert] for expert in experts]
    if config.router["score_after_topk"]:
        weights = score(weights)
    if config.norm_topk_prob:
        total = max(sum(weights) + config.router["norm_topk_eps"], config.router["norm_topk_min"] or 0.0)
        weights = [weight / total for weight in weights]
    return dict(zip(experts, weights, strict=True))


def expert_output(x, gate, up, down, biases, config, limit=None):
    """One MLP on one token: x `[D]`, gate `[I, D]` or None, up `[I, D]`, down `[D, I]`, biases per matrix or None."""
    act = ACTIVATIONS[config.hidden_act]
    if (alpha := config.swiglu_config["alpha"]) is not None:

        def act(value):
            return value * torch.sigmoid(alpha * value)

    up = up @ x + biases[1]
    if gate is None:
        return down @ act(up) + biases[2]
    gate = gate @ x + biases[0]
    limit, behind = limit or float("inf"), config.swiglu_config["clamp_behind_activation"]
    gate = torch.minimum(act(gate), torch.tensor(limit)) if behind else act(torch.minimum(gate, torch.tensor(limit)))
    up = torch.maximum(torch.minimum(up, torch.tensor(limit)), torch.tensor(-limit))
    return down @ (gate * (up + (config.swiglu_config["up_offset"] or 0.0))) + biases[2]


def routed_expert(x, expert, state, config):
    width = config.moe_intermediate_size
    name = "gate_up_proj" if config.gated_mlp else "up_proj"
    into, down = state[f"experts.{name}"][expert], state["experts.down_proj"][expert]
    bias = state[f"experts.{name}_bias"][expert] if config.expert_bias else torch.zeros(len(into))
    down_bias = state["experts.down_proj_bias"][expert] if config.expert_bias else 0.0
    if not config.gated_mlp:
        return expert_output(x, None, into, down, (0.0, bias, down_bias), config)
    biases = (bias[:width], bias[width:], down_bias)
    return expert_output(x, into[:width], into[width:], down, biases, config, config.swiglu_limit)


def shared_experts(x, state, config):
    if config.n_shared_experts == 0:
        return 0.0
    gate = state["shared_experts.gate_proj.weight"] if config.gated_mlp else None
    biases = [state.get(f"shared_experts.{name}_proj.bias", 0.0) for name in ("gate", "up", "down")]
    up, down = (state[f"shared_experts.{name}_proj.weight"] for name in ("up", "down"))
    own = config.swiglu_config["shared_limit"]
    output = expert_output(x, gate, up, down, biases, config, config.swiglu_limit if own is None else own)
    return torch.sigmoid(state["shared_expert_gate.weight"] @ x) * output if config.shared_expert_gate else output


def router_logits(x, state, config):
    if config.router["input_norm"]:
        x = (
            x
            / torch.sqrt((x * x).mean() + config.norm_eps)
            * state["gate.norm.weight"]
            * config.router["input_multiplier"]
        )
    logits = state["gate.weight"] @ x + state.get("gate.bias", 0.0)
    cap = config.router["logit_softcapping"]
    return (logits if cap is None else cap * torch.tanh(logits / cap)).tolist()


def sparse_token(x, router_x, state, config):
    """One token of a sparse layer, `[D]` → `[D]`."""
    bias = state["gate.e_score_correction_bias"].tolist() if config.use_score_correction_bias else None
    inner = x
    if config.moe_latent_size:
        inner = state["fc1_latent_proj.weight"] @ x + state.get("fc1_latent_proj.bias", 0.0)
    routed, kept = torch.zeros_like(inner), torch.zeros_like(x)
    for expert, weight in route(router_logits(router_x, state, config), bias, config).items():
        weight *= config.routed_scaling_factor
        if config.router["per_expert_scale"]:
            weight *= state["gate.per_expert_scale"][expert].item()
        if expert >= config.num_experts:
            kept += weight * x if config.zero_expert_type == "identity" else 0.0
        elif config.router["weight_on_input"]:
            routed += routed_expert(weight * inner, expert, state, config)
        else:
            routed += weight * routed_expert(inner, expert, state, config)
    if config.moe_latent_size:
        routed = state["fc2_latent_proj.weight"] @ routed + state.get("fc2_latent_proj.bias", 0.0)
    output = routed + kept + shared_experts(x, state, config)
    if config.shared_expert_combination_strategy == "normed_sum":
        return output / torch.sqrt((output * output).mean() + config.norm_eps) * state["output_norm.weight"]
    return output / 2 if config.n_shared_experts and config.shared_expert_combination_strategy == "average" else output


def sparse_mlp(hidden_states, state, config, router_input=None):
    """A sparse layer, `[B, T, D]` → `[B, T, D]` in float64, from a SparseMLP's state dict."""
    state = {name: tensor.double() for name, tensor in state.items()}
    tokens = hidden_states.double().flatten(0, -2)
    router_tokens = tokens if router_input is None else router_input.double().flatten(0, -2)
    rows = [sparse_token(x, router_x, state, config) for x, router_x in zip(tokens, router_tokens, strict=True)]
    return torch.stack(rows).view(hidden_states.shape)


def balance_loss(layers, top_k, mask):
    """E · Σ_e (share of tokens choosing e) · (mean probability of e) over layers of lists of logit lists."""
    num_experts = len(layers[0][0])
    chosen, probability, count = [0.0] * num_experts, [0.0] * num_experts, 0
    for logits in layers:
        for row, counts in zip(logits, mask, strict=True):
            if not counts:
                continue
            count += 1
            probabilities = softmax(row)
            for expert in best(probabilities, top_k):
                chosen[expert] += 1
            for expert in range(num_experts):
                probability[expert] += probabilities[expert]
    return num_experts * sum(c / count * p / count for c, p in zip(chosen, probability, strict=True))


def z_loss(layers, mask):
    """Mean of log(Σ exp(logit))² over the counted tokens of all layers."""
    squares = [
        math.log(sum(math.exp(logit) for logit in row)) ** 2
        for logits in layers
        for row, counts in zip(logits, mask, strict=True)
        if counts
    ]
    return sum(squares) / len(squares)
