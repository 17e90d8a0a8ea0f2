"""Multi-token prediction as DeepSeek-V3 §2.2 writes it, for a model of Llama's layers: slow, and without zoo's code.

`weights` are a model's parameters by name, `h` `[B, T, D]` what its head reads.
"""

import torch
import torch.nn.functional as F


def rms_norm(x, weight, eps=1e-6):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x, positions, theta):
    """`[B, H, T, d]`, the two halves of a head being the pairs."""
    half = x.shape[-1] // 2
    angles = positions[..., None] * theta ** -(torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def llama_layer(x, w, config, positions, visible):
    """Pre-norm attention with shared key-value heads, then a gated MLP; `visible` `[B, T, T]`."""
    batch, length, _ = x.shape
    normed = rms_norm(x, w["attn_norm.weight"])

    def heads(name):
        return F.linear(normed, w[f"self_attn.{name}_proj.weight"]).view(batch, length, -1, config.head_dim)

    q, k, v = (heads(name).transpose(1, 2) for name in "qkv")
    q, k = (rotate(one, positions, config.rope_parameters["rope_theta"]) for one in (q, k))
    k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for one in (k, v))
    scores = (q @ k.mT / config.head_dim**0.5).masked_fill(~visible[:, None], -torch.inf)
    scores = torch.where(visible.any(-1)[:, None, :, None], scores, 0.0)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
    x = x + F.linear(mixed, w["self_attn.o_proj.weight"])
    normed = rms_norm(x, w["mlp_norm.weight"])
    inner = F.silu(F.linear(normed, w["mlp.gate_proj.weight"])) * F.linear(normed, w["mlp.up_proj.weight"])
    return x + F.linear(inner, w["mlp.down_proj.weight"])


def part_of(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def predictions(weights, config, tokens, h, attended=None):
    """[h^k `[B, T - k, D]` for k = 1, 2, ...] of tokens `[B, T]`, of which `attended` `[B, T]` count."""
    attended = torch.ones_like(tokens, dtype=torch.bool) if attended is None else attended.bool()
    table, found = weights["model.embed_tokens.weight"], []
    for depth in range(config.num_mtp_layers):
        k, length = depth + 1, tokens.shape[1] - depth - 1
        end = 0 if config.mtp["projection"] == "one_for_all" else depth
        own = part_of(weights, f"mtp.projections.{end}.")
        e = rms_norm(table[tokens[:, k:]], own["embedding_norm.weight"])
        h = rms_norm(h[:, :length], own["hidden_norm.weight"])
        both = torch.cat([h, e] if config.mtp["hidden_states_first"] else [e, h], dim=-1)
        x = F.linear(both, own["eh_proj.weight"])
        positions = torch.arange(k, k + length, dtype=x.dtype).expand(len(tokens), -1)
        keys = attended[:, :length] & attended[:, k:]
        visible = torch.ones(length, length, dtype=torch.bool).tril() & keys[:, None, :]
        h = llama_layer(x, part_of(weights, f"mtp.layers.{depth}."), config, positions, visible)
        h = rms_norm(h, weights[f"mtp.norm.{end}.weight"])
        found.append(h)
    return found


def further_loss(weights, config, tokens, labels, h, attended=None):
    """λ / n · Σ_k Σ_i cross entropy of token i + k + 1 at position i, over the number of targets of the model's own
    loss."""
    number = (labels[:, 1:] != -100).sum()
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    total = 0.0
    for k, states in enumerate(predictions(weights, config, tokens, h, attended), 1):
        for row in range(len(tokens)):
            for position in range(states.shape[1] - 1):
                target = labels[row, position + k + 1]
                if target != -100 and (attended is None or attended[row, position]):
                    logits = F.linear(states[row, position], head)
                    total = total + F.cross_entropy(logits, target)
    return config.mtp["loss_coef"] / config.num_mtp_layers * total / number
