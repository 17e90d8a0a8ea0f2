"""Eight-bit storage of cached tokens, an option: half the memory of bfloat16 for a small loss of accuracy."""

import torch

from .cache_growing import GrowingLayer
from .cache_indexed import IndexedLayer
from .cache_sliding import SlidingLayer
from .cache_storage import PairStore, TokenBuffer

LEVELS = 127


def quantize(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """codes, scale = round(x / s), s = max |x| / 127 per token and head: `[..., T, D]` int8, `[..., T, 1]` float32."""
    states = states.detach().float()
    # A token of zeros must not divide by zero.
    scale = states.abs().amax(-1, keepdim=True).div(LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(states / scale).to(torch.int8), scale


def dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x = codes · s, `[..., T, D]` in `dtype`."""
    return (codes * scale).to(dtype)


class QuantizedStore(PairStore):
    """Keys and values as codes and scales; what comes out is always dequantised, the newest tokens too.

    So a sequence gives the same result at once, in chunks and token by token. Raises RuntimeError for states that
    require a gradient: none can flow through the codes.
    """

    def __init__(self):
        self.key_codes, self.key_scale = TokenBuffer(), TokenBuffer()
        self.value_codes, self.value_scale = TokenBuffer(), TokenBuffer()
        self.dtypes = None

    @property
    def buffers(self) -> tuple[TokenBuffer, ...]:
        return self.key_codes, self.key_scale, self.value_codes, self.value_scale

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, keep: int | None = None, max_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As PairStore; raises RuntimeError for states that require a gradient."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise RuntimeError("A quantised cache passes no gradient: run under torch.no_grad() or do not quantise.")
        self.dtypes = keys.dtype, values.dtype
        for buffer, new in zip(self.buffers, self._encode(keys, values), strict=True):
            buffer.append(new, keep=keep, max_tokens=max_tokens)
        return self.tail()

    def _encode(self, keys, values):
        return *quantize(keys), *quantize(values)

    def _decode(self, codes, scale, value_codes, value_scale):
        return dequantize(codes, scale, self.dtypes[0]), dequantize(value_codes, value_scale, self.dtypes[1])

    def round_trip(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.dtypes = keys.dtype, values.dtype
        return self._decode(*self._encode(keys, values))

    def tail(self, count: int | None = None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        held = [buffer.tail(count) for buffer in self.buffers]
        return (None, None) if held[0] is None else self._decode(*held)

    def assign(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """As PairStore; raises ValueError for keys or values alone."""
        held_keys, held_values = self.tail((values if keys is None else keys).shape[-2])
        keys, values = held_keys if keys is None else keys, held_values if values is None else values
        if keys is None or values is None:
            raise ValueError("A quantised cache holds keys and values together: fill it with `update(keys, values)`.")
        self.clear()
        self.append(keys.to(values.device), values)


class QuantizedLatentStore(QuantizedStore):
    """Latent in eight bits, rope key as it is: it is short and suffers more from rounding (FlashMLA's layout)."""

    def __init__(self):
        self.key_codes, self.key_scale, self.value_buffer = TokenBuffer(), TokenBuffer(), TokenBuffer()
        self.dtypes = None

    @property
    def buffers(self) -> tuple[TokenBuffer, ...]:
        return self.key_codes, self.key_scale, self.value_buffer

    def _encode(self, keys, values):
        return *quantize(keys), values

    def _decode(self, codes, scale, values):
        return dequantize(codes, scale, self.dtypes[0]), values


class QuantizedGrowingLayer(GrowingLayer):
    """Full attention, keys and values in eight bits."""

    store_class = QuantizedStore


class QuantizedSlidingLayer(SlidingLayer):
    """A sliding window, keys and values in eight bits."""

    store_class = QuantizedStore


class QuantizedLatentLayer(GrowingLayer):
    """Latent attention, the latent in eight bits: c + 2r + 4 bytes per token in bfloat16.

    `codes` and `scale` let a step score and mix without dequantising: q · latent = s · (q · codes).
    """

    store_class = QuantizedLatentStore

    @property
    def codes(self) -> torch.Tensor | None:
        """`[B, 1, T, c]` int8; None before the first token."""
        return self.store.key_codes.tail()

    @property
    def scale(self) -> torch.Tensor | None:
        """`[B, 1, T, 1]` float32; None before the first token."""
        return self.store.key_scale.tail()


class QuantizedIndexedLayer(QuantizedGrowingLayer, IndexedLayer):
    """Sparse attention, keys and values in eight bits; the indexer's keys as they are."""


class QuantizedIndexedLatentLayer(QuantizedLatentLayer, IndexedLayer):
    """Sparse latent attention, the latent in eight bits; the indexer's keys as they are."""
