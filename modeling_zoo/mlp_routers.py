"""Router modules: tokens in, (logits, weights, experts) out."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .mlp_routing import GROUP_MASK_VALUES, SCORING_FUNCTIONS, limit_groups, normalize_weights, sparsemixer
from .norms import RMSNorm


class Router(nn.Module):
    """x `[N, D]` → logits `[N, E]`, weights `[N, k]`, experts `[N, k]`; a subclass says how in `select`.

    logits = W norm(x) + b, weights = select(logits) · routed_scaling_factor · per_expert_scale. E counts zero experts.
    The first output is what `output_router_logits` records.
    """

    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.num_experts, self.top_k = config.num_router_outputs, config.num_experts_per_tok
        self.router_dtype, self.weights_dtype = config.router_dtype, config.router_weights_dtype
        self.scaling = config.routed_scaling_factor
        size = config.hidden_size
        dtype = torch.float32 if config.router_dtype == "float32_weight" else None
        self.weight = nn.Parameter(torch.empty(self.num_experts, size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.num_experts, dtype=dtype)) if config.router_bias else None
        self.norm = RMSNorm(size, config.norm_eps, cast="cast_then_scale") if config.router_input_norm else None
        self.input_multiplier = config.router_input_multiplier
        self.per_expert_scale = nn.Parameter(torch.ones(self.num_experts)) if config.router_per_expert_scale else None

    def initialize(self, std):
        init.normal_(self.weight, mean=0.0, std=std)
        if self.bias is not None:
            init.zeros_(self.bias)
        if self.per_expert_scale is not None:
            init.ones_(self.per_expert_scale)

    def project(self, hidden_states):
        """`[N, D]` → `[N, E]` in the dtype that `router_dtype` asks for, autocast or not."""
        if self.norm is not None:
            hidden_states = self.norm(hidden_states) * self.input_multiplier
        if self.router_dtype in ("activation", "float32_scores"):
            return F.linear(hidden_states, self.weight, self.bias)
        with maybe_autocast(device_type=hidden_states.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(hidden_states.float(), self.weight.float(), bias)

    def forward(self, hidden_states):
        logits = self.project(hidden_states)
        weights, experts = self.select(logits if self.router_dtype == "activation" else logits.float())
        if self.scaling != 1:
            weights = weights * self.scaling
        if self.per_expert_scale is not None:
            weights = weights * self.per_expert_scale[experts]
        return logits, weights.to(torch.float32 if self.weights_dtype == "float32" else hidden_states.dtype), experts

    def extra_repr(self):
        return f"num_experts={self.num_experts}, top_k={self.top_k}, router_dtype={self.router_dtype}"


class TopKRouter(Router):
    """Score, add the selection bias, limit to the best groups, take the k best, weigh them by their normalised scores.

    With `score_after_topk` the selection is on the logits and only the selected ones are scored. (Shazeer et al. 2017;
    DeepSeek-V3 §2.1.2; Mixtral, Qwen3, gpt-oss.)
    """

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        self.score = SCORING_FUNCTIONS[config.scoring_func]
        self.score_after_topk = config.score_after_topk
        self.normalize = config.norm_topk_prob
        self.eps, self.minimum = config.norm_topk_eps, config.norm_topk_min
        self.groups = None
        if config.n_group is not None and config.topk_group < config.n_group:
            mask_value = GROUP_MASK_VALUES[config.group_mask_value]
            self.groups = config.n_group, config.topk_group, config.group_score, mask_value
        # Float32 whatever the model's dtype: steps of 1e-3 on a bias near 1 would be lost in bfloat16.
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if config.use_score_correction_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def initialize(self, std):
        super().initialize(std)
        if self.e_score_correction_bias is not None:
            init.zeros_(self.e_score_correction_bias)

    def select(self, logits):
        """`[N, E]` → weights `[N, k]`, experts `[N, k]`."""
        scores = logits if self.score_after_topk else self.score(logits)
        choice = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if self.groups is not None:
            choice = limit_groups(choice, *self.groups)
        experts = choice.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.score_after_topk:
            weights = self.score(weights)
        return normalize_weights(weights, self.eps, self.minimum) if self.normalize else weights, experts


class SparseMixerRouter(Router):
    """Picks the k experts one by one, sampled in training (Liu et al. 2024, arXiv 2409.12136; Phi-3.5-MoE)."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        self.jitter_eps = config.sparsemixer_jitter_eps

    def select(self, logits):
        """`[N, E]` → weights `[N, k]`, experts `[N, k]`."""
        return sparsemixer(logits, self.top_k, self.jitter_eps, self.training)


ROUTERS = {
    "softmax": TopKRouter,
    "sigmoid": TopKRouter,
    "sqrtsoftplus": TopKRouter,
    "sparsemixer": SparseMixerRouter,
}
