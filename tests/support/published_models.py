"""Slow references of families that transformers has no class for: every tensor under its published name.

Written from the models' reports and the layouts of their files.
"""

from dataclasses import fields

from published_experts import BailingMoeV2ForCausalLM, DeepseekForCausalLM, MiniCPMForCausalLM
from published_kimi import KimiK3ForCausalLM
from published_parts import (
    Attention,
    GatedMLP,
    Layer,
    LlamaLike,
    Published,
    RMSNorm,
    alibi,
    attend,
    frequencies,
    linear,
    of_heads,
    old_frequencies,
    rotate,
)
from torch import nn
from torch.nn import functional as F
from transformers import FalconConfig, FalconForCausalLM

from conversion import family_of


class InternLM2Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        groups, heads, self.width = c.num_key_value_heads or c.num_attention_heads, c.num_attention_heads, 0
        self.width = c.hidden_size // heads
        self.attention = nn.Module()
        self.attention.wqkv = linear(c.hidden_size, (heads + 2 * groups) * self.width, c.bias)
        self.attention.wo = linear(heads * self.width, c.hidden_size, c.bias)
        self.feed_forward = GatedMLP(c.hidden_size, c.intermediate_size, ("w1", "w3", "w2"), act=c.hidden_act)
        self.attention_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.ffn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.groups, self.frequencies = groups, old_frequencies(c, self.width)

    def forward(self, x, positions, allowed):
        # One group: its queries, then its key, then its value.
        fused = of_heads(self.attention.wqkv(self.attention_norm(x)), self.width).unflatten(2, (self.groups, -1))
        q, k, v = fused[:, :, :, :-2].flatten(2, 3), fused[:, :, :, -2], fused[:, :, :, -1]
        q, k = (rotate(one, positions, self.frequencies) for one in (q, k))
        x = x + self.attention.wo(attend(q, k, v, allowed))
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2ForCausalLM(Published):
    config_class = family_of("internlm2").config_class
    table, head = "tok_embeddings", "output"
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}

    def build(self, c):
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(InternLM2Layer(c, index) for index in range(c.num_hidden_layers))
        self.model.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.output = linear(c.hidden_size, c.vocab_size)


class ChatGLMLayer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        norm = RMSNorm if c.rmsnorm else nn.LayerNorm
        self.input_layernorm = norm(c.hidden_size, eps=c.layernorm_epsilon)
        self.post_attention_layernorm = norm(c.hidden_size, eps=c.layernorm_epsilon)
        heads, width, bias = c.num_attention_heads, c.kv_channels, c.add_bias_linear
        groups = c.multi_query_group_num if c.multi_query_attention else heads
        self.self_attention, self.mlp = nn.Module(), nn.Module()
        self.sizes = [heads * width, groups * width, groups * width]
        self.self_attention.query_key_value = linear(c.hidden_size, sum(self.sizes), bias or c.add_qkv_bias)
        self.self_attention.dense = linear(heads * width, c.hidden_size, bias)
        self.mlp.dense_h_to_4h = linear(c.hidden_size, 2 * c.ffn_hidden_size, bias)
        self.mlp.dense_4h_to_h = linear(c.ffn_hidden_size, c.hidden_size, bias)
        self.frequencies = frequencies(10000.0 * c.rope_ratio, width // 2)
        self.width, self.in_pairs = width, c.original_rope

    def forward(self, x, positions, allowed):
        fused = self.self_attention.query_key_value(self.input_layernorm(x)).split(self.sizes, -1)
        q, k, v = (of_heads(one, self.width) for one in fused)
        q, k = (rotate(one, positions, self.frequencies, self.in_pairs) for one in (q, k))
        x = x + self.self_attention.dense(attend(q, k, v, allowed))
        gate, up = self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.mlp.dense_4h_to_h(F.silu(gate) * up)


class ChatGLMForConditionalGeneration(Published):
    config_class = family_of("chatglm").config_class
    base_model_prefix = body = "transformer"
    table, stack, norm = "embedding.word_embeddings", "encoder.layers", "encoder.final_layernorm"
    head = "transformer.output_layer"
    _tied_weights_keys = {"transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"}

    def build(self, c):
        self.transformer = nn.Module()
        self.transformer.embedding, self.transformer.encoder = nn.Module(), nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(c.padded_vocab_size, c.hidden_size)
        self.transformer.encoder.layers = nn.ModuleList(ChatGLMLayer(c, index) for index in range(c.num_layers))
        norm = RMSNorm if c.rmsnorm else nn.LayerNorm
        self.transformer.encoder.final_layernorm = norm(c.hidden_size, eps=c.layernorm_epsilon)
        self.transformer.output_layer = linear(c.hidden_size, c.padded_vocab_size)


class QWenLayer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        inner, bias = c.num_attention_heads * c.kv_channels, not c.no_bias
        self.ln_1, self.ln_2 = (RMSNorm(c.hidden_size, c.layer_norm_epsilon) for _ in range(2))
        self.attn = nn.Module()
        self.attn.c_attn = linear(c.hidden_size, 3 * inner, True)
        self.attn.c_proj = linear(inner, c.hidden_size, bias)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size // 2, ("w2", "w1", "c_proj"), bias)
        self.width = c.kv_channels
        self.radians = frequencies(c.rotary_emb_base, int(c.kv_channels * c.rotary_pct))

    def forward(self, x, positions, allowed):
        q, k, v = (of_heads(one, self.width) for one in self.attn.c_attn(self.ln_1(x)).chunk(3, -1))
        q, k = (rotate(one, positions, self.radians) for one in (q, k))
        x = x + self.attn.c_proj(attend(q, k, v, allowed))
        return x + self.mlp(self.ln_2(x))


class QWenLMHeadModel(Published):
    config_class = family_of("qwen").config_class
    base_model_prefix = body = "transformer"
    table, stack, norm = "wte", "h", "ln_f"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def build(self, c):
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(c.vocab_size, c.hidden_size)
        self.transformer.h = nn.ModuleList(QWenLayer(c, index) for index in range(c.num_hidden_layers))
        self.transformer.ln_f = RMSNorm(c.hidden_size, c.layer_norm_epsilon)
        self.lm_head = linear(c.hidden_size, c.vocab_size)


class DeciLMForCausalLM(LlamaLike):
    """Llama of layers that may lack attention, or an MLP; a layer that lacks one lacks its norm."""

    config_class = family_of("nemotron_nas").config_class

    def layer(self, c, index):
        return DeciLMLayer(c, **c.block_configs[index])


class DeciLMLayer(nn.Module):
    def __init__(self, c, attention, ffn):
        super().__init__()
        if not attention["no_op"]:
            groups = c.num_attention_heads // attention["n_heads_in_group"]
            self.self_attn = Attention(c, c.attention_bias, groups)
            self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        if not ffn["no_op"]:
            inner = int(2 * ffn["ffn_mult"] * c.hidden_size / 3)
            while inner % 256:
                inner += 1
            self.mlp = GatedMLP(c.hidden_size, inner, bias=c.mlp_bias, act=c.hidden_act)
            self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, positions, allowed):
        if hasattr(self, "self_attn"):
            x = x + self.self_attn(self.input_layernorm(x), positions, allowed)
        return x + self.mlp(self.post_attention_layernorm(x)) if hasattr(self, "mlp") else x


class BaichuanAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.width = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        self.W_pack, self.o_proj = linear(c.hidden_size, 3 * c.hidden_size), linear(c.hidden_size, c.hidden_size)
        self.radians = frequencies(c.rope_theta, self.width) if c.max_position_embeddings else None

    def forward(self, x, positions, allowed):
        q, k, v = (of_heads(one, self.width) for one in self.W_pack(x).chunk(3, -1))
        if self.radians is None:
            away = positions[:, None, :] - positions[:, :, None]
            return self.o_proj(attend(q, k, v, allowed, [slope * away for slope in alibi(self.heads)]))
        q, k = (rotate(one, positions, self.radians) for one in (q, k))
        return self.o_proj(attend(q, k, v, allowed))


class BaichuanForCausalLM(LlamaLike):
    config_class = family_of("baichuan").config_class

    def layer(self, c, index):
        return Layer(c, BaichuanAttention(c), GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act))


class RWForCausalLM(FalconForCausalLM):
    """transformers' Falcon, told by the names of the first files."""

    config_class = family_of("RefinedWeb").config_class

    def __init__(self, config):
        names = [field.name for field in fields(FalconConfig) if hasattr(config, field.name)]
        # Their attention in plain steps adds ALiBi twice.
        arguments = {name: getattr(config, name) for name in names} | {"attn_implementation": "sdpa"}
        super().__init__(FalconConfig(**arguments))
        self.config = config


class RWModelForCausalLM(RWForCausalLM):
    config_class = family_of("RefinedWebModel").config_class


PUBLISHED = {
    model.config_class.model_type: model
    for model in (
        InternLM2ForCausalLM, ChatGLMForConditionalGeneration, MiniCPMForCausalLM, DeepseekForCausalLM, QWenLMHeadModel,
        DeciLMForCausalLM, BailingMoeV2ForCausalLM, BaichuanForCausalLM, RWForCausalLM,
        RWModelForCausalLM, KimiK3ForCausalLM,
    )
}  # fmt: skip
