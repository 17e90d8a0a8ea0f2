"""Tensor rules: which tensors of a foreign checkpoint are which tensors of zoo's.

A rule joins one or more names there ("theirs") with one or more names here ("ours") through operations that each know
their inverse, so one list serves both directions. The first rule whose pattern matches a name takes it; a name that
no rule matches keeps its name and content. Patterns are explained in `patterns`; a placeholder `{e}` or `{h}` that only
one side has stands for all its numbers 0..n-1 at once: one slot with many tensors, for `Stack` and `StackExperts`.

    Rule("h.{i}.ln_1.{w}", "model.layers.{i}.attn_norm.{w}")                              # another name
    Rule("h.{i}.attn.c_attn.{w}", [Q, K, V], Transpose(), Split("q", "k", "v"))           # one to three
    Rule(["e.{e}.w1.weight", "e.{e}.w3.weight"], "experts.gate_up_proj", StackExperts())  # 2 E to one
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ops import Concat, Context, EachOp, Join, Op, Reshape, Reverse, Slots, Split, Stack, StackExperts, Transpose
from .patterns import Pattern
from .permutations import Deinterleave, HeadPermutation, Permutation, PermuteRope, SwapHalves

__all__ = [
    "Concat", "Context", "Deinterleave", "Drop", "EachOp", "HeadPermutation", "Join", "Keep", "Op", "Permutation",
    "PermuteRope", "Reshape", "Reverse", "Row", "RowOf", "Rule", "Slots", "Split", "Stack", "StackExperts",
    "SwapHalves", "Transpose", "renames",
]  # fmt: skip

_MANY = {"e", "h"}

Values = dict[str, int | str]


class Rule:
    """`theirs` <-> `ours` through `ops`, applied left to right from theirs to ours and inverted when converting back.

    `where(ctx)` restricts the rule to some layers: `where=lambda ctx: ctx.layer_entry() == "linear_attention"`.
    `index=(to_ours, to_theirs)` translates placeholder values when layers are counted differently:
    `index=(lambda v: {"i": 2 * v["i"] + v["s"]}, lambda v: {"i": v["i"] // 2, "s": v["i"] % 2})`.
    Raises ValueError for a placeholder that only one side has.
    """

    aside = False
    # Whether their tensor is set aside as well, since zoo has a part of it alone.
    aside_too = False

    def __init__(
        self,
        theirs: str | list[str],
        ours: str | list[str],
        *ops: Op,
        where: Callable[[Context], bool] | None = None,
        index: tuple[Callable[[Values], Values], Callable[[Values], Values]] | None = None,
    ):
        self.theirs = [Pattern(text) for text in _listed(theirs)]
        self.ours = [Pattern(text) for text in _listed(ours)]
        self.ops, self.where, self.index = ops, where, index
        here, there = _placeholders(self.ours), _placeholders(self.theirs)
        self.many_theirs, self.many_ours = (there - here) & _MANY, (here - there) & _MANY
        lonely = (here ^ there) - _MANY
        if index is None and not self.aside and lonely:
            raise ValueError(f"{self}: placeholder {sorted(lonely)} occurs on one side only")

    def context(self, config: Any, ours: Values) -> Context:
        """What the operations may know, for one set of placeholder values on our side."""
        return Context(config, ours, len(self.theirs))

    def applies(self, ctx: Context) -> bool:
        return self.where is None or bool(self.where(ctx))

    def values_to_ours(self, theirs: Values) -> Values:
        return theirs if self.index is None else {**theirs, **self.index[0](theirs)}

    def values_to_theirs(self, ours: Values) -> Values:
        return ours if self.index is None else {**ours, **self.index[1](ours)}

    def to_ours(self, slots: list, ctx: Context) -> list:
        for op in self.ops:
            slots = op.forward(slots, ctx)
        return slots

    def to_theirs(self, slots: list, ctx: Context) -> list:
        for op in reversed(self.ops):
            slots = op.backward(slots, ctx)
        return slots

    def __repr__(self) -> str:
        theirs, ours = ([pattern.text for pattern in side] for side in (self.theirs, self.ours))
        return f"{type(self).__name__}({theirs} <-> {ours})"


class Keep(Rule):
    """A tensor zoo has no place for (a multi-token prediction head): set aside, reported, restored when converting
    back."""

    aside = True

    def __init__(self, theirs: str | list[str], where: Callable[[Context], bool] | None = None):
        super().__init__(theirs, [], where=where)


class Row(EachOp):
    """One row of a tensor; what the others were has to be known when converting back (`rules.RowOf`)."""

    def __init__(self, index: int = 0):
        self.index = index

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        return tensor[self.index]

    def to_theirs(self, tensor: Tensor, ctx: Context) -> Tensor:
        return torch.stack([tensor] * (self.index + 1))

    def into(self, kept: Tensor, tensor: Tensor) -> Tensor:
        """`kept` with another row: the last of `tensor`."""
        kept = kept.clone()
        kept[self.index] = tensor[self.index].to(kept.dtype)
        return kept


class RowOf(Rule):
    """A tensor `[n, ...]` of which zoo has one row: it is set aside too, and gets its row back."""

    aside_too = True

    def __init__(self, theirs: str, ours: str, row: int = 0):
        super().__init__(theirs, ours, Row(row))


class Drop(Keep):
    """A buffer that can be recomputed (`rotary_emb.inv_freq`, a causal mask): set aside without a report."""


class Empty(Drop):
    """A tensor without a number in it, of a module of no width; one that has numbers is not this rule's."""


def renames(names: dict[str, str], theirs: str = "model.layers.{i}.", ours: str = "model.layers.{i}.") -> list[Rule]:
    """One rule per module name, weight or bias: `renames({"ln_1": "attn_norm"}, theirs="transformer.h.{i}.")`."""
    return [Rule(f"{theirs}{a}.{{w}}", f"{ours}{b}.{{w}}") for a, b in names.items()]


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _placeholders(patterns: list[Pattern]) -> set[str]:
    return {name for pattern in patterns for name in pattern.placeholders}
