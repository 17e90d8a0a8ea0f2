"""Storage of cached tokens: tensors that grow along the token axis without being copied for every token."""

import torch

# Spare room, in tokens, of a new storage: as many as it holds, within these bounds. Doubling makes the copies O(1) per
# token; the cap keeps a long cache from reserving twice its size, at one copy of the cache per 4096 tokens.
LEAST_ROOM, MOST_ROOM = 64, 4096


def roomy(needed, bound=None):
    """Capacity of a new storage for `needed` tokens: twice that, within the bounds above and, if they fit, `bound`."""
    capacity = needed + min(max(needed, LEAST_ROOM), MOST_ROOM)
    return capacity if bound is None or needed > bound else min(capacity, bound)


class TokenBuffer:
    """`storage[..., start:end, :]` is what is cached, `[B, ..., T, D]`; `append` writes behind it.

    Tokens are written in place only where nobody can notice: never with gradients enabled (backward may need the
    tensors that `append` returned), never while tracing, never into a tensor that came from outside (`owned`). There it
    concatenates, as transformers' own layers do.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        self.storage, self.start, self.end, self.owned = None, 0, 0, False

    def __len__(self):
        return self.end - self.start

    def tail(self, count=None):
        """View of the last `count` tokens (all of them: None), `[B, ..., min(count, T), D]`; None before the first."""
        if self.storage is None:
            return None
        count = len(self) if count is None else min(count, len(self))
        return self.storage.narrow(-2, self.end - count, count)

    def adopt(self, tensor):
        """Hold `tensor` as it is; the next in-place write moves it into a storage of its own first."""
        self.storage, self.start, self.end, self.owned = tensor, 0, tensor.shape[-2], False

    def append(self, *parts, keep=None, bound=None):
        """Write the `[B, ..., t, D_i]` parts side by side behind the cached tokens; returns the view of all of them.

        `keep` first forgets all but the last `keep` tokens; `bound` is the most tokens to reserve room for.
        """
        if keep is not None:
            self.start = max(self.start, self.end - keep)
        if not self._writable(parts):
            states = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            self.adopt(torch.cat((self.tail(), states), dim=-2) if len(self) else states)
            return self.tail()
        count = parts[0].shape[-2]
        self._reserve(count, parts, bound)
        slot = self.storage.narrow(-2, self.end, count)
        column = 0
        for part in parts:
            slot.narrow(-1, column, part.shape[-1]).copy_(part)
            column += part.shape[-1]
        self.end += count
        return self.tail()

    def crop(self, count):
        """Forget the last `count` tokens."""
        self.end = max(self.start, self.end - count)

    def trim(self, keep, bound):
        """Forget all but the last `keep` tokens, and give back a storage that outgrew `bound` tokens."""
        self.start = max(self.start, self.end - keep)
        if self.storage is not None and self.storage.shape[-2] > bound:
            kept = self.tail()
            self.clear()
            if torch.is_grad_enabled():
                self.adopt(kept)
            else:
                self.append(kept, bound=bound)

    def map_batch(self, function):
        """Replace the storage, spare room included, by `function(storage)`, which acts on the batch axis alone."""
        if len(self):
            self.storage = function(self.storage)

    def offload(self):
        """Move the cached tokens, without the spare room, to the CPU."""
        if self.storage is not None:
            self.adopt(self.tail().to("cpu", non_blocking=True))

    def prefetch(self, device, bound=None):
        """Move them back to `device`, with spare room again."""
        if self.storage is not None and self.storage.device != device:
            states, length = self.tail(), len(self)
            shape = (*states.shape[:-2], roomy(length, bound), states.shape[-1])
            self.storage = torch.empty(shape, dtype=states.dtype, device=device)
            self.storage.narrow(-2, 0, length).copy_(states, non_blocking=True)
            self.start, self.end, self.owned = 0, length, True

    def _writable(self, parts):
        """Whether `parts` may be written in place; also false for parts that do not fit, so that `cat` reports them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if not len(self):
            return True
        part, held = parts[0], self.storage
        return (
            part.dtype == held.dtype
            and part.device == held.device
            and part.shape[:-2] == held.shape[:-2]
            and sum(p.shape[-1] for p in parts) == held.shape[-1]
        )

    def _reserve(self, count, parts, bound):
        """Make room for `count` more tokens, in a new storage if need be; the old one stays as its views see it."""
        length = len(self)
        if length and self._own() and self.storage.shape[-2] - self.end >= count:
            return
        shape = (*parts[0].shape[:-2], roomy(length + count, bound), sum(part.shape[-1] for part in parts))
        storage = parts[0].new_empty(shape)
        if length:
            storage.narrow(-2, 0, length).copy_(self.tail())
        self.storage, self.start, self.end, self.owned = storage, 0, length, True

    def _own(self):
        # Outside inference mode, a tensor made inside it can be read but not written.
        return self.owned and (torch.is_inference_mode_enabled() or not self.storage.is_inference())
