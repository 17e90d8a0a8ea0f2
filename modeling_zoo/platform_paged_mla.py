"""Latent attention of decoded tokens by FlashMLA or FlashInfer, if installed: `attn_implementation="paged_mla"`.

Both read a cache in pages of 64 tokens. The static latent cache is that already: `[B, N, c + r]` seen as
`[B · N / 64, 64, 1, c + r]`, the pages of a row one after the other, of which the first `length` tokens count; nothing
is copied. Prompts, other caches and several queries are computed as under `sdpa`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .ops_attention_multi_query import MultiQueryLayer, multi_query_attention
from .ops_dispatch import HALF_DTYPES, is_traced
from .ops_triton import register_operation

NAME, PAGE, WIDTHS = "paged_mla", 64, (512, 64)
WORKSPACE = 128 * 2**20
SCHEMA = "(Tensor query, Tensor key, Tensor lengths, int rank, float scaling) -> Tensor"


def pages(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B, N, d]` → the same memory as `[B · N / 64, 64, 1, d]`, and each row's pages `[B, N / 64]`."""
    batch, count, width = key.shape
    numbers = torch.arange(batch * count // PAGE, dtype=torch.int32, device=key.device)
    return key.view(-1, PAGE, 1, width), numbers.view(batch, -1)


def by_flash_mla(
    query: torch.Tensor, key: torch.Tensor, lengths: torch.Tensor, rank: int, scaling: float
) -> torch.Tensor:
    """`[B, 1, H, d]` over the first `lengths` `[B]` of `[B, N, d]` → `[B, 1, H, c]`; nothing waits for the device."""
    library = import_module("flash_mla")
    blocks, table = pages(key)
    plan, splits = library.get_mla_metadata(lengths, query.shape[2], 1)
    arguments = (query, blocks, table, lengths, rank, plan, splits)
    return library.flash_mla_with_kvcache(*arguments, softmax_scale=scaling, causal=False)[0]


def by_flash_infer(
    query: torch.Tensor, key: torch.Tensor, lengths: torch.Tensor, rank: int, scaling: float
) -> torch.Tensor:
    """The same; its plan is made on the host, which waits for the lengths."""
    blocks, table = pages(key)
    batch, heads, used = query.shape[0], query.shape[2], -(-lengths // PAGE)
    workspace = torch.empty(WORKSPACE, dtype=torch.int8, device=key.device)
    wrapper = import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper(workspace)
    rows = torch.arange(batch + 1, dtype=torch.int32, device=key.device)
    ends = torch.nn.functional.pad(used.cumsum(0, dtype=torch.int32), (1, 0))
    chosen = table[torch.arange(table.shape[1], device=key.device) < used[:, None]]
    sizes = (heads, rank, key.shape[-1] - rank, PAGE)
    wrapper.plan(rows, ends, chosen, lengths, *sizes, False, scaling, query.dtype, key.dtype)
    parts = (*query[:, 0].split(sizes[1:3], dim=-1), *blocks[:, :, 0].split(sizes[1:3], dim=-1))
    return wrapper.run(*parts).unsqueeze(1)


# Module -> what calls it, the first that is installed.
LIBRARIES = {"flash_mla": by_flash_mla, "flashinfer": by_flash_infer}


def launch(query: torch.Tensor, key: torch.Tensor, lengths: torch.Tensor, rank: int, scaling: float) -> torch.Tensor:
    """By the library that is installed."""
    return next(run for name, run in LIBRARIES.items() if find_spec(name))(query, key, lengths, rank, scaling)


def empty_context(
    query: torch.Tensor, key: torch.Tensor, lengths: torch.Tensor, rank: int, scaling: float
) -> torch.Tensor:
    """What `launch` returns, without the numbers."""
    return query.new_empty(*query.shape[:-1], rank)


OPERATION = register_operation(__name__, NAME, SCHEMA, launch, empty_context)


def paged_mla_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """A backend as transformers calls it, → `[B, T, H, v]`. Raises ValueError for latents of other widths and for keys
    that are hidden between others, as padding on the left is."""
    refuse_layer(module, query.dtype)
    if not isinstance(module, MultiQueryLayer):
        refuse_holes(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rank, states = value.shape[-1], key[:, 0]
    if query.shape[2] > 1 or attention_mask is None or states.shape[1] % PAGE or not states.is_contiguous():
        refuse_holes(attention_mask)
        context, _ = multi_query_attention((query,), (states,), rank, scaling, mask=attention_mask)
        return context.transpose(1, 2), None
    lengths = attention_mask[:, 0, -1].sum(-1, dtype=torch.int32).expand(query.shape[0])
    run = launch if OPERATION is None else OPERATION.call
    return run(query.transpose(1, 2), states, lengths, rank, scaling), None


def refuse_layer(module: nn.Module, dtype: torch.dtype) -> None:
    """Raises ValueError for what the libraries have no kernel for."""
    widths = getattr(module, "rank", None), getattr(module, "rope", None)
    if widths != WIDTHS or dtype not in HALF_DTYPES or module.sliding_window is not None:
        raise ValueError(
            f"attn_implementation='{NAME}' reads latents of 512 and 64 numbers of 16 bits without a window; layer "
            f"{module.layer_idx} has {widths[0]} and {widths[1]} of {dtype}, window {module.sliding_window}: use sdpa."
        )


def refuse_holes(attention_mask: torch.Tensor | None) -> None:
    """Raises ValueError where the last query of a mask `[B, 1, T, N]` sees anything but the first keys: one look at the
    mask of a prompt, for all layers."""
    if attention_mask is None or is_traced() or getattr(attention_mask, "without_holes", False):
        return
    seen = attention_mask[:, 0, -1]
    if not bool((seen == (torch.arange(seen.shape[-1], device=seen.device) < seen.sum(-1, keepdim=True))).all()):
        raise ValueError(f"attn_implementation='{NAME}' cannot leave out padding on the left: pad on the right.")
    attention_mask.without_holes = True


def register_paged_mla() -> None:
    """Makes the name known to transformers, where a library is installed; without one it is refused as unknown."""
    if any(find_spec(name) for name in LIBRARIES):
        AttentionInterface.register(NAME, paged_mla_forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
