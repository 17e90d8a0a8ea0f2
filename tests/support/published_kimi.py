"""A slow reference of Kimi K3's text model, every tensor under its published name: token by token, no cache."""

import torch
from published_parts import LlamaLike, RMSNorm, attend, linear, of_heads
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

from conversion import family_of


def unit_of(c):
    """β tanh(g / β) σ(g) · β' tanh(u / β')."""
    beta, linear_beta = c.activation_situ_beta or 1.0, c.activation_situ_linear_beta

    def unit(gate, up):
        bounded = up if linear_beta is None else linear_beta * torch.tanh(up / linear_beta)
        return beta * torch.tanh(gate / beta) / (1 + torch.exp(-gate)) * bounded

    return unit


class BoundedMLP(nn.Module):
    def __init__(self, c, width, inner, names=("gate_proj", "up_proj", "down_proj")):
        super().__init__()
        self.names, self.unit = names, unit_of(c)
        for name, (a, b) in zip(names, [(width, inner), (width, inner), (inner, width)], strict=True):
            self.add_module(name, linear(a, b))

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.unit(gate(x), up(x)))


class LatentExperts(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, width = c, c.routed_expert_hidden_size or c.hidden_size
        self.gate = linear(c.hidden_size, c.num_experts)
        self.gate.e_score_correction_bias = nn.Parameter(torch.zeros(c.num_experts))
        names = ("w1", "w3", "w2")
        self.experts = nn.ModuleList(BoundedMLP(c, width, c.moe_intermediate_size, names) for _ in range(c.num_experts))
        self.shared_experts = BoundedMLP(c, c.hidden_size, c.moe_intermediate_size * c.num_shared_experts)
        if c.routed_expert_hidden_size:
            self.routed_expert_down_proj = linear(c.hidden_size, width)
            self.routed_expert_up_proj = linear(width, c.hidden_size)
            if c.latent_moe_use_norm:
                self.routed_expert_norm = RMSNorm(width, c.rms_norm_eps)

    def weigh(self, token):
        """{expert: weight} of one token."""
        scores = torch.sigmoid(self.gate.weight @ token)
        ranked = scores + self.gate.e_score_correction_bias
        groups = ranked.view(self.c.num_expert_group, -1)
        best = groups.topk(min(2, groups.shape[1])).values.sum(-1).topk(self.c.topk_group).indices.tolist()
        ranked = torch.cat([row if index in best else row - torch.inf for index, row in enumerate(groups)])
        chosen = ranked.topk(self.c.num_experts_per_token).indices.tolist()
        total = sum(scores[index] for index in chosen) if self.c.moe_renormalize else 1.0
        return {index: scores[index] / total * self.c.routed_scaling_factor for index in chosen}

    def forward(self, x):
        inner = self.routed_expert_down_proj(x) if hasattr(self, "routed_expert_down_proj") else x
        routed = torch.zeros_like(inner)
        for place in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
            weights = self.weigh(x[tuple(place)])
            routed[tuple(place)] = sum(w * self.experts[e](inner[tuple(place)]) for e, w in weights.items())
        if hasattr(self, "routed_expert_norm"):
            routed = self.routed_expert_norm(routed)
        if hasattr(self, "routed_expert_up_proj"):
            routed = self.routed_expert_up_proj(routed)
        return routed + self.shared_experts(x)


class KimiLatent(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, heads, width = c, c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        if c.q_lora_rank is None:
            self.q_proj = linear(c.hidden_size, heads * width)
        else:
            self.q_a_proj, self.q_a_layernorm = linear(c.hidden_size, c.q_lora_rank), RMSNorm(c.q_lora_rank, 1e-6)
            self.q_b_proj = linear(c.q_lora_rank, heads * width)
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = linear(heads * c.v_head_dim, c.hidden_size)
        if c.mla_use_output_gate:
            self.g_proj = linear(c.hidden_size, heads * c.v_head_dim)

    def forward(self, x, allowed):
        c = self.c
        ranked = c.q_lora_rank is not None
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if ranked else self.q_proj(x)
        latent, shared = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        expanded = of_heads(self.kv_b_proj(self.kv_a_layernorm(latent)), c.qk_nope_head_dim + c.v_head_dim)
        key, value = expanded.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        key = torch.cat([key, shared.unsqueeze(2).expand(-1, -1, key.shape[2], -1)], -1)
        out = attend(of_heads(query, key.shape[-1]), key, value, allowed)
        return self.o_proj(out * torch.sigmoid(self.g_proj(x)) if c.mla_use_output_gate else out)


class KimiDelta(nn.Module):
    def __init__(self, c):
        super().__init__()
        own = c.linear_attn_config
        self.width, self.kernel, self.bound = own["head_dim"], own["short_conv_kernel_size"], own["gate_lower_bound"]
        heads, inner = own["num_heads"], own["num_heads"] * own["head_dim"]
        for x in "qkv":
            self.add_module(f"{x}_proj", linear(c.hidden_size, inner))
            self.add_module(f"{x}_conv1d", nn.Conv1d(inner, inner, self.kernel, groups=inner, bias=False))
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(inner))
        self.f_a_proj, self.f_b_proj = linear(c.hidden_size, self.width), linear(self.width, inner)
        self.b_proj = linear(c.hidden_size, heads)
        if own["use_full_rank_gate"]:
            self.g_proj = linear(c.hidden_size, inner)
        else:
            self.g_a_proj, self.g_b_proj = linear(c.hidden_size, self.width), linear(self.width, inner)
        self.o_norm, self.o_proj = RMSNorm(self.width, c.rms_norm_eps), linear(inner, c.hidden_size)

    def convolved(self, x, name):
        padded = F.pad(getattr(self, f"{name}_proj")(x).mT, (self.kernel - 1, 0))
        return of_heads(F.silu(getattr(self, f"{name}_conv1d")(padded).mT), self.width)

    def forward(self, x, there):
        """`there` `[B, T]`: which tokens are no padding; that one leaves no trace in the state."""
        x = x * there[..., None]
        q, k, v = (self.convolved(x, name) for name in "qkv")
        q, k = (one / torch.sqrt((one * one).sum(-1, keepdim=True) + 1e-6) for one in (q, k))
        raw = of_heads(self.f_b_proj(self.f_a_proj(x)) + self.dt_bias, self.width)
        rate = self.A_log.exp()[:, None]
        decay = -rate * F.softplus(raw) if self.bound is None else self.bound * torch.sigmoid(rate * raw)
        strength, out = torch.sigmoid(self.b_proj(x)), torch.zeros_like(v)
        for row in range(len(x)):
            state = torch.zeros(v.shape[2], self.width, self.width)
            for t in range(x.shape[1]):
                state = state * decay[row, t].exp()[..., None]
                error = v[row, t] - torch.einsum("hkv,hk->hv", state, k[row, t])
                state = state + torch.einsum("hk,hv->hkv", k[row, t], error * strength[row, t][:, None])
                out[row, t] = torch.einsum("hkv,hk->hv", state, q[row, t]) / self.width**0.5
        gate = self.g_proj(x) if hasattr(self, "g_proj") else self.g_b_proj(self.g_a_proj(x))
        return self.o_proj((self.o_norm(out) * torch.sigmoid(of_heads(gate, self.width))).flatten(2))


def read(states, norm, proj):
    """Σ_i p_i v_i, p = softmax_i(w · norm(v_i))."""
    weights = torch.cat([proj(norm(state)) for state in states], -1).softmax(-1)
    return sum(weights[..., index, None] * state for index, state in enumerate(states))


class KimiK3Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.recurrent = index + 1 in c.linear_attn_config["kda_layers"]
        self.self_attn = KimiDelta(c) if self.recurrent else KimiLatent(c)
        sparse = index >= c.first_k_dense_replace and index % c.moe_layer_freq == 0
        self.mlp_name = "block_sparse_moe" if sparse else "mlp"
        self.add_module(
            self.mlp_name, LatentExperts(c) if sparse else BoundedMLP(c, c.hidden_size, c.intermediate_size)
        )
        for name in ("input_layernorm", "post_attention_layernorm", "self_attention_res_norm", "mlp_res_norm"):
            self.add_module(name, RMSNorm(c.hidden_size, c.rms_norm_eps))
        self.self_attention_res_proj, self.mlp_res_proj = linear(c.hidden_size, 1), linear(c.hidden_size, 1)

    def forward(self, total, blocks, starts, there, allowed):
        """The running sum and the blocks before it → both behind this layer."""
        x = read([*blocks, total], self.self_attention_res_norm, self.self_attention_res_proj) if blocks else total
        if starts:
            blocks, total = [*blocks, total], 0
        total = total + self.self_attn(self.input_layernorm(x), there if self.recurrent else allowed)
        x = read([*blocks, total], self.mlp_res_norm, self.mlp_res_proj)
        return total + getattr(self, self.mlp_name)(self.post_attention_layernorm(x)), blocks


class KimiK3ForCausalLM(LlamaLike):
    config_class = family_of("kimi_k3_text").config_class

    def layer(self, c, index):
        return KimiK3Layer(c, index)

    def build(self, c):
        super().build(c)
        self.model.output_attn_res_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model.output_attn_res_proj = linear(c.hidden_size, 1)

    def forward(self, input_ids, attention_mask=None, **_):
        there = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        allowed = there[:, None, :] & torch.ones(2 * input_ids.shape[1:]).tril().bool()
        total, blocks = self.embed(input_ids), []
        for index, layer in enumerate(self.model.layers):
            starts = index % self.config.attn_res_block_size == 0
            total, blocks = layer(total, blocks, starts, there, allowed)
        x = read([*blocks, total], self.model.output_attn_res_norm, self.model.output_attn_res_proj)
        return CausalLMOutput(logits=self.logits(self.model.norm(x)))
