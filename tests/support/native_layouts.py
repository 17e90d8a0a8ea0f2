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


# transformers' word -> DeepSeek's, and the dimension that ranks share out.
DEEPSEEK = {
    "embed_tokens": ("embed", 0), "input_layernorm": ("attn_norm", None), "q_proj": ("wq", 0),
    "q_a_proj": ("wq_a", None),
    "post_attention_layernorm": ("ffn_norm", None), "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None), "kv_b_proj": ("wkv_b", 0),
    "o_proj": ("wo", 1), "gate": ("gate", None), "gate_proj": ("w1", 0), "down_proj": ("w2", 1), "up_proj": ("w3", 0),
    "norm": ("norm", None), "lm_head": ("head", 0),
}  # fmt: skip
DEEPSEEK_PARTS = {
    "self_attn": "attn",
    "mlp": "ffn",
    "e_score_correction_bias": "bias",
    "weight_scale_inv": "scale",
    "model": "",
}


def deepseek_ranks(tensors, count, experts):
    """What each rank holds by DeepSeek's inference/convert.py: rows, columns, or whole experts."""
    ranks = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        words = name.split(".")
        theirs, dim = DEEPSEEK[words[-2]]
        words[-2] = theirs
        name = ".".join(filter(None, (DEEPSEEK_PARTS.get(word, word) for word in words)))
        expert = re.search(r"\.experts\.(\d+)\.", name)
        if expert:
            ranks[int(expert[1]) * count // experts][name] = tensor.clone()
            continue
        pieces = [tensor] * count if dim is None else tensor.chunk(count, dim)
        for rank, piece in zip(ranks, pieces, strict=True):
            rank[name] = piece.clone()
    return ranks
