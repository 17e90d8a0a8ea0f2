"""Norms with a gate of their own."""

from dataclasses import dataclass

from .field_kinds import size
from .fields_checks import refuse_unless
from .vocabulary import GATED_NORM_BLOCKS


@dataclass(kw_only=True, repr=False)
class GatedNormFields:
    """Norms whose output passes a gate made of itself (A.X K2), in layers with one of `GATED_NORM_BLOCKS`."""

    gated_norm_rank: int | None = size(
        needs="gated norm",
        meaning="Channels of the two maps that make the gate behind a norm, with a block_type that has such gates. "
        "None: 16.",
        source="A.X K2 (SK Telecom 2026)",
    )

    def resolve_gated_norm(self) -> None:
        if self.gated_norm_rank is None and {*GATED_NORM_BLOCKS} & {*self.block_types}:
            self.gated_norm_rank = 16

    def validate_gated_norm(self) -> None:
        gated = bool({*GATED_NORM_BLOCKS} & {*self.block_types})
        refuse_unless(self, gated, f"a block_type of {list(GATED_NORM_BLOCKS)}", ("gated_norm_rank",))
