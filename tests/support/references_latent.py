"""Latent attention and its indexer the slow way: one query, one head, one key after the other, in float64."""

import math

import torch
from references_attention import gated, linear, normalise, position_bias, rotates, sees, temperature


def turned(channels, position, width, config, interleave):
    """The first `width` channels of one vector, turned pair by pair."""
    result = channels.clone()
    for pair in range(width // 2):
        angle = position * config.rope_parameters["rope_theta"] ** (-2 * pair / width)
        first, second = (2 * pair, 2 * pair + 1) if interleave else (pair, pair + width // 2)
        result[first] = channels[first] * math.cos(angle) - channels[second] * math.sin(angle)
        result[second] = channels[second] * math.cos(angle) + channels[first] * math.sin(angle)
    return result


def normed(parameters, name, x, config):
    return normalise(x, "rms_norm", config.mla_config["norm_eps"]) * parameters[name + ".weight"]


def project(parameters, x, position, config, layer):
    """One token [D] -> what queries are made of, queries [H, n + r], keys [K, n + r], values [K, v], gate or None."""
    nope, rope, width = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    source = x
    if config.q_lora_rank is not None:
        source = normed(parameters, "q_a_layernorm", linear(parameters, "q_a_proj", x), config)
    query = linear(parameters, "q_proj" if config.q_lora_rank is None else "q_b_proj", source)
    query = query.view(config.num_attention_heads, -1)
    gate = query[:, nope + rope :] if config.attn_output_gate == "query" else None
    query = query[:, : nope + rope]
    if config.mla_config["scale_q_lora"]:
        query = query * math.sqrt(config.hidden_size / config.q_lora_rank)
    both = linear(parameters, "kv_a_proj_with_mqa", x)
    latent = normed(parameters, "kv_a_layernorm", both[: config.kv_lora_rank], config)
    if config.mla_config["scale_kv_lora"]:
        latent = latent * math.sqrt(config.hidden_size / config.kv_lora_rank)
    shared = both[config.kv_lora_rank :]
    if config.mla_config["rope_key_norm"]:
        shared = normed(parameters, "k_rope_layernorm", shared, config)
    if rotates(config, layer):
        shared = turned(shared, position, rope, config, config.rope_interleave)
        query = torch.stack(
            [torch.cat((h[:nope], turned(h[nope:], position, rope, config, config.rope_interleave))) for h in query]
        )
    expanded = (parameters["kv_b_proj.weight"] @ latent).view(-1, nope + width)
    keys = torch.stack([torch.cat((head[:nope], shared)) for head in expanded])
    return source, query * temperature(config, layer, position), keys, expanded[:, nope:], gate


def chosen(parameters, x, sources, config, layer, first):
    """For each query the set of keys its indexer ranks highest; of equals the earlier ones."""
    width = config.index_head_dim
    interleave = config.indexer["rope_interleave"]
    turn = config.qk_rope_head_dim if rotates(config, layer) else 0
    keys = []
    for position, token in enumerate(x):
        key = normalise(
            parameters["indexer.wk.weight"] @ token,
            "layer_norm",
            config.indexer["norm_eps"] or config.mla_config["norm_eps"],
        )
        key = key * parameters["indexer.k_norm.weight"] + parameters["indexer.k_norm.bias"]
        keys.append(turned(key, position, turn, config, interleave))
    selection = []
    for position, token in enumerate(x):
        heads = (parameters["indexer.wq_b.weight"] @ sources[position]).view(-1, width)
        heads = [turned(head, position, turn, config, interleave) for head in heads]
        weights = parameters["indexer.weights_proj.weight"] @ token
        score = {
            key: sum(float(w) * max(float(head @ keys[key]), 0.0) for w, head in zip(weights, heads, strict=True))
            for key in range(first, position + 1)
        }
        ranked = sorted(score, key=lambda key: (-score[key], key))
        selection.append(set(ranked[: config.index_topk]))
    return selection


def scale_of(config, layer):
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    scale = config.attention_multiplier if config.attention_multiplier is not None else width**-0.5
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def latent_row(parameters, x, config, layer, first=0, table=None, selection=None):
    """What layer `layer` gives for the tokens x [T, D], the first `first` of them padding, and what it chose.

    `selection`, the keys each query may read, stands in for the indexer of a layer that has none.
    """
    parameters = {name: value.double() for name, value in parameters.items()}
    x = x.double()
    tokens = [project(parameters, x[t], t, config, layer) for t in range(len(x))]
    indexed = config.layer_types[layer] == "indexed_attention"
    if indexed and selection is None:
        selection = chosen(parameters, x, [token[0] for token in tokens], config, layer, first)
    scale, cap, sinks = scale_of(config, layer), config.attn_logit_softcapping, parameters.get("sinks")
    shared = config.num_attention_heads // config.num_key_value_heads
    rows = []
    for q, (_, query, _, _, gate) in enumerate(tokens):
        heads = []
        for head in range(config.num_attention_heads):
            mass, mixed = 0.0, torch.zeros(config.v_head_dim, dtype=torch.double)
            for k, (_, _, keys, values, _) in enumerate(tokens):
                if not (k in selection[q] if indexed else sees(config, layer, q, k, first)):
                    continue
                score = scale * float(query[head] @ keys[head // shared])
                score = score if cap is None else cap * math.tanh(score / cap)
                weight = math.exp(score + position_bias(config, table, head, q, k))
                mass, mixed = mass + weight, mixed + weight * values[head // shared]
            mass += 0.0 if sinks is None else math.exp(float(sinks[head]))
            heads.append(mixed / mass if mass else mixed)
        output = gated(parameters, torch.stack(heads), x[q], gate, config)
        rows.append(linear(parameters, "o_proj", output.flatten()))
    return torch.stack(rows), selection


@torch.no_grad()
def attention_calls(model, tokens, mask):
    """(mixer, input, output) of each attention of a body in one forward."""
    calls = []

    def record(module, args, kwargs, output):
        calls.append((module, (args or (kwargs["hidden_states"],))[0], output[0]))

    hooks = [layer.self_attn.register_forward_hook(record, with_kwargs=True) for layer in model.layers]
    model(tokens, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls
