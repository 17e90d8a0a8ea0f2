"""Softmax attention over ready queries, keys and values: `attention`, which every mixer calls, and its masks.

The plain form comes first, then what chooses a form, then the faster ones, each with the numbers of the plain one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_zoo import ZooConfig

from .ops_attention_bands import AttentionMask, BandMask, band_mask, banded_attention
from .ops_attention_masks import ADDITIVE, ring_mask
from .ops_attention_triton import decode_mask, split_decode, use_triton
from .ops_dispatch import HALF_DTYPES, is_recent_cuda, is_traced

# Queries of a banded mask that are computed together. More of them share a read of their keys, fewer compute less that
# is hidden.
CPU_BLOCK, DEVICE_BLOCK = 128, 1024
# Key heads of all sequences from which torch's flash kernel does not split the keys of one token.
MANY_HEADS = 256
# Layers whose masks can be rules.
BANDED_LAYERS = ("sliding_attention", "chunked_attention", "full_attention", "indexed_attention")

# -- the plain form ----------------------------------------------------------------------------------------------------


def repeat_kv(states: torch.Tensor, groups: int) -> torch.Tensor:
    """`[B, K, T, d]` → `[B, K · groups, T, d]`, each head `groups` times in a row."""
    if groups == 1:
        return states
    batch, heads, length, dim = states.shape
    return states[:, :, None].expand(batch, heads, groups, length, dim).reshape(batch, heads * groups, length, dim)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    upcast: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
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
    # In a narrower dtype the least number, which hides a key, would become an infinity.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=wide).to(dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


# -- which form --------------------------------------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → (`[B, T, H, v]`, weights `[B, H, T, S]` or None).

    By the backend that the config of `module` names, or by a faster form of the same. `attention_mask` is a tensor of
    booleans or of numbers to add, as the backend takes it, a `BandMask`, or None: causal. `kwargs` reach the backend.
    """
    if isinstance(attention_mask, BandMask):
        attend = partial(attention, module, **kwargs)
        return banded_attention(attend, query, key, value, attention_mask, query_block(query.device)), None
    backend, options = module.config._attn_implementation, backend_kwargs(module, **kwargs)
    fast = fast_form(backend, query, key, value, attention_mask, **options)
    if fast is not None:
        return fast(query, key, value, attention_mask, module.scaling), None
    if backend == "flex_attention" and options.get("position_bias") is not None:
        # Its kernel reads the bias at every index of batch and query.
        options["position_bias"] = options["position_bias"].expand(query.shape[0], -1, query.shape[2], -1)
    computed_by = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
    window = module.sliding_window
    return computed_by(
        module, query, key, value, attention_mask, scaling=module.scaling, sliding_window=window, **options
    )


def backend_kwargs(module: nn.Module, **kwargs: Any) -> dict:
    """What a backend is told beyond mask, scale and window, by the names that transformers' backends have for it."""
    kwargs["dropout"] = module.attention_dropout if module.training else 0.0
    if module.softcap is not None:
        kwargs["softcap"] = module.softcap
    if module.has_sinks:
        kwargs["s_aux"] = module.sinks
    if module.upcast:
        kwargs["upcast"] = True
    return kwargs


def fast_form(
    backend: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    cache: object | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> Callable | None:
    """The function below that computes what `backend` would, and faster; None where there is none.

    On a CPU transformers reads the keys once per query head where there is one query; beside a mask, or in a compiled
    graph, it repeats them for every query head on any device.
    """
    plain = position_bias is None and cache is None and softcap is None and s_aux is None and not dropout
    if backend != "sdpa" or not plain:
        return None
    on_cpu, grouped = query.device.type == "cpu", key.shape[1] < query.shape[1]
    if query.shape[2] == 1:
        return decode_form(query, key, value, attention_mask)
    if not (on_cpu and grouped and isinstance(attention_mask, torch.Tensor)) or torch.is_grad_enabled():
        return None
    fits = attention_mask.dtype == torch.bool and attention_mask.shape[-1] == key.shape[2]
    return gqa_prefill if fits else None


def decode_form(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: AttentionMask
) -> Callable | None:
    """The function below for one query per head; None where the backend's own is as good."""
    grouped = key.shape[1] < query.shape[1]
    suits_kernels = use_triton(query) and decode_mask(attention_mask)[1]
    if attention_mask is None and suits_flash(query, key, value):
        # As fast where it splits the keys, and called in less time, which a graph does not spend.
        many = suits_kernels and (is_traced() or key.shape[0] * key.shape[1] >= MANY_HEADS)
        return triton_decode if many else flash_decode
    if suits_kernels:
        return triton_decode
    return gqa_decode if grouped and (query.device.type == "cpu" or attention_mask is not None or is_traced()) else None


def suits_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's flash kernel takes these heads."""
    width = query.shape[-1]
    fits = query.dtype == key.dtype in HALF_DTYPES and width == value.shape[-1] and width <= 256 and width % 8 == 0
    return fits and is_recent_cuda(query.device)


def query_block(device: torch.device) -> int:
    """Queries that are computed together on `device` under a banded mask."""
    return CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK


# -- faster forms ------------------------------------------------------------------------------------------------------


def gqa_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of one query per head, `[B, H, 1, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, 1, H, v]`.

    The H / K queries that share a key are the rows of one product with it, so that it is read once.
    """
    batch, heads, _, width = query.shape
    rows = query.reshape(batch, key.shape[1], -1, width)
    if attention_mask is not None and attention_mask.shape[1] != 1:
        attention_mask = attention_mask.reshape(batch, key.shape[1], -1, attention_mask.shape[-1])
    output = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])


def gqa_prefill(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention of many queries, `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, T, H, v]`, K < H: keys are not
    repeated for the heads that share them."""
    output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2)


def flash_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, scaling: float
) -> torch.Tensor:
    """`gqa_decode` without a mask by torch's flash kernel, which splits the keys over the device.

    `scaled_dot_product_attention` would choose cuDNN there, which makes a new plan for every number of keys.
    """
    output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)[0]
    return output.transpose(1, 2)


def triton_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """`gqa_decode` by the kernels for a decoded token; the mask is one for all heads, of booleans, or None."""
    batch, heads, _, width = query.shape
    rows, (visible, _) = query.reshape(batch, key.shape[1], -1, width), decode_mask(attention_mask)
    output = split_decode(rows, key, value, value.shape[-1], scaling, visible=visible)
    return output.reshape(batch, 1, heads, -1)


# -- which form a mask takes -------------------------------------------------------------------------------------------


def compact_mask(
    build: Callable,
    config: ZooConfig,
    layer_type: str,
    window: int | None,
    layer_idx: int,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
) -> AttentionMask:
    """The mask that `build()` makes, or less where less says the same: None for one query that sees every key, a
    `BandMask` for many queries.

    For the layers of `layer_type` that see `window` tokens (None: all), of which `layer_idx` is the first; `config` is
    that layer's. `inputs_embeds` is `[B, T, D]`; a padding mask `[B, S]` can be part of a rule, a ready mask cannot.
    """
    flat = attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2)
    # Asked before the sizes: in a traced graph a comparison of them would become a condition of the graph.
    if layer_type in BANDED_LAYERS and config._attn_implementation == "sdpa" and flat and not is_traced():
        if inputs_embeds.shape[1] == 1:
            if needs_no_mask(layer_type, window, layer_idx, attention_mask, past_key_values):
                return None
        elif inputs_embeds.shape[1] > query_block(inputs_embeds.device) and supports_banded_masks(config):
            call = (inputs_embeds, attention_mask, past_key_values, position_ids)
            band = band_mask(layer_type, window, layer_idx, *call)
            if band is not None:
                return band
    return build()


def supports_banded_masks(config: ZooConfig) -> bool:
    """Whether scores are causal and have no bias of their own, which would be as large as the mask that is saved."""
    biased = config.position_embedding_type in ("alibi", "relative", "transformer_xl")
    ordered = config.attentions & {"forgetting", "stick_breaking", "path"}
    return getattr(config, "is_causal", True) and not biased and not ordered


def needs_no_mask(
    layer_type: str,
    window: int | None,
    layer_idx: int,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
) -> bool:
    """Whether one query sees every key that its cache gives it.

    A cache of fixed size gives keys that are not there yet, and its masks are part of a compiled step.
    """
    # Of the keys in its window, a query in chunks sees those of its own chunk only.
    if past_key_values is None or layer_type == "chunked_attention":
        return False
    if getattr(past_key_values, "is_compileable", False):
        return False
    first_query = past_key_values.get_query_offset(layer_idx)
    keys, first_key = past_key_values.get_mask_sizes(1, layer_idx)
    if isinstance(first_query, torch.Tensor) or first_key + keys != first_query + 1:
        return False
    if window is not None and keys > window:
        return False
    if attention_mask is None:
        return True
    # Elsewhere looking at a mask would wait for the device.
    if attention_mask.device.type != "cpu":
        return False
    attended = attention_mask[:, first_key:]
    return attended.shape[-1] == keys and bool(attended.all())


def trim_padding_mask(
    attention_mask: AttentionMask, length: int, past_key_values: Cache | None, always: bool
) -> AttentionMask:
    """A padding mask without columns behind the last of `length` new tokens, `[B, S + T]`; any other mask as it is.

    `always`: even where that waits for a device.
    """
    if is_traced() or not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return attention_mask
    if attention_mask.shape[-1] <= length:
        return attention_mask
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    if isinstance(seen, torch.Tensor) and (seen.is_meta or (length == 1 and not always)):
        # Looking at a count on the device would wait for it at every token, and no layer reads such columns there.
        return attention_mask
    return attention_mask[:, : int(seen) + length]


# -- which builder makes a mask ---------------------------------------------------------------------------------------


class AdditiveMaskConfig:
    """A config as transformers' mask builders see it, who read from it which masks to make."""

    _attn_implementation = ADDITIVE

    def __init__(self, config: ZooConfig):
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def mask_config(config: ZooConfig) -> ZooConfig | AdditiveMaskConfig:
    """The config to call transformers' mask builders with, for the backend that `config` names."""
    return AdditiveMaskConfig(config) if config._attn_implementation == "eager" else config


# Layers whose cache can be a ring.
RING_MASKS = {"sliding_attention": ring_mask, "chunked_attention": ring_mask}


def backend_mask(
    build: Callable,
    config: ZooConfig,
    layer_type: str,
    window: int | None,
    layer_idx: int,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    **options: Any,
) -> torch.Tensor | BlockMask | None:
    """The mask of the layers of `layer_type` that see `window` tokens, of which `layer_idx` is the first, for the
    backend that `config` names: by transformers' builder `build`, or by slots where their cache is a ring.

    `inputs_embeds` `[B, T, D]`; `attention_mask` is padding `[B, S]` or a ready mask, which stays as it is.
    """
    call = (inputs_embeds, attention_mask, past_key_values)
    config = mask_config(config)
    build = partial(build, config, *call, layer_idx=layer_idx, **options)
    by_slots = RING_MASKS.get(layer_type)
    if by_slots is None:
        return build()
    return by_slots(build, config, window if layer_type == "chunked_attention" else None, layer_idx, *call)
