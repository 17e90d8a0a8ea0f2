"""Layouts of the keys and values of one layer over token buffers.

A store has `append(keys, values, keep, bound)` -> views of what is cached then; `tail(count)`; `crop`, `trim`, `clear`,
`assign`, `map_batch`, `offload`, `prefetch`; `len(store)` tokens. A layer says how long it remembers, its store how.
"""

import torch

from .cache_storage import TokenBuffer


class PairStore:
    """Keys `[B, H, T, Dk]` and values `[B, H, T, Dv]`, a buffer each."""

    def __init__(self):
        self.key_buffer, self.value_buffer = TokenBuffer(), TokenBuffer()

    @property
    def buffers(self):
        return self.key_buffer, self.value_buffer

    def __len__(self):
        return len(self.buffers[0])

    def append(self, keys, values, keep=None, bound=None):
        """Add `[B, H, t, D]` states behind the last `keep` tokens (all of them: None); returns all keys and values."""
        return self.key_buffer.append(keys, keep=keep, bound=bound), self.value_buffer.append(
            values, keep=keep, bound=bound
        )

    def as_read(self, keys, values):
        """Keys and values as they come back from the store, without storing them."""
        return keys, values

    def tail(self, count=None):
        """The last `count` keys and values, or (None, None) before the first."""
        return self.key_buffer.tail(count), self.value_buffer.tail(count)

    def assign(self, keys, values):
        """Hold what was assigned to `layer.keys` or `layer.values` from outside; the one not assigned is None."""
        for buffer, states in ((self.key_buffer, keys), (self.value_buffer, values)):
            if states is not None:
                buffer.adopt(states)

    def crop(self, count):
        for buffer in self.buffers:
            buffer.crop(count)

    def trim(self, keep, bound):
        for buffer in self.buffers:
            buffer.trim(keep, bound)

    def clear(self):
        for buffer in self.buffers:
            buffer.clear()

    def map_batch(self, function):
        for buffer in self.buffers:
            buffer.map_batch(function)

    def offload(self):
        for buffer in self.buffers:
            buffer.offload()

    def prefetch(self, device, bound=None):
        for buffer in self.buffers:
            buffer.prefetch(device, bound)


class PackedStore(PairStore):
    """Latent `[B, 1, T, c]` and rope key `[B, 1, T, r]` side by side in one buffer `[B, 1, T, c + r]`.

    Absorbed decoding reads the whole as its one key and the first c columns as its one value (DeepSeek-V2,
    arXiv 2405.04434, 2.1.2), so both come out of one pass over memory.
    """

    def __init__(self):
        self.buffer, self.split = TokenBuffer(), None

    @property
    def buffers(self):
        return (self.buffer,)

    def append(self, keys, values, keep=None, bound=None):
        """As PairStore; raises ValueError where latent and rope key cannot share a tensor."""
        if keys.dtype != values.dtype or keys.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"Latent {tuple(keys.shape)} {keys.dtype} and rope key {tuple(values.shape)} {values.dtype} share one "
                "cache buffer: they must agree in dtype and in every dimension but the last."
            )
        self.split = keys.shape[-1]
        return self._parts(self.buffer.append(keys, values, keep=keep, bound=bound))

    def tail(self, count=None):
        whole = self.buffer.tail(count)
        return (None, None) if whole is None else self._parts(whole)

    def assign(self, keys, values):
        held_keys, held_values = self.tail((values if keys is None else keys).shape[-2])
        keys, values = held_keys if keys is None else keys, held_values if values is None else values
        if keys is None or values is None:
            raise ValueError("Latent and rope key share one cache buffer: fill it with `update(latent, rope_key)`.")
        whole = torch.cat((keys.to(values.device), values), dim=-1)
        self.split = keys.shape[-1]
        self.buffer.adopt(whole)

    def _parts(self, whole):
        return whole.narrow(-1, 0, self.split), whole.narrow(-1, self.split, whole.shape[-1] - self.split)
