"""Reversible operations on tensors: what a rule does beside renaming. Each knows its inverse.

`forward` goes from theirs to ours, `backward` comes back; both run on the meta device too, where the plan checks every
shape before a byte is read. Sizes are numbers, functions of the config, or text such as "num_key_value_heads*head_dim".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Names of sizes that nearly every attention layer has; anything else in a size is a field of the config.
_SIZE_WORDS = {
    "q": "num_attention_heads*head_dim",
    "k": "num_key_value_heads*head_dim",
    "v": "num_key_value_heads*head_dim",
}

Size = int | str | Callable[[Any], int]


@dataclass
class Context:
    """What an operation may know: zoo's config, the placeholders' values on our side, the slots the rule has there.

    `shapes` are those of the tensors that came in, where they are known when converting back.
    """

    config: Any
    values: dict[str, int | str] = field(default_factory=dict)
    theirs: int = 1
    shapes: list[torch.Size] = field(default_factory=list)

    @property
    def layer(self) -> int | None:
        """Zoo's number of the layer, None for a tensor outside the layers."""
        return self.values.get("i")

    @property
    def settings(self) -> Any:
        """The config as this layer sees it (`per_layer_config` applied)."""
        differ = self.layer is not None and getattr(self.config, "is_heterogeneous", False)
        if not differ or self.layer >= self.config.num_hidden_layers:
            return self.config
        return self.config.per_layer_config[self.layer]

    def layer_entry(self, name: str = "layer_types") -> str | None:
        """This layer's entry in a per-layer list of the config; None outside the layers."""
        entries = getattr(self.config, name, None)
        inside = self.layer is not None and entries is not None and self.layer < len(entries)
        return entries[self.layer] if inside else None

    def size(self, size: Size) -> int:
        """A size: a number, a function of the layer's config, or text of fields and numbers joined by `*`, `/`, `+`."""
        if isinstance(size, int):
            return size
        if callable(size):
            return int(size(self.settings))
        return sum(self._product(term) for term in _SIZE_WORDS.get(size, size).split("+"))

    def _product(self, term: str) -> int:
        if not re.fullmatch(r"\s*[\w.]+\s*([*/]\s*[\w.]+\s*)*", term):
            raise ValueError(f"cannot read the size {term!r}: fields and numbers joined by *, / and + are understood")
        result = 1
        for operator, factor in re.findall(r"([*/]?)\s*([\w.]+)", term):
            number = int(factor) if factor.isdigit() else self.size(self._field(factor))
            if operator == "/" and result % number:
                raise ValueError(f"size {term!r}: {result} is not divisible by {number}")
            result = result // number if operator == "/" else result * number
        return result

    def _field(self, name: str) -> Size:
        if name in _SIZE_WORDS:
            return name
        value = getattr(self.settings, name, None)
        if not isinstance(value, int):
            raise ValueError(f"size {name!r} is neither q, k, v nor an integer field of the config (it is {value!r})")
        return value


class Op:
    """Slots in, slots out; a slot is a tensor, or a sequence of tensors for an `{e}` or `{h}` on one side.

    `forward` goes from theirs to ours, `backward` is its exact inverse. Both must also run on the meta device: the plan
    checks every shape before a byte is read.
    """

    # Whether every entry along the first dimension of a stack is computed by itself.
    by_entry = False

    def forward(self, tensors: list, ctx: Context) -> list:
        raise NotImplementedError

    def backward(self, tensors: list, ctx: Context) -> list:
        raise NotImplementedError

    def one_after_another(self, slots: list) -> list | None:
        """Where the operation joins several tensors into one, or cuts one into them, and their numbers lie there one
        after another: what is in `slots`, the several, in that order."""
        return None


class EachOp(Op):
    """Base of operations on single tensors, applied to every slot: define `to_ours(tensor, ctx)` and `to_theirs`."""

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError

    def to_theirs(self, tensor: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError

    def forward(self, tensors: list, ctx: Context) -> list:
        return [self.to_ours(tensor, ctx) for tensor in tensors]

    def backward(self, tensors: list, ctx: Context) -> list:
        return [self.to_theirs(tensor, ctx) for tensor in tensors]


class Reverse(Op):
    """Another operation, backwards: `Reverse(Split("q", "k", "v"))` concatenates."""

    def __init__(self, op: Op):
        self.op = op

    def one_after_another(self, slots: list) -> list | None:
        return self.op.one_after_another(slots)

    def forward(self, tensors: list, ctx: Context) -> list:
        return self.op.backward(tensors, ctx)

    def backward(self, tensors: list, ctx: Context) -> list:
        return self.op.forward(tensors, ctx)


class Slots(Op):
    """A different operation for every slot: `Slots(PermuteRope(), PermuteRope("num_key_value_heads"), None)`."""

    def __init__(self, *ops: Op | None):
        self.ops = ops

    def _pairs(self, tensors):
        return zip(self.ops, tensors, strict=True)

    def forward(self, tensors: list, ctx: Context) -> list:
        return [tensor if op is None else op.forward([tensor], ctx)[0] for op, tensor in self._pairs(tensors)]

    def backward(self, tensors: list, ctx: Context) -> list:
        return [tensor if op is None else op.backward([tensor], ctx)[0] for op, tensor in self._pairs(tensors)]


class Transpose(EachOp):
    """Swaps two dimensions (Conv1D weights, experts stored `[E, D, 2I]`); a bias, having one, stays as it is."""

    def __init__(self, first: int = -2, second: int = -1):
        self.first, self.second = first, second
        self.by_entry = 0 not in (first, second)

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        return tensor if tensor.ndim < 2 else tensor.transpose(self.first, self.second)

    to_theirs = to_ours


class Split(Op):
    """One tensor to several along `dim`: `[groups * sum(sizes), ...]` to one `[groups * size, ...]` per size.

    `Split("q", "k", "v")` is a plain fused projection; `groups` says that the parts repeat in every group, as in
    `[heads, (q, k, v), head_dim]`: `Split("head_dim", "head_dim", "head_dim", groups="num_attention_heads")`.
    `Split(parts=2, dim=1)` cuts into equal parts without naming their size. Raises ValueError for both or
    neither of sizes and parts.
    """

    def __init__(self, *sizes: Size, parts: int | None = None, groups: Size = 1, dim: int = 0):
        if bool(sizes) == bool(parts):
            raise ValueError("Split needs sizes or parts, and not both")
        self.sizes, self.parts, self.groups, self.dim = sizes, parts, groups, dim

    def one_after_another(self, slots: list) -> list | None:
        return slots if self.dim == 0 and self.groups == 1 else None

    def _sizes(self, total: int, ctx: Context) -> list[int]:
        sizes = [ctx.size(size) for size in self.sizes] or [total // self.parts] * self.parts
        if sum(sizes) != total:
            raise ValueError(f"{total} rows do not split into {sizes}")
        return sizes

    def forward(self, tensors: list, ctx: Context) -> list:
        """Cuts the tensor; raises ValueError where it cannot be divided so."""
        (tensor,) = tensors
        dim, groups = self.dim % tensor.ndim, ctx.size(self.groups)
        if tensor.shape[dim] % groups:
            raise ValueError(f"{tensor.shape[dim]} rows do not split into {groups} groups")
        grouped = tensor.unflatten(dim, (groups, -1))
        pieces = grouped.split(self._sizes(grouped.shape[dim + 1], ctx), dim + 1)
        return [piece.flatten(dim, dim + 1) for piece in pieces]

    def backward(self, tensors: list, ctx: Context) -> list:
        dim, groups = self.dim % tensors[0].ndim, ctx.size(self.groups)
        return [torch.cat([part.unflatten(dim, (groups, -1)) for part in tensors], dim + 1).flatten(dim, dim + 1)]


def Concat(*sizes: Size, parts: int | None = None, groups: Size = 1, dim: int = 0) -> Reverse:  # noqa: N802
    """Several tensors to one along `dim`: `Split` read the other way; the sizes are those of the several."""
    return Reverse(Split(*sizes, parts=parts, groups=groups, dim=dim))


class Join(Op):
    """Several tensors to one `[sum(sizes), ...]`, wherever they were cut; when converting back cut as they came, else
    by `sizes`."""

    def __init__(self, *sizes: Size):
        self.sizes = sizes

    def one_after_another(self, slots: list) -> list | None:
        return slots

    def forward(self, tensors: list, ctx: Context) -> list:
        """Concatenates the tensors; raises ValueError for other sizes."""
        rows = [tensor.shape[0] for tensor in tensors]
        if sum(rows) != sum(ctx.size(size) for size in self.sizes):
            raise ValueError(f"parts of {rows} rows do not join to {[ctx.size(size) for size in self.sizes]}")
        return [torch.cat(tensors)]

    def backward(self, tensors: list, ctx: Context) -> list:
        (tensor,) = tensors
        return list(tensor.split([shape[0] for shape in ctx.shapes] or [ctx.size(size) for size in self.sizes]))


class Stack(Op):
    """Every slot of many tensors to one with a new first dimension: `n x [...]` to `[n, ...]`."""

    by_entry = True

    def one_after_another(self, slots: list) -> list | None:
        return slots[0] if len(slots) == 1 else None

    def forward(self, tensors: list, ctx: Context) -> list:
        return [_stack([slot], 1) for slot in tensors]

    def backward(self, tensors: list, ctx: Context) -> list:
        return [list(tensor.unbind(0)) for tensor in tensors]


class StackExperts(Op):
    """`E x [I, D]` per slot to one `[E, slots * I, D]`: experts stacked, gate rows first, then up rows."""

    by_entry = True

    def one_after_another(self, slots: list) -> list | None:
        return [one for expert in zip(*slots, strict=True) for one in expert]

    def forward(self, tensors: list, ctx: Context) -> list:
        return [_stack(tensors, len(tensors))]

    def backward(self, tensors: list, ctx: Context) -> list:
        """Unstacks the experts; raises ValueError where the rows cannot be divided."""
        (tensor,) = tensors
        if ctx.theirs == 1:
            return [list(tensor.unbind(0))]
        if tensor.shape[1] % ctx.theirs:
            raise ValueError(f"{tensor.shape[1]} rows do not split into {ctx.theirs} equal parts")
        return [list(part.unbind(0)) for part in tensor.chunk(ctx.theirs, 1)]


def _stack(slots: list[Sequence[Tensor]], parts: int) -> Tensor:
    """Fills the stacked tensor piece by piece: a lazy sequence has one piece in memory at a time."""
    stacked = None
    for part, slot in enumerate(slots):
        for number, tensor in enumerate(slot):
            if stacked is None:
                size = (tensor.shape[0] * parts, *tensor.shape[1:]) if tensor.ndim else ()
                stacked, rows = tensor.new_empty((len(slot), *size)), tensor.shape[0] if tensor.ndim else 0
                shape = tensor.shape
            if tensor.shape != shape:
                raise ValueError(f"tensors to be stacked differ: {list(tensor.shape)} and {list(shape)}")
            place = stacked[number] if parts == 1 else stacked[number, part * rows : (part + 1) * rows]
            place.copy_(tensor)
    return stacked


class Reshape(EachOp):
    """`theirs` shape to `ours`, both given as sizes: `Reshape(("num_experts*moe_intermediate_size", -1), (...))`."""

    def __init__(self, theirs: Sequence[Size], ours: Sequence[Size]):
        self.theirs, self.ours = theirs, ours

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        return tensor.reshape([ctx.size(size) for size in self.ours])

    def to_theirs(self, tensor: Tensor, ctx: Context) -> Tensor:
        return tensor.reshape([ctx.size(size) for size in self.theirs])
