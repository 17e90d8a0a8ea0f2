"""What slow references of published models are made of: every step is its formula, nothing is cached or fused."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutput


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
    """By `rope_theta`, and a `rope_scaling` that is linear; a dynamic one is none up to the length of the training."""
    scaling = getattr(config, "rope_scaling", None) or {"type": "default"}
    assert scaling["type"] in ("default", "linear", "dynamic")
    return frequencies(config.rope_theta, width, scaling["factor"] if scaling["type"] == "linear" else 1.0)


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


def alibi(heads):
    """Slopes 2^(-8j / n) of Press et al. 2022 for n heads, a power of two; the odd ones of 2n for the rest."""
    power = 1 << heads.bit_length() - 1
    first = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    return first + [2 ** (-4 * (2 * index + 1) / power) for index in range(heads - power)]


def attend(q, k, v, allowed, bias=0.0):
    """softmax(q kᵀ / √d + bias) v head by head; q `[B, T, H, d]`, k and v with fewer heads; `allowed` `[B, T, T]`;
    `bias` may be a list of one `[B, T, T]` a head."""
    heads, shared = q.shape[2], q.shape[2] // k.shape[2]
    out = []
    for head in range(heads):
        scores = q[:, :, head] @ k[:, :, head // shared].mT / q.shape[-1] ** 0.5
        scores = scores + (bias[head] if isinstance(bias, list) else bias)
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


class Attention(nn.Module):
    """Llama's."""

    def __init__(self, c, bias=False, groups=None):
        super().__init__()
        heads, self.width = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        groups = groups or c.num_key_value_heads or heads
        self.q_proj, self.o_proj = (linear(c.hidden_size, c.hidden_size, bias) for _ in range(2))
        self.k_proj, self.v_proj = (linear(c.hidden_size, groups * self.width, bias) for _ in range(2))
        self.radians = old_frequencies(c, self.width)

    def forward(self, x, positions, allowed):
        q, k, v = (of_heads(proj(x), self.width) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(one, positions, self.radians) for one in (q, k))
        return self.o_proj(attend(q, k, v, allowed))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each times `scale`."""

    scale = 1.0

    def __init__(self, c, attention, mlp):
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, positions, allowed):
        x = x + self.scale * self.self_attn(self.input_layernorm(x), positions, allowed)
        return x + self.scale * self.mlp(self.post_attention_layernorm(x))


class Experts(nn.Module):
    """Σ of the chosen experts' outputs, weighed by a softmax over all, token by token; plus the shared ones."""

    def __init__(self, c, experts, normalised, shared=None):
        super().__init__()
        self.gate = linear(c.hidden_size, len(experts))
        self.experts, self.chosen, self.normalised = nn.ModuleList(experts), c.num_experts_per_tok, normalised
        if shared is not None:
            self.shared_experts = shared

    def forward(self, x):
        out = torch.zeros_like(x)
        for place in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
            token = x[tuple(place)]
            weights, chosen = self.weigh(self.gate(token))
            outputs = [weight * self.experts[index](token) for weight, index in zip(weights, chosen, strict=True)]
            out[tuple(place)] = sum(outputs)
        return out + self.shared_experts(x) if hasattr(self, "shared_experts") else out

    def weigh(self, logits):
        """The weights and numbers of the experts one token goes to."""
        weights, chosen = logits.softmax(-1).topk(self.chosen)
        return weights / weights.sum() if self.normalised else weights, chosen


class LlamaLike(Published):
    """Llama's names around layers that `layer(c, index)` makes."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def build(self, c):
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(self.layer(c, index) for index in range(c.num_hidden_layers))
        self.model.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = linear(c.hidden_size, c.vocab_size)
