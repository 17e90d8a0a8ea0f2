"""Routers: which experts a token goes to and with what weight. Tokens in, (logits, weights, experts) out.

Shapes: N tokens, E experts, G groups of E / G experts, k experts per token. First the maths as pure functions, then the
modules that hold the weights.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .norms import RMSNorm
from .ops_linear import float32_linear


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """`[..., E]`, sums to one (Shazeer et al. 2017; Mixtral, Qwen3)."""
    return logits.softmax(dim=-1)


def sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """`[..., E]`, each expert by itself (DeepSeek-V3, Llama 4)."""
    return logits.sigmoid()


def sqrtsoftplus(logits: torch.Tensor) -> torch.Tensor:
    """sqrt(log(1 + exp(x))), `[..., E]` (DeepSeek-V4)."""
    return F.softplus(logits).sqrt()


SCORING_FUNCTIONS = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": sqrtsoftplus}


def best_of_group(scores: torch.Tensor) -> torch.Tensor:
    """`[N, G, E / G]` → `[N, G]`, a group is as good as its best expert (DeepSeek-V2 §2.2.2)."""
    return scores.amax(dim=-1)


def best_two_of_group(scores: torch.Tensor) -> torch.Tensor:
    """`[N, G, E / G]` → `[N, G]`, a group is as good as its two best experts together (DeepSeek-V3)."""
    return scores.topk(2, dim=-1).values.sum(dim=-1)


GROUP_SCORES = {"max": best_of_group, "top2_sum": best_two_of_group}
GROUP_MASK_VALUES = {"-inf": float("-inf"), "zero": 0.0}


def limit_groups(
    scores: torch.Tensor, n_group: int, topk_group: int, group_score: str, mask_value: float
) -> torch.Tensor:
    """Scores `[N, E]` with `mask_value` outside the `topk_group` best groups (DeepSeek-V2 §2.2.2).

    With a `mask_value` of 0 an expert outside can still be picked, where the scores inside are 0 too.
    """
    groups = scores.unflatten(-1, (n_group, -1))
    best = GROUP_SCORES[group_score](groups).topk(topk_group, dim=-1).indices
    outside = torch.ones(groups.shape[:-1], dtype=torch.bool, device=scores.device).scatter(-1, best, False)
    return groups.masked_fill(outside.unsqueeze(-1), mask_value).flatten(-2)


def normalize_weights(weights: torch.Tensor, eps: float, minimum: float | None) -> torch.Tensor:
    """w / max(sum(w) + eps, minimum), `[N, k]`."""
    total = weights.sum(dim=-1, keepdim=True) + eps
    return weights / (total if minimum is None else total.clamp(min=minimum))


def sparsemixer(
    scores: torch.Tensor, top_k: int, jitter_eps: float, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `[N, E]` → (weights `[N, k]`, experts `[N, k]`), one expert after the other (Liu et al. 2024, 2409.12136).

    For each pick, the experts whose score lies within 2 · jitter_eps of the best one left, relatively, stay in a
    softmax; its value at the pick is the weight. In training the pick is sampled, and where it is not the best one the
    weight is scaled by 1 or 1/3 at random, without a gradient of the scale's own: Heun's third-order estimate. The
    weights do not sum to one, and the threshold acts in evaluation too. (Phi-3.5-MoE.)
    """
    left, weights, experts = scores, [], []
    for _ in range(top_k):
        best, expert = left.max(dim=-1, keepdim=True)
        with torch.no_grad():
            far = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter_eps
        gates = left.masked_fill(far, float("-inf"))
        probabilities = gates.softmax(dim=-1)
        if training:
            expert = sample(gates)
        weight = probabilities.gather(-1, expert)
        if training:
            weight = heun_scale(weight, expert == probabilities.argmax(dim=-1, keepdim=True))
        weights.append(weight)
        experts.append(expert)
        left = left.scatter(-1, expert, float("-inf"))
    return torch.cat(weights, dim=-1), torch.cat(experts, dim=-1)


def sample(logits: torch.Tensor) -> torch.Tensor:
    """One index `[N, 1]` from softmax(logits), `[N, E]`, by the Gumbel trick."""
    noise = torch.empty_like(logits).exponential_().log()
    return (logits - noise).argmax(dim=-1, keepdim=True)


def heun_scale(weight: torch.Tensor, is_best: torch.Tensor) -> torch.Tensor:
    """Weights `[N, 1]`, those of a pick that is not the best times 1/3 at three out of four, with the gradient of 1."""
    keep = is_best | (torch.rand_like(weight) > 0.75)
    return torch.where(keep, weight, weight - (weight * (2 / 3)).detach())


class Router(nn.Module):
    """x `[N, D]` → logits `[N, E]`, weights `[N, k]`, experts `[N, k]`; a subclass says how in `select`.

    logits = cap(W norm(x) + b), weights = select(logits) · routed_scaling_factor · per_expert_scale. E counts zero
    experts. The first output is what `output_router_logits` records.
    """

    has_matrices = True

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__()
        self.num_experts, self.top_k = config.num_router_outputs, config.num_experts_per_tok
        self.router_dtype, self.weights_dtype = config.precision["router"], config.precision["router_weights"]
        self.scaling, self.softcap = config.routed_scaling_factor, config.router["logit_softcapping"]
        dtype = torch.float32 if config.precision["router"] == "float32_weight" else None
        self.weight = nn.Parameter(torch.empty(self.num_experts, config.hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.num_experts, dtype=dtype)) if config.router["bias"] else None
        self.norm = None
        if config.router["input_norm"]:
            self.norm = RMSNorm(config.hidden_size, config.norm_eps, cast="cast_then_scale")
        self.input_multiplier = config.router["input_multiplier"]
        self.per_expert_scale = (
            nn.Parameter(torch.ones(self.num_experts)) if config.router["per_expert_scale"] else None
        )

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, mean=0.0, std=std)
        if self.bias is not None:
            init.zeros_(self.bias)
        if self.per_expert_scale is not None:
            init.ones_(self.per_expert_scale)

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[N, D]` → `[N, E]` in the dtype that `precision.router` asks for, autocast or not."""
        if self.norm is not None:
            hidden_states = self.norm(hidden_states) * self.input_multiplier
        if self.router_dtype in ("activation", "float32_scores"):
            return F.linear(hidden_states, self.weight, self.bias)
        return float32_linear(hidden_states, self.weight, self.bias)

    def forward(
        self, hidden_states: torch.Tensor, token_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`token_ids` `[B, T]`, of the N rows, are for a router that goes by them."""
        logits = self.project(hidden_states)
        if self.softcap is not None:
            logits = torch.tanh(logits.float() / self.softcap) * self.softcap
        weights, experts = self.select(logits if self.router_dtype == "activation" else logits.float(), token_ids)
        if self.scaling != 1:
            weights = weights * self.scaling
        if self.per_expert_scale is not None:
            weights = weights * self.per_expert_scale[experts]
        return logits, weights.to(torch.float32 if self.weights_dtype == "float32" else hidden_states.dtype), experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, router_dtype={self.router_dtype}"


class TopKRouter(Router):
    """Score, add the selection bias, limit to the best groups, take the k best, weigh them by their normalised scores.

    With `score_after_topk` the selection is on the logits and only the selected ones are scored. (Shazeer et al. 2017;
    DeepSeek-V3 §2.1.2; Mixtral, Qwen3, gpt-oss.)
    """

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        self.score = SCORING_FUNCTIONS[config.scoring_func]
        self.score_after_topk = config.router["score_after_topk"]
        self.normalize = config.norm_topk_prob
        self.eps, self.minimum = config.router["norm_topk_eps"], config.router["norm_topk_min"]
        self.groups = None
        if config.n_group is not None and config.topk_group < config.n_group:
            mask_value = GROUP_MASK_VALUES[config.router["group_mask_value"]]
            self.groups = config.n_group, config.topk_group, config.router["group_score"], mask_value
        # Float32 whatever the model's dtype: steps of 1e-3 on a bias near 1 would be lost in bfloat16.
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if config.use_score_correction_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def initialize(self, std: float) -> None:
        super().initialize(std)
        if self.e_score_correction_bias is not None:
            init.zeros_(self.e_score_correction_bias)

    def select(self, logits: torch.Tensor, token_ids: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, E]` → weights `[N, k]`, experts `[N, k]`."""
        scores = logits if self.score_after_topk else self.score(logits)
        experts = self.choose(scores, token_ids)
        weights = scores.gather(-1, experts)
        if self.score_after_topk:
            weights = self.score(weights)
        return normalize_weights(weights, self.eps, self.minimum) if self.normalize else weights, experts

    def choose(self, scores: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        """The k best experts of scores `[N, E]`, `[N, k]`."""
        choice = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if self.groups is not None:
            choice = limit_groups(choice, *self.groups)
        return choice.topk(self.top_k, dim=-1).indices


class HashRouter(TopKRouter):
    """A table says which experts a token goes to, by its id; their scores are the weights (Roller et al. 2021, Hash
    Layers, arXiv 2106.04426; DeepSeek-V4, §2.1).

    `tid2eid` `[V, k]` is not trained: before a checkpoint's, token t has experts t · k ... t · k + k - 1, modulo E.
    """

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        self.e_score_correction_bias = self.groups = None
        self.register_buffer("tid2eid", torch.empty(config.vocab_size, self.top_k, dtype=torch.long))

    def initialize(self, std: float) -> None:
        super().initialize(std)
        init.copy_(self.tid2eid, self.even_table(len(self.tid2eid)).to(self.tid2eid.device))

    def even_table(self, tokens: int) -> torch.Tensor:
        """Experts of `tokens` tokens `[V, k]`, each as often as any other."""
        return torch.arange(tokens * self.top_k).view(tokens, self.top_k) % self.num_experts

    def choose(self, scores: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        """`tid2eid` of the N rows' `token_ids` `[B, T]`, `[N, k]`; raises ValueError without them."""
        if token_ids is None:
            raise ValueError(
                "A layer of router.num_hash_layers finds the experts of a token by its id: give input_ids, not "
                "inputs_embeds alone."
            )
        return self.tid2eid[token_ids.reshape(-1).to(self.tid2eid.device)]


class SparseMixerRouter(Router):
    """Picks the k experts one by one, sampled in training (Liu et al. 2024, arXiv 2409.12136; Phi-3.5-MoE)."""

    def __init__(self, config: ZooConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        self.jitter_eps = config.router["sparsemixer_jitter_eps"]

    def select(self, logits: torch.Tensor, token_ids: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, E]` → weights `[N, k]`, experts `[N, k]`."""
        return sparsemixer(logits, self.top_k, self.jitter_eps, self.training)


ROUTERS = {
    "softmax": TopKRouter,
    "sigmoid": TopKRouter,
    "sqrtsoftplus": TopKRouter,
    "sparsemixer": SparseMixerRouter,
}


def make_router(config: ZooConfig, layer_idx: int | None) -> Router:
    """The router of a sparse layer."""
    if config.router["num_hash_layers"] and layer_idx is not None and config.hashes_tokens(layer_idx):
        return HashRouter(config, layer_idx)
    return ROUTERS[config.scoring_func](config, layer_idx)
