"""Storage of cached tokens: tensors that grow along the token axis without being copied for every token.

    storage   [ forgotten | cached tokens | spare room ]      `TokenBuffer`, one tensor
              0         start            end       limit

A `PairStore` holds keys and values in a buffer each, a `PackedStore` latents and rope keys side by side in one.
"""

import math
from collections.abc import Callable

import torch

# Spare room of a new storage, in tokens: as many as it holds, within these limits. Doubling makes the copies O(1) per
# token; the upper limit keeps a long cache from reserving twice its size, at one copy of the cache per 4096 tokens.
MIN_SPARE, MAX_SPARE = 64, 4096
# On a device at least this share of what it holds: its allocator keeps every storage that was outgrown, each too small
# for the next, and with steps of one size their sum grows with the square of the length.
DEVICE_SPARE = 0.5
# Up to this many bytes a concatenation takes no longer than the views that an in-place write needs.
CONCATENATED_BYTES = 128 * 1024


def storage_size(needed: int, max_tokens: int | None = None, on_device: bool = False) -> int:
    """Room of a new storage for `needed` tokens: twice as many, within the limits above and, if they fit,
    `max_tokens`."""
    spare = min(max(needed, MIN_SPARE), MAX_SPARE)
    capacity = needed + (max(spare, int(needed * DEVICE_SPARE)) if on_device else spare)
    return capacity if max_tokens is None or needed > max_tokens else min(capacity, max_tokens)


def is_on_device(tensor: torch.Tensor) -> bool:
    """Whether its memory is handed out by an allocator that keeps what is given back."""
    return tensor.device.type == "cuda"


def free_memory(device: torch.device) -> int:
    """Bytes that no process has taken of a CUDA device."""
    return torch.cuda.mem_get_info(device)[0]


class TokenBuffer:
    """`storage[..., start:end, :]` is what is cached, `[B, ..., T, D]`; `append` writes behind it. Empty: no storage.

    Tokens are written in place, below `limit`, where no other view changes: never with gradients enabled (backward may
    need the tensors that `append` returned), never while tracing, never into a tensor that came from outside. There,
    and while it is small, the buffer concatenates, as transformers' own layers do. `expect` announces tokens.
    """

    def __init__(self):
        self.expected, self.share = None, 0.0
        self.clear()

    def expect(self, tokens: int, share: float) -> None:
        """Reserve on a device room for so many `tokens` in all, once, if that is no more than this `share` of what is
        free there; and nowhere room for more."""
        self.expected, self.share = tokens, share

    def clear(self) -> None:
        self.storage, self.start, self.end, self.limit = None, 0, 0, 0

    def __len__(self) -> int:
        return self.end - self.start

    def tail(self, count: int | None = None) -> torch.Tensor | None:
        """View of the last `count` tokens (all of them: None), `[B, ..., min(count, T), D]`; None before the first."""
        if self.storage is None:
            return None
        length = self.end - self.start
        count = length if count is None or count > length else count
        # A tensor that was adopted is its own view: this is every step of a small buffer.
        whole = not self.limit and count == self.storage.shape[-2]
        return self.storage if whole else self.storage.narrow(-2, self.end - count, count)

    def adopt(self, tensor: torch.Tensor) -> None:
        """Hold `tensor` as it is; the next in-place write moves it into a storage of its own first."""
        self.storage, self.start, self.end, self.limit = tensor, 0, tensor.shape[-2], 0

    def append(self, *parts: torch.Tensor, keep: int | None = None, max_tokens: int | None = None) -> torch.Tensor:
        """Write the `[B, ..., t, D_i]` parts side by side behind the cached tokens; returns the view of all of them.

        `keep` first forgets all but the last `keep` tokens; `max_tokens` is the most tokens to reserve room for.
        """
        if keep is not None:
            self._forget(keep)
        if not self._writes_in_place(parts):
            return self._concatenate(parts)
        count = parts[0].shape[-2]
        # Outside inference mode, a tensor made inside it can be read but not written.
        read_only = self.storage is not None and self.storage.is_inference() and not torch.is_inference_mode_enabled()
        if self.end + count > self.limit or read_only:
            self._reserve(count, parts, max_tokens)
        slot = self.storage.narrow(-2, self.end, count)
        if len(parts) == 1:
            slot.copy_(parts[0])
        else:
            torch.cat(parts, dim=-1, out=slot)
        self.end += count
        return self.storage.narrow(-2, self.start, self.end - self.start)

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self.end = max(self.start, self.end - count)
        self._forget(self.end - self.start)

    def trim(self, keep: int, max_tokens: int) -> None:
        """Forget all but the last `keep` tokens, and give back a storage that outgrew `max_tokens` tokens."""
        self._forget(keep)
        if self.storage is not None and self.storage.shape[-2] > max_tokens:
            kept = self.tail()
            self.clear()
            if torch.is_grad_enabled():
                self.adopt(kept)
            else:
                self.append(kept, max_tokens=max_tokens)

    def map_batch(self, function: Callable) -> None:
        """Replace the storage, spare room included, by `function(storage)`, which acts on the batch axis alone."""
        if self.storage is not None:
            self.storage = function(self.storage)

    def offload(self) -> None:
        """Move the cached tokens, without the spare room, to the CPU."""
        if self.storage is not None:
            self.adopt(self.tail().to("cpu", non_blocking=True))

    def prefetch(self, device: torch.device | str, max_tokens: int | None = None) -> None:
        """Move them back to `device`, with spare room again."""
        if self.storage is not None and self.storage.device != device:
            states, length = self.tail(), self.end - self.start
            shape = (*states.shape[:-2], storage_size(length, max_tokens), states.shape[-1])
            storage = torch.empty(shape, dtype=states.dtype, device=device)
            storage.narrow(-2, 0, length).copy_(states, non_blocking=True)
            self._own(storage, length)

    def _storage_size(self, needed, max_tokens, like, width):
        """Room for `needed` tokens of `width` channels beside those in the rows of `like`."""
        on_device = is_on_device(like)
        if max_tokens is not None or self.expected is None or needed > self.expected:
            return storage_size(needed, max_tokens, on_device)
        size = math.prod(like.shape[:-2]) * self.expected * width * like.element_size()
        if on_device and size <= self.share * free_memory(like.device):
            return self.expected
        return storage_size(needed, self.expected, on_device)

    def _own(self, storage, length):
        self.storage, self.start, self.end, self.limit = storage, 0, length, storage.shape[-2]

    def _forget(self, keep):
        self.start = max(self.start, self.end - keep)
        if self.start == self.end:
            self.clear()

    def _writes_in_place(self, parts):
        """Whether `parts` are to be written in place; not where they do not fit, so that `cat` reports them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        held, part = self.storage, parts[0]
        if held is None:
            return sum(p.nbytes for p in parts) > CONCATENATED_BYTES
        if not self.limit and held.nbytes <= CONCATENATED_BYTES:
            return False
        *rows, _, width = part.shape
        for other in parts[1:]:
            width += other.shape[-1]
        *held_rows, _, held_width = held.shape
        same = part.dtype == held.dtype and part.device == held.device
        return same and width == held_width and rows == held_rows

    def _concatenate(self, parts):
        states = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.storage is not None:
            states = torch.cat((self.tail(), states), dim=-2)
        elif len(parts) == 1 and not torch.is_grad_enabled():
            states = states.clone()
        self.adopt(states)
        return states

    def _reserve(self, count, parts, max_tokens):
        """Make room for `count` more tokens in a new storage; the old one stays as its views see it."""
        length = self.end - self.start
        width = sum(part.shape[-1] for part in parts)
        size = self._storage_size(length + count, max_tokens, parts[0], width)
        storage = parts[0].new_empty((*parts[0].shape[:-2], size, width))
        if length:
            storage.narrow(-2, 0, length).copy_(self.tail())
        self._own(storage, length)


# A layer of a cache says how long it remembers; its store, one of the two below, says how.


class PairStore:
    """Keys `[B, H, T, Dk]` and values `[B, H, T, Dv]`, a buffer each."""

    def __init__(self):
        self.key_buffer, self.value_buffer = TokenBuffer(), TokenBuffer()

    @property
    def buffers(self) -> tuple[TokenBuffer, ...]:
        return self.key_buffer, self.value_buffer

    def __len__(self) -> int:
        return len(self.buffers[0])

    def clear(self) -> None:
        for buffer in self.buffers:
            buffer.clear()

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, keep: int | None = None, max_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add `[B, H, t, D]` states behind the last `keep` tokens (all of them: None); returns all keys and values."""
        return self.key_buffer.append(keys, keep=keep, max_tokens=max_tokens), self.value_buffer.append(
            values, keep=keep, max_tokens=max_tokens
        )

    def round_trip(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they come back from the store, without storing them."""
        return keys, values

    def tail(self, count: int | None = None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The last `count` keys and values, or (None, None) before the first."""
        return self.key_buffer.tail(count), self.value_buffer.tail(count)

    def assign(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """Hold what was assigned to `layer.keys` or `layer.values` from outside; the one not assigned is None."""
        for buffer, states in ((self.key_buffer, keys), (self.value_buffer, values)):
            if states is not None:
                buffer.adopt(states)


class PackedStore(PairStore):
    """Latent `[B, 1, T, c]` and rope key `[B, 1, T, r]` side by side in one buffer `[B, 1, T, c + r]`.

    Absorbed decoding reads the whole as its one key and the first c columns as its one value (DeepSeek-V2,
    arXiv 2405.04434, 2.1.2), so both come out of one pass over memory.
    """

    def __init__(self):
        self.buffer, self.key_width = TokenBuffer(), None

    @property
    def buffers(self) -> tuple[TokenBuffer, ...]:
        return (self.buffer,)

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, keep: int | None = None, max_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As PairStore; raises ValueError where latent and rope key cannot share a tensor."""
        if keys.dtype != values.dtype or keys.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"Latent {tuple(keys.shape)} {keys.dtype} and rope key {tuple(values.shape)} {values.dtype} share one "
                "cache buffer: they must agree in dtype and in every dimension but the last."
            )
        self.key_width = keys.shape[-1]
        return self._split(self.buffer.append(keys, values, keep=keep, max_tokens=max_tokens))

    def tail(self, count: int | None = None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        whole = self.buffer.tail(count)
        return (None, None) if whole is None else self._split(whole)

    def assign(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """As PairStore; raises ValueError for a latent or a rope key alone."""
        held_keys, held_values = self.tail((values if keys is None else keys).shape[-2])
        keys, values = held_keys if keys is None else keys, held_values if values is None else values
        if keys is None or values is None:
            raise ValueError("Latent and rope key share one cache buffer: fill it with `update(latent, rope_key)`.")
        whole = torch.cat((keys.to(values.device), values), dim=-1)
        self.key_width = keys.shape[-1]
        self.buffer.adopt(whole)

    def _split(self, whole):
        return whole.narrow(-1, 0, self.key_width), whole.narrow(-1, self.key_width, whole.shape[-1] - self.key_width)
