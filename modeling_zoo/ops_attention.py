"""Softmax attention over ready queries, keys and values: the plain form, and which backends keep a config's
promises."""

import torch
from torch import nn

from .ops_attention_triton import seen_by_one, split_decode, wants_kernels


def repeat_kv(states, groups):
    """`[B, K, T, d]` → `[B, K · groups, T, d]`, each head `groups` times in a row."""
    if groups == 1:
        return states
    batch, heads, length, dim = states.shape
    return states[:, :, None].expand(batch, heads, groups, length, dim).reshape(batch, heads * groups, length, dim)


def eager_attention_forward(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    softcap=None,
    s_aux=None,
    position_bias=None,
    upcast=False,
    **kwargs,
):
    """softmax(cap(q kᵀ · scaling) + bias + mask) v for `[B, H, T, d]`, `[B, K, S, d]` → `[B, T, H, d]`, weights `[B,
    H, T, S]`.

    cap(x) = softcap · tanh(x / softcap) (Gemma 2). `s_aux` `[H]` adds to every row a logit that takes probability and
    has no value (gpt-oss). The softmax is taken in float32 at least, with `upcast` the scores too.
    """
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    dtype = query.dtype
    if upcast:
        query, key = query.float(), key.float()
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks.to(scores.dtype)), dim=-1)
    # Narrower than the scores, it would make of the least number that hides a key an infinity.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=wide).to(dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend_one(query, key, value, attention_mask, scaling):
    """Attention of one query per head, `[B, H, 1, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, 1, H, v]`.

    The H / K queries that share a key are the rows of one product with it, so that it is read once.
    """
    batch, heads, _, width = query.shape
    rows = query.reshape(batch, key.shape[1], -1, width)
    visible, plain = seen_by_one(attention_mask)
    if plain and wants_kernels(query):
        return split_decode(rows, key, value, scaling, visible=visible).reshape(batch, 1, heads, value.shape[-1])
    if attention_mask is not None and attention_mask.shape[1] != 1:
        attention_mask = attention_mask.reshape(batch, key.shape[1], -1, attention_mask.shape[-1])
    output = nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])


def attend_grouped(query, key, value, attention_mask, scaling):
    """Attention of many queries, `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, T, H, v]`, keys not repeated for
    the heads that share them."""
    shared = {"enable_gqa": True} if key.shape[1] < query.shape[1] else {}
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, **shared
    )
    return output.transpose(1, 2)


def shares_reads(backend, query, key, dropout=0.0, position_bias=None, cache=None, **special):
    """Whether `attend_one` computes what `backend` would, and faster: on a CPU transformers reads the keys once per
    query head."""
    if query.shape[2] != 1 or not _plain(backend, dropout, position_bias, cache, **special):
        return False
    return (query.device.type == "cpu" and key.shape[1] < query.shape[1]) or wants_kernels(query)


def shares_keys(backend, query, key, attention_mask, dropout=0.0, position_bias=None, cache=None, **special):
    """Whether `attend_grouped` computes what `backend` would, and faster: beside a mask transformers repeats the keys
    for every query head."""
    masked = isinstance(attention_mask, torch.Tensor) and attention_mask.dtype == torch.bool
    masked = masked and attention_mask.shape[-1] == key.shape[2] and key.shape[1] < query.shape[1]
    faster = masked and query.device.type == "cpu" and query.shape[2] > 1 and not torch.is_grad_enabled()
    return faster and _plain(backend, dropout, position_bias, cache, **special)


def _plain(backend, dropout=0.0, position_bias=None, cache=None, softcap=None, s_aux=None, **special):
    """Whether torch's fused attention is asked for, and nothing it does not compute."""
    plain = position_bias is None and cache is None and not dropout
    return plain and backend == "sdpa" and softcap is None and s_aux is None


# What a score needs beyond scale and mask → the backends that honour it. transformers' sdpa refuses a soft-cap and
# drops sinks in silence, flash attention drops a position bias in silence.
SCORE_NEEDS = {
    "attn_logit_softcapping": ("eager", "flex_attention", "vllm"),
    "attention_sinks": ("eager", "flex_attention"),
    "position_bias": ("eager", "sdpa", "flex_attention"),
    "sparse_attention_pattern": ("eager", "sdpa", "flex_attention"),
    "index_topk": ("eager", "sdpa"),
}


def attention_backends(config):
    """(backends that compute this config rightly or None for all, "field=value" of what limits them)."""
    biased = config.position_embedding_type in ("alibi", "relative", "transformer_xl")
    found = {"position_bias": f"position_embedding_type={config.position_embedding_type!r}"} if biased else {}
    for layer in config.per_layer_config if config.is_heterogeneous else [config]:
        for field in SCORE_NEEDS:
            value = getattr(layer, field, None)
            if value is not None and value != []:
                found.setdefault(field, f"{field}={value!r}")
    needs = [need for need in SCORE_NEEDS if need in found]
    if not needs:
        return None, None
    backends = tuple(name for name in SCORE_NEEDS[needs[0]] if all(name in SCORE_NEEDS[need] for need in needs))
    return backends, found[needs[0]]


def share_implementations(model):
    """Gives every layer's own view of the config the implementations that transformers has set on the model's: where
    layers differ, each holds a view that transformers does not know of."""
    views = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    views |= {id(rule.config): rule.config for part in model.modules() for rule in getattr(part, "mask_plan", ())}
    for view in views.values():
        if view is not model.config:
            view._attn_implementation = model.config._attn_implementation
            view._experts_implementation = model.config._experts_implementation
