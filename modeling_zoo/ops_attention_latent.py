"""Latent attention over ready queries and cached latents: `latent_attention`, which the mixer calls.

Its two forms come first, side by side; then which of them costs less; then how each runs where the plain way would
take too long or too much memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache

from .ops_attention import attention
from .ops_attention_bands import AttentionMask
from .ops_attention_multi_query import MultiQueryLayer, multi_query_attention
from .ops_effective_weight import basis_weight, direct_weight, is_linear_map
from .ops_head_maps import absorb_query, up_project_output
from .ops_linear import linear

# Numbers of expanded keys and values held at once, where nothing has to keep them; on a device few calls count more.
MOST_EXPANDED, MOST_EXPANDED_ON_DEVICE = 2**26, 2**29
# Multiplications that take as long as copying one number of a gathered latent; numbers up to which that is not counted.
GATHER_COST, CHEAPLY_GATHERED = 64, 2**24

# -- the two forms -----------------------------------------------------------------------------------------------------


def expanded(
    query: tuple[torch.Tensor, torch.Tensor],
    up_projected: torch.Tensor,
    rope_key: torch.Tensor | None,
    attend: Callable,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax([q, q_r] [U l, r]ᵀ) V l: every head has keys and values of its own → `[B, T, H, v]`, weights or None.

    Queries `[B, H, T, n]` and `[B, H, T, r]`, U l and V l of each key-value head `[B, K, S, n + v]`, rope key
    `[B, 1, S, r]` or None; `attend(query, key, value)` is attention.
    """
    key, value = keys_and_values(up_projected, rope_key, query[0].shape[-1])
    return attend(torch.cat(query, dim=-1), key, value)


def absorbed(
    query: tuple[torch.Tensor, torch.Tensor],
    maps: torch.Tensor,
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attend: Callable,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """V softmax([Uᵀ q, q_r] [l, r]ᵀ) l: all heads read one key and one value → `[B, T, H, v]`, weights or None.

    Queries as above, U and V of each key-value head `[K, n + v, c]`, latent `[B, 1, S, c]`, rope key `[B, 1, S, r]`;
    `attend(query, latent, rope_key)` is attention with the latent as the value, `[B, H, T, c]`.
    """
    nope, rope = query
    context, weights = attend((absorb_query(nope, maps), rope), latent, rope_key)
    return up_project_output(context, maps, maps.shape[1] - nope.shape[-1]).transpose(1, 2), weights


def keys_and_values(
    up_projected: torch.Tensor, rope_key: torch.Tensor | None, key_width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """U l and V l `[B, K, S, n + v]`, r `[B, 1, S, r]` → keys [U l, r] `[B, K, S, n + r]`, values `[B, K, S, v]`."""
    key, value = up_projected.tensor_split((key_width,), dim=-1)
    if rope_key is not None:
        key = torch.cat((key, rope_key.expand(-1, key.shape[1], -1, -1)), dim=-1)
    return key, value


# -- which form --------------------------------------------------------------------------------------------------------


def latent_attention(
    module: nn.Module,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attention_mask: AttentionMask,
    past_key_values: Cache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries `[B, H, T, n]` and `[B, H, T, r]`, latents `[B, 1, S, c]`, rope keys `[B, 1, S, r]` → (`[B, T, H, v]`,
    weights `[B, H, T, S]` or None), by the form that multiplies less.

    `kv_b_proj` of `module` holds U and V; mask and `kwargs` as for `ops_attention.attention`.
    """
    maps = absorbable_maps(module, query[0], latent, attention_mask, past_key_values)
    if maps is None:
        attend = partial(attend_heads, module, attention_mask=attention_mask, **kwargs)
        return attend_expanded(module, query, latent, rope_key, attend, kwargs.get("position_bias"))
    attend = partial(attend_latents, module, attention_mask, past_key_values, **kwargs)
    return absorbed(query, maps, latent, rope_key, attend)


def absorbable_maps(
    module: nn.Module,
    query: torch.Tensor,
    latent: torch.Tensor,
    attention_mask: AttentionMask,
    past_key_values: Cache | None,
) -> torch.Tensor | None:
    """U and V `[K, n + v, c]` where absorbing them is possible and cheaper, else None."""
    queries, keys = query.shape[2], latent.shape[2]
    if past_key_values is None or keys <= queries or (module.training and module.attention_dropout):
        return None
    masked = isinstance(attention_mask, torch.Tensor)
    # Without a mask, several queries rely on the backend's own idea of what is causal.
    readable = (masked and attention_mask.dim() == 4) or (queries == 1 and (masked or attention_mask is None))
    return maps_if_cheaper(module, query, latent) if readable else None


def maps_if_cheaper(
    module: nn.Module, query: torch.Tensor, latent: torch.Tensor, pairs: tuple[int, int] | None = None
) -> torch.Tensor | None:
    """U and V `[K, n + v, c]`; None where kv_b is no plain matrix or absorbing it costs more than it saves."""
    weight = direct_weight(module.kv_b_proj)
    if weight is None and not is_linear_map(module.kv_b_proj):
        return None
    batch, heads, queries, _ = query.shape
    basis_rows = module.rank / batch if weight is None else 0
    kv_heads = heads // module.num_key_value_groups
    sizes = (heads, kv_heads, module.rank, module.nope, module.rope, module.value_width)
    if not absorbed_is_cheaper(queries, latent.shape[2], *sizes, basis_rows, pairs):
        return None
    weight = basis_weight(module.kv_b_proj, module.rank, latent) if weight is None else weight
    return weight.unflatten(0, (-1, module.nope + module.value_width))


def absorbed_is_cheaper(
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    rank: int,
    nope: int,
    rope: int,
    value: int,
    basis_rows: float = 0,
    pairs: tuple[int, int] | None = None,
) -> bool:
    """Whether the absorbed form of `queries` over `keys` multiplies less than the expanded one.

    `basis_rows` counts the rows that go through kv_b before its matrix is known. `pairs` are the pairs of query and key
    that each form, expanded and absorbed, computes (None: all of them in both); with them each query gathers latents
    of its own, a copy that all heads share.
    """
    in_expanded, in_absorbed = pairs or (queries * keys, queries * keys)
    per_row = kv_heads * rank * (nope + value)
    cost_expanded = keys * per_row + in_expanded * heads * (nope + rope + value)
    per_pair = heads * (2 * rank + rope)
    if pairs is not None and in_absorbed * (rank + rope) > CHEAPLY_GATHERED:
        per_pair += GATHER_COST * (rank + rope)
    cost_absorbed = (queries * heads // kv_heads + basis_rows) * per_row + in_absorbed * per_pair
    return cost_absorbed < cost_expanded


# -- expanded: a few heads at a time, widths made equal ----------------------------------------------------------------


def attend_expanded(
    module: nn.Module,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    attend: Callable,
    position_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`expanded` by `attend(query, key, value)`, of so many heads at once as memory bounds."""
    per_head_width = module.nope + module.value_width
    weight = chunkable_weight(module, latent) if position_bias is None else None
    rope_key = rope_key if module.rope else None
    if weight is None:
        return expanded(query, split_heads(module.kv_b_proj(latent), per_head_width), rope_key, attend)
    batch, _, keys, _ = latent.shape
    step = max(1, most_expanded(latent) // (batch * keys * (per_head_width + module.rope)))
    output = latent.new_empty(query[0].shape[0], query[0].shape[2], query[0].shape[1], module.value_width)
    step_rows, step_heads = step * per_head_width, step * module.num_key_value_groups
    some_heads = (part.split(step_heads, dim=1) for part in query)
    for rows, *part, target in zip(weight.split(step_rows), *some_heads, output.split(step_heads, dim=2), strict=True):
        target.copy_(expanded(part, split_heads(linear(latent, rows), per_head_width), rope_key, attend)[0])
    return output, None


def split_heads(up_projected: torch.Tensor, width: int) -> torch.Tensor:
    """`[B, 1, S, K · width]` → `[B, K, S, width]`."""
    return up_projected.squeeze(1).unflatten(-1, (-1, width)).transpose(1, 2)


def chunkable_weight(module: nn.Module, latent: torch.Tensor) -> torch.Tensor | None:
    """kv_b's matrix where its heads can be expanded a few at a time and are too many for once, else None.

    Gradients keep every head's keys and values in any case; the plain backend shows the weights of all heads.
    """
    if torch.is_grad_enabled() or module.config._attn_implementation != "sdpa" or torch.compiler.is_compiling():
        return None
    per_head_width = module.nope + module.value_width
    weight = direct_weight(module.kv_b_proj)
    if weight is None or weight.dtype != latent.dtype:
        return None
    size = latent.shape[0] * latent.shape[2] * (per_head_width + module.rope)
    return weight if size * weight.shape[0] // per_head_width > most_expanded(latent) else None


def most_expanded(latent: torch.Tensor) -> int:
    """Numbers of keys and values of `latent` that are held at once."""
    return MOST_EXPANDED if latent.device.type == "cpu" else MOST_EXPANDED_ON_DEVICE


def attend_heads(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attention`, with the narrower of keys and values filled up with zeros where the fused kernel needs one width.

    On a CPU, unequal widths send `scaled_dot_product_attention` to a form that holds all scores at once.
    """
    width = value.shape[-1]
    missing = query.shape[-1] - width
    on_cpu = query.device.type == "cpu" and module.config._attn_implementation == "sdpa"
    if missing and query.shape[2] > 1 and on_cpu:
        if missing > 0:
            value = F.pad(value, (0, missing))
        else:
            query, key = F.pad(query, (0, -missing)), F.pad(key, (0, -missing))
    attn_output, weights = attention(module, query, key, value, attention_mask, **kwargs)
    return attn_output[..., :width], weights


# -- absorbed: by the forms of this package, or by a registered backend ------------------------------------------------


def attend_latents(
    module: nn.Module,
    attention_mask: AttentionMask,
    past_key_values: Cache | None,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    rope_key: torch.Tensor,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries `[B, H, T, c]` and `[B, H, T, r]` over all latents → (`[B, H, T, c]`, weights or None).

    transformers' sdpa repeats a shared key for every head, and no flash kernel takes one this wide.
    """
    backend = module.config._attn_implementation
    if backend not in ("eager", "sdpa") and "flash" not in backend:
        kwargs |= {} if position_bias is None else {"position_bias": position_bias}
        keys = cached_latents(latent, rope_key, past_key_values, module.layer_idx)
        return attend_backend(module, query, latent, keys, attention_mask, **kwargs)
    if module.sliding_window is not None and "flash" in backend:
        # Flash backends are given a window in place of a mask, and padding `[B, S]`.
        latent, rope_key = (part[:, :, -module.sliding_window :] for part in (latent, rope_key))
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask[:, None, None, -latent.shape[2] :].bool()
    keys = cached_latents(latent, rope_key, past_key_values, module.layer_idx)
    shape = {"mask": attention_mask, "position_bias": position_bias}
    return read_latents(module, query, keys, want_weights=backend == "eager", **shape)


def read_latents(
    module: nn.Module, query: tuple[torch.Tensor, torch.Tensor], keys: tuple[torch.Tensor, ...], **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`multi_query_attention` with the scale, cap and sinks of `module` over `cached_latents`."""
    query = (torch.cat(query, dim=-1),) if len(keys) == 1 else query
    return multi_query_attention(
        query,
        keys,
        module.rank,
        module.scaling,
        softcap=module.softcap,
        sinks=module.sink_logits,
        upcast=module.upcast,
        **options,
    )


def cached_latents(
    latent: torch.Tensor, rope_key: torch.Tensor, past_key_values: Cache | None, layer_idx: int
) -> tuple[torch.Tensor, ...]:
    """What all heads read: `[B, S, c + r]` where the cache holds both side by side or there is no rope key, else
    `[B, S, c]` and `[B, S, r]`."""
    layers = getattr(past_key_values, "layers", ())
    whole = getattr(layers[layer_idx], "latent_and_rope", None) if layer_idx < len(layers) else None
    if whole is not None and whole.shape[2] == latent.shape[2]:
        return (whole[:, 0],)
    return tuple(part[:, 0] for part in (latent, rope_key) if part.shape[-1])


def attend_backend(
    module: nn.Module,
    query: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
    keys: tuple[torch.Tensor, ...],
    attention_mask: AttentionMask,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same by a registered backend: one key-value head, keys c + r wide, values c wide."""
    layer = MultiQueryLayer(module, query[0].shape[1])
    key = (keys[0] if len(keys) == 1 else torch.cat(keys, dim=-1)).unsqueeze(1)
    context, weights = attention(layer, torch.cat(query, dim=-1), key, latent, attention_mask, **kwargs)
    return context.transpose(1, 2), weights
