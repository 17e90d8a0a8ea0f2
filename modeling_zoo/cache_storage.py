"""Storage of cached tokens: tensors that grow along the token axis without being copied for every token."""

import torch

# Spare room, in tokens, of a new storage: as many as it holds, within these bounds. Doubling makes the copies O(1) per
# token; the cap keeps a long cache from reserving twice its size, at one copy of the cache per 4096 tokens.
LEAST_ROOM, MOST_ROOM = 64, 4096
# Below this many bytes a concatenation takes no longer than the views that an in-place write needs.
SMALL = 128 * 1024


def roomy(needed, bound=None):
    """Capacity of a new storage for `needed` tokens: twice that, within the bounds above and, if they fit, `bound`."""
    capacity = needed + min(max(needed, LEAST_ROOM), MOST_ROOM)
    return capacity if bound is None or needed > bound else min(capacity, bound)


class TokenBuffer:
    """`storage[..., start:end, :]` is what is cached, `[B, ..., T, D]`; `append` writes behind it. Empty: no storage.

    Tokens are written in place, below `limit`, where nobody can notice: never with gradients enabled (backward may need
    the tensors that `append` returned), never while tracing, never into a tensor that came from outside. There, and
    while it is small, the buffer concatenates, as transformers' own layers do.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        self.storage, self.start, self.end, self.limit = None, 0, 0, 0

    def __len__(self):
        return self.end - self.start

    def tail(self, count=None):
        """View of the last `count` tokens (all of them: None), `[B, ..., min(count, T), D]`; None before the first."""
        if self.storage is None:
            return None
        length = self.end - self.start
        count = length if count is None or count > length else count
        # A tensor that was adopted is its own view: this is every step of a small buffer.
        whole = not self.limit and count == self.storage.shape[-2]
        return self.storage if whole else self.storage.narrow(-2, self.end - count, count)

    def adopt(self, tensor):
        """Hold `tensor` as it is; the next in-place write moves it into a storage of its own first."""
        self.storage, self.start, self.end, self.limit = tensor, 0, tensor.shape[-2], 0

    def append(self, *parts, keep=None, bound=None):
        """Write the `[B, ..., t, D_i]` parts side by side behind the cached tokens; returns the view of all of them.

        `keep` first forgets all but the last `keep` tokens; `bound` is the most tokens to reserve room for.
        """
        if keep is not None:
            self._forget(keep)
        if not self._writable(parts):
            return self._concatenate(parts)
        count = parts[0].shape[-2]
        # Outside inference mode, a tensor made inside it can be read but not written.
        sealed = self.storage is not None and self.storage.is_inference() and not torch.is_inference_mode_enabled()
        if self.end + count > self.limit or sealed:
            self._reserve(count, parts, bound)
        slot = self.storage.narrow(-2, self.end, count)
        if len(parts) == 1:
            slot.copy_(parts[0])
        else:
            torch.cat(parts, dim=-1, out=slot)
        self.end += count
        return self.storage.narrow(-2, self.start, self.end - self.start)

    def crop(self, count):
        """Forget the last `count` tokens."""
        self.end = max(self.start, self.end - count)
        self._forget(self.end - self.start)

    def trim(self, keep, bound):
        """Forget all but the last `keep` tokens, and give back a storage that outgrew `bound` tokens."""
        self._forget(keep)
        if self.storage is not None and self.storage.shape[-2] > bound:
            kept = self.tail()
            self.clear()
            if torch.is_grad_enabled():
                self.adopt(kept)
            else:
                self.append(kept, bound=bound)

    def map_batch(self, function):
        """Replace the storage, spare room included, by `function(storage)`, which acts on the batch axis alone."""
        if self.storage is not None:
            self.storage = function(self.storage)

    def offload(self):
        """Move the cached tokens, without the spare room, to the CPU."""
        if self.storage is not None:
            self.adopt(self.tail().to("cpu", non_blocking=True))

    def prefetch(self, device, bound=None):
        """Move them back to `device`, with spare room again."""
        if self.storage is not None and self.storage.device != device:
            states, length = self.tail(), self.end - self.start
            shape = (*states.shape[:-2], roomy(length, bound), states.shape[-1])
            storage = torch.empty(shape, dtype=states.dtype, device=device)
            storage.narrow(-2, 0, length).copy_(states, non_blocking=True)
            self._own(storage, length)

    def _own(self, storage, length):
        self.storage, self.start, self.end, self.limit = storage, 0, length, storage.shape[-2]

    def _forget(self, keep):
        self.start = max(self.start, self.end - keep)
        if self.start == self.end:
            self.clear()

    def _writable(self, parts):
        """Whether `parts` are to be written in place; not where they do not fit, so that `cat` reports them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        held, part = self.storage, parts[0]
        if held is None:
            return sum(p.nbytes for p in parts) > SMALL
        if not self.limit and held.nbytes <= SMALL:
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

    def _reserve(self, count, parts, bound):
        """Make room for `count` more tokens in a new storage; the old one stays as its views see it."""
        length = self.end - self.start
        shape = (*parts[0].shape[:-2], roomy(length + count, bound), sum(part.shape[-1] for part in parts))
        storage = parts[0].new_empty(shape)
        if length:
            storage.narrow(-2, 0, length).copy_(self.tail())
        self._own(storage, length)
