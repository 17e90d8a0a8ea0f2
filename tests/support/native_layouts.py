"""Tiny checkpoints in the layouts of Meta, Mistral and DeepSeek, written from transformers' tensors by the way back."""

import re

import torch

PLAIN = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "block_sparse_moe": "feed_forward",
}  # fmt: skip


def in_pairs(weight, head_dim):
    """Rows of half-split pairs as interleaved ones, one row at a time."""
    rows = torch.empty_like(weight)
    for head in range(weight.shape[0] // head_dim):
        for j in range(head_dim // 2):
            rows[head * head_dim + 2 * j] = weight[head * head_dim + j]
            rows[head * head_dim + 2 * j + 1] = weight[head * head_dim + j + head_dim // 2]
    return rows


def consolidated(tensors, head_dim):
    """Meta's and Mistral's names, rotary pairs interleaved."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = in_pairs(tensor, head_dim)
        for theirs, ours in PLAIN.items():
            name = name.replace(theirs, ours)
        found[re.sub(r"^model\.", "", name)] = tensor.contiguous()
    return found


def on_ranks(tensors, count, vocabulary_dim=1):
    """What each of `count` model-parallel ranks holds (fairscale's column, row and embedding layers)."""
    ranks = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        dim = 1 if re.search(r"\.(wo|w2)\.", name) else 0
        dim = vocabulary_dim if name.startswith("tok_embeddings") else dim
        pieces = [tensor] * count if "norm" in name else tensor.chunk(count, dim)
        for rank, piece in zip(ranks, pieces, strict=True):
            rank[name] = piece.clone()
    return ranks
