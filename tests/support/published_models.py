"""Slow references of families that transformers has no class for: every tensor under its published name, no cache.

Written from the models' reports and the layouts of their files; every step is the formula, one token table at a time.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutput

from conversion import family_of


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))


def linear(inner, outer, bias=False):
    return nn.Linear(inner, outer, bias=bias)


def frequencies(theta, width, slower=1.0):
    """Radians a token of every pair of channels: θ^(-2j / n)."""
    return [theta ** (-channel / width) / slower for channel in range(0, width, 2)]


def old_frequencies(config, width):
    """By `rope_theta`, and a `rope_scaling` that is linear."""
    scaling = getattr(config, "rope_scaling", None) or {"type": "default", "factor": 1.0}
    assert scaling["type"] in ("default", "linear")
    return frequencies(config.rope_theta, width, scaling["factor"])


def rotate(x, positions, radians, in_pairs=False):
    """x `[B, T, H, d]` with its first channels turned: pair (j, j + n/2), or (2j, 2j + 1) `in_pairs`."""
    angle = positions[..., None, None].float() * torch.tensor(radians)
    cos, sin, width = angle.cos(), angle.sin(), 2 * len(radians)
    turned, rest = x[..., :width], x[..., width:]
    if in_pairs:
        a, b = turned[..., ::2], turned[..., 1::2]
        out = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        out = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([out, rest], -1)


def attend(q, k, v, allowed, bias=0.0):
    """softmax(q kᵀ / √d + bias) v head by head; q `[B, T, H, d]`, k and v with fewer heads; `allowed` `[B, T, T]`."""
    heads, shared = q.shape[2], q.shape[2] // k.shape[2]
    out = []
    for head in range(heads):
        scores = q[:, :, head] @ k[:, :, head // shared].mT / q.shape[-1] ** 0.5
        scores = scores + (bias[head] if torch.is_tensor(bias) else bias)
        out.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num() @ v[:, :, head // shared])
    return torch.cat(out, -1)


def of_heads(x, width):
    return x.unflatten(-1, (-1, width))


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), the three maps under given names."""

    def __init__(self, width, inner, names=("gate_proj", "up_proj", "down_proj"), bias=False, act="silu"):
        super().__init__()
        self.names, self.act = names, ACT2FN[act]
        for name, (a, b) in zip(names, [(width, inner), (width, inner), (inner, width)], strict=True):
            self.add_module(name, linear(a, b, bias))

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.act(gate(x)) * up(x))


class Published(PreTrainedModel, GenerationMixin):
    """A body of layers `layer(x, positions, allowed) -> x` between a table and a head, found by their names."""

    body, table, stack, norm, head = "model", "embed_tokens", "layers", "norm", "lm_head"
    _no_split_modules = ()

    def __init__(self, config):
        super().__init__(config)
        self.build(config)
        self.post_init()
        self.generation_config.use_cache = False

    def _init_weights(self, module):
        """Tests fill the parameters."""

    def part(self, name):
        return self.get_submodule(f"{self.body}.{name}")

    def get_input_embeddings(self):
        return self.part(self.table)

    def get_output_embeddings(self):
        return self.get_submodule(self.head)

    def embed(self, input_ids):
        return self.part(self.table)(input_ids)

    def logits(self, x):
        return self.get_output_embeddings()(x)

    def forward(self, input_ids, attention_mask=None, **_):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        allowed = mask.bool()[:, None, :] & torch.ones(2 * input_ids.shape[1:]).tril().bool()
        x = self.embed(input_ids)
        for layer in self.part(self.stack):
            x = layer(x, positions, allowed)
        return CausalLMOutput(logits=self.logits(self.part(self.norm)(x)))


def tied(body):
    """Where a published class ties its head to."""
    return {"lm_head.weight": f"{body}.weight"}


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


PUBLISHED = {"internlm2": InternLM2ForCausalLM, "chatglm": ChatGLMForConditionalGeneration}
