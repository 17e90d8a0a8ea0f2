"""Slow references of families with experts that transformers has no class for: tensors under their published names."""

import torch
from published_parts import (
    Attention,
    Experts,
    GatedMLP,
    Layer,
    LlamaLike,
    RMSNorm,
    attend,
    linear,
    of_heads,
    old_frequencies,
    rotate,
)
from torch import nn

from conversion import family_of


class MiniCPMForCausalLM(LlamaLike):
    """Embeddings times `scale_emb`, branches times scale_depth / √layers, logits over hidden size / dim_model_base."""

    config_class = family_of("minicpm").config_class

    def layer(self, c, index):
        if c.num_experts:
            experts = [
                GatedMLP(c.hidden_size, c.intermediate_size, ("w1", "w3", "w2"), act=c.hidden_act)
                for _ in range(c.num_experts)
            ]
            mlp = Experts(c, experts, normalised=True)
        else:
            mlp = GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)
        layer = Layer(c, Attention(c, c.attention_bias), mlp)
        layer.scale = c.scale_depth / c.num_hidden_layers**0.5
        return layer

    def embed(self, input_ids):
        return self.config.scale_emb * self.model.embed_tokens(input_ids)

    def logits(self, x):
        return self.lm_head(x / (self.config.hidden_size / self.config.dim_model_base))


class DeepseekForCausalLM(LlamaLike):
    config_class = family_of("deepseek").config_class

    def layer(self, c, index):
        sparse = c.n_routed_experts and index >= c.first_k_dense_replace and index % c.moe_layer_freq == 0
        mlp = GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)
        if sparse:
            width = c.moe_intermediate_size
            experts = [GatedMLP(c.hidden_size, width, act=c.hidden_act) for _ in range(c.n_routed_experts)]
            shared = (
                GatedMLP(c.hidden_size, width * c.n_shared_experts, act=c.hidden_act) if c.n_shared_experts else None
            )
            mlp = Experts(c, experts, c.norm_topk_prob, shared)
        return Layer(c, Attention(c, c.attention_bias), mlp)


class BailingAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.width, rows = c.head_dim, (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        self.sizes = [heads * c.head_dim for heads in (c.num_attention_heads, *[c.num_key_value_heads] * 2)]
        self.query_key_value = linear(c.hidden_size, rows, c.use_bias or c.use_qkv_bias)
        self.dense = linear(self.sizes[0], c.hidden_size, c.use_bias)
        if c.use_qk_norm:
            self.query_layernorm, self.key_layernorm = (RMSNorm(c.head_dim, c.rms_norm_eps) for _ in range(2))
        self.radians = old_frequencies(c, int(c.head_dim * c.partial_rotary_factor))

    def forward(self, x, positions, allowed):
        q, k, v = (of_heads(one, self.width) for one in self.query_key_value(x).split(self.sizes, -1))
        if hasattr(self, "query_layernorm"):
            q, k = self.query_layernorm(q), self.key_layernorm(k)
        q, k = (rotate(one, positions, self.radians) for one in (q, k))
        return self.dense(attend(q, k, v, allowed))


class BailingLayer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.attention = BailingAttention(c)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))
        if index < c.first_k_dense_replace:
            self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, bias=c.use_bias, act=c.hidden_act)
            return
        inner = c.moe_intermediate_size
        experts = [GatedMLP(c.hidden_size, inner, act=c.hidden_act) for _ in range(c.num_experts)]
        inner = (c.moe_shared_expert_intermediate_size or inner) * c.num_shared_experts
        shared = GatedMLP(c.hidden_size, inner, bias=c.use_bias, act=c.hidden_act) if inner else None
        self.mlp = BailingExperts(c, experts, c.norm_topk_prob, shared)

    def forward(self, x, positions, allowed):
        x = x + self.attention(self.input_layernorm(x), positions, allowed)
        return x + self.mlp(self.post_attention_layernorm(x))


class BailingExperts(Experts):
    """With a bias, sigmoid scores: the bias counts in the choice of groups, by their two best, and of experts."""

    def __init__(self, c, experts, normalised, shared):
        super().__init__(c, experts, normalised, shared)
        self.c = c
        if c.moe_router_enable_expert_bias:
            self.gate.expert_bias = nn.Parameter(torch.zeros(len(experts)))

    def weigh(self, logits):
        if not self.c.moe_router_enable_expert_bias:
            weights, chosen = super().weigh(logits)
            return weights * self.c.routed_scaling_factor, chosen
        scores = logits.sigmoid()
        choice = (scores + self.gate.expert_bias).view(self.c.n_group or 1, -1)
        best = choice.topk(2).values.sum(-1).topk(self.c.topk_group or 1).indices
        choice = torch.full_like(choice, -torch.inf).index_copy(0, best, choice[best])
        chosen = choice.flatten().topk(self.chosen).indices
        weights = scores[chosen] / (scores[chosen].sum() + 1e-20) if self.normalised else scores[chosen]
        return weights * self.c.routed_scaling_factor, chosen


class BailingMoeV2ForCausalLM(LlamaLike):
    config_class = family_of("bailing_moe").config_class
    table = "word_embeddings"
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}

    def build(self, c):
        super().build(c)
        self.model.word_embeddings = self.model.embed_tokens
        del self.model.embed_tokens

    def layer(self, c, index):
        return BailingLayer(c, index)
