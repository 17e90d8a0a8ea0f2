"""Attention whose keys and values are linear maps of one latent that all heads share.

Head h has key [U_h l, r] and value V_h l for a latent l `[c]` and a rope key r. Since q · (U_h l) = (U_hᵀ q) · l, the
maps can move from the keys to the query and from the values to the output: then all heads read one key [l, r] and one
value l. Expanded or absorbed, the result is the same (DeepSeek-V2, arXiv 2405.04434, §2.1.2); the cost is not.
"""

import torch
import torch.nn.functional as F

from .ops_attention_triton import seen_by_one, split_decode, wants_kernels

# Keys per pass of the streamed form, so that its float32 copy of them stays in a core's cache; scores held at once by
# the plain form; keys up to which the fused form is the fastest on a CPU.
STREAM_KEYS = 512
MOST_SCORES = 2**26
FUSED_KEYS = 1024
# Multiplications that take as long as copying one number of a gathered latent; numbers up to which that is not counted.
GATHER_COST, CHEAPLY_GATHERED = 64, 2**24


def absorption_pays(queries, keys, heads, kv_heads, rank, nope, rope, value, basis_rows=0, pairs=None):
    """Whether the absorbed form of `queries` over `keys` multiplies less than the expanded one.

    `basis_rows` counts the rows that go through the up-projection before its matrix is known; `pairs` the pairs of
    query and key that each form, expanded and absorbed, computes (None: all of them in both). With pairs, the queries
    gather the latents of theirs, a copy that all heads share.
    """
    in_expanded, in_absorbed = pairs or (queries * keys, queries * keys)
    per_row = kv_heads * rank * (nope + value)
    expanded = keys * per_row + in_expanded * heads * (nope + rope + value)
    per_pair = heads * (2 * rank + rope)
    if pairs is not None and in_absorbed * (rank + rope) > CHEAPLY_GATHERED:
        per_pair += GATHER_COST * (rank + rope)
    absorbed = (queries * heads // kv_heads + basis_rows) * per_row + in_absorbed * per_pair
    return absorbed < expanded


def per_head(states, weight):
    """states_h · W_h, `[B, H, T, i]` and `[K, i, o]` → `[B, H, T, o]`; H / K heads in a row share a matrix."""
    batch, heads, length, width = states.shape
    if batch == 1:
        return torch.bmm(states.reshape(weight.shape[0], -1, width), weight).view(1, heads, length, -1)
    groups = (batch, weight.shape[0], -1, length)
    rows = states.reshape(*groups, width).transpose(0, 1).reshape(weight.shape[0], -1, width)
    mapped = torch.bmm(rows, weight).view(weight.shape[0], batch, -1, length, weight.shape[-1])
    return mapped.transpose(0, 1).reshape(batch, heads, length, -1)


def copies_slices(maps):
    """Whether a batched product with a slice of `maps` would copy it first: low precision on a CPU."""
    return maps.device.type == "cpu" and maps.dtype in (torch.bfloat16, torch.float16) and maps.is_contiguous()


def into_latent(query, maps, nope):
    """U_hᵀ q_h, `[B, H, T, n]` and maps [U; V] `[K, n + v, c]` → `[B, H, T, c]`."""
    if copies_slices(maps) and query.shape[0] * query.shape[2] == 1:
        # Twice the products, half the bytes.
        return per_head(F.pad(query, (0, maps.shape[1] - nope)), maps)
    return per_head(query, maps[:, :nope])


def out_of_latent(context, maps, nope):
    """V_h c_h, `[B, H, T, c]` and maps [U; V] `[K, n + v, c]` → `[B, H, T, v]`."""
    if copies_slices(maps) and context.shape[0] * context.shape[2] <= 4:
        return per_head(context, maps.transpose(1, 2))[..., nope:]
    return per_head(context, maps[:, nope:].transpose(1, 2))


def shaped_scores(scores, mask=None, position_bias=None, softcap=None):
    """cap(scores) + bias, and the least number where a boolean mask is False, `[B, H, T, S]`; a mask of numbers is
    added."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def shared_key_attention(queries, keys, rank, scaling, sinks=None, upcast=False, **shape):
    """softmax(Σ q kᵀ · scaling) l over keys that all heads share → (`[B, H, T, c]`, weights `[B, H, T, S]`).

    Queries `[B, H, T, d_i]` and keys `[B, S, d_i]` may come in parts side by side; the value l is the first `rank`
    columns of the first key. Heads and queries are rows of one product, so nothing is repeated. `sinks` `[H]` and
    `shape` as in the plain form of attention.
    """
    batch, heads, length, _ = queries[0].shape
    dtype, value = queries[0].dtype, keys[0][..., :rank]
    scores = None
    for query, key in zip(queries, keys, strict=True):
        rows, columns = query.reshape(batch, heads * length, -1), key.transpose(1, 2)
        if upcast:
            rows, columns = rows.float(), columns.float()
        scores = torch.bmm(rows, columns) if scores is None else torch.baddbmm(scores, rows, columns)
    scores = shaped_scores(scores.view(batch, heads, length, -1) * scaling, **shape)
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1).expand(batch, -1, length, 1)
        scores = torch.cat((scores, column.to(scores.dtype)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    weights = weights if sinks is None else weights[..., :-1]
    context = torch.bmm(weights.reshape(batch, heads * length, -1), value)
    return context.view(batch, heads, length, rank), weights


def streams(key):
    """Whether `key` is better read in chunks lifted to float32: where a CPU has no units for its dtype, products in it
    are emulated."""
    if key.device.type != "cpu" or key.dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return not (key.dtype == torch.bfloat16 and has_units())


def streamed_attention(queries, keys, rank, scaling, sinks=None, **shape):
    """`shared_key_attention` in one pass over the keys with a running maximum, in float32 → `[B, H, T, c]`.

    (Milakov & Gimelshein 2018, arXiv 1805.02867.) The chunk that is lifted to float32 serves as key and as value.
    """
    batch, heads, length, _ = queries[0].shape
    dtype, total = queries[0].dtype, keys[0].shape[1]
    rows = torch.cat(queries, dim=-1).float().flatten(1, 2) * scaling
    lifted = rows.new_empty(batch, min(STREAM_KEYS, total), rows.shape[-1])
    highest, mass, context = _start(rows, heads, length, rank, sinks)
    for start in range(0, total, STREAM_KEYS):
        chunk = lifted[:, : min(STREAM_KEYS, total - start)]
        for part, key in zip(chunk.split([key.shape[-1] for key in keys], dim=-1), keys, strict=True):
            part.copy_(key[:, start : start + STREAM_KEYS])
        here = {name: _columns(part, start, chunk.shape[1], total) for name, part in shape.items()}
        scores = torch.bmm(rows, chunk.transpose(1, 2)).view(batch, heads, length, -1)
        scores = shaped_scores(scores, **here).flatten(1, 2)
        peak = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
        weights = scores.sub_(peak).exp_()
        fade = highest.sub_(peak).exp_()
        mass = mass.mul_(fade).add_(weights.sum(dim=-1, keepdim=True))
        context = context.mul_(fade).baddbmm_(weights, chunk[..., :rank])
        highest = peak
    return (context / mass).to(dtype).view(batch, heads, length, rank)


def _start(rows, heads, length, rank, sinks):
    """Running maximum, mass and context `[B, H · T, ...]` before the first key: nothing, or the sinks' own logits."""
    shape = (*rows.shape[:2], 1)
    if sinks is None:
        highest, mass = rows.new_full(shape, torch.finfo(rows.dtype).min), rows.new_zeros(shape)
    else:
        highest = sinks.float().view(1, heads, 1, 1).expand(rows.shape[0], -1, length, -1).reshape(shape).clone()
        mass = rows.new_ones(shape)
    return highest, mass, rows.new_zeros(*rows.shape[:2], rank)


def _columns(part, start, count, total):
    """The columns of a chunk of what is laid over the scores, `[..., S]`; anything else unchanged."""
    per_key = isinstance(part, torch.Tensor) and part.shape[-1] == total
    return part[..., start : start + count] if per_key else part


def fuses(query, keys, mask=None, sinks=None, upcast=False, softcap=None, position_bias=None):
    """Whether one query `[B, H, 1, d]` over these few keys is a case for torch's own kernel on a CPU."""
    plain = sinks is None and softcap is None and position_bias is None and not upcast
    few = query.shape[2] == 1 and keys[0].shape[1] <= FUSED_KEYS
    return plain and few and query.device.type == "cpu"


def fused_attention(queries, keys, rank, scaling, mask=None):
    """`shared_key_attention` of one query per head → `[B, H, 1, c]`: heads are the queries, the whole key its value.

    The kernel wants values as wide as keys; what the rope part adds is cut off.
    """
    query, key = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in (queries, keys))
    key = key.unsqueeze(1)
    context = F.scaled_dot_product_attention(query.transpose(1, 2), key, key, attn_mask=mask, scale=scaling)
    return context[..., :rank].transpose(1, 2)


# What the decode kernel does not compute.
SPECIAL = ("sinks", "softcap", "position_bias")


def read_shared_keys(queries, keys, rank, scaling, upcast=False, want_weights=False, **options):
    """The form of `shared_key_attention` that suits the device → (`[B, H, T, c]`, weights or None), in blocks of
    queries where the scores would be too many."""
    visible, plain = seen_by_one(options.get("mask"))
    plain = plain and not (upcast or want_weights) and not any(options.get(name) is not None for name in SPECIAL)
    if plain and len(keys) == 1 and queries[0].shape[2] == 1 and wants_kernels(keys[0]):
        key = keys[0].unsqueeze(1)
        context = split_decode(queries[0].transpose(1, 2), key, key[..., :rank], scaling, visible=visible)
        return context.transpose(1, 2), None
    if want_weights:
        return shared_key_attention(queries, keys, rank, scaling, upcast=upcast, **options)
    if fuses(queries[0], keys, upcast=upcast, **options):
        return fused_attention(queries, keys, rank, scaling, options.get("mask")), None
    if streams(keys[0]):
        return streamed_attention(queries, keys, rank, scaling, **options), None
    batch, heads, length, _ = queries[0].shape
    most = max(1, MOST_SCORES // (batch * heads * keys[0].shape[1]))
    contexts = []
    for start in range(0, length, most):
        block = slice(start, start + most)
        here = dict(options)
        for name in ("mask", "position_bias"):
            part = options.get(name)
            if part is not None and part.shape[-2] == length:
                here[name] = part[..., block, :]
        parts = [query[:, :, block] for query in queries]
        contexts.append(shared_key_attention(parts, keys, rank, scaling, upcast=upcast, **here)[0])
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=2), None
