"""Several residual streams beside each other."""

from dataclasses import dataclass

from .field_kinds import number, positive, size
from .fields_checks import for_each_layer, refuse_unless

BLOCK = "hyper_connection"
FIELDS = ("hc_mult", "hc_sinkhorn_iters", "hc_eps")
MAGNITUDE = "residual_factors.stream"


@dataclass(kw_only=True, repr=False)
class HyperConnectionFields:
    """Hyper-connections (Zhu et al. 2024, arXiv 2409.19606), their mixing held to doubly stochastic matrices (mHC, Xie
    et al. 2025, arXiv 2512.24880; DeepSeek-V4). Chosen by block_type='hyper_connection' in all layers."""

    hc_mult: int | None = size(
        needs="hyper-connections",
        meaning="How many residual streams there are. None: 4.",
        source="Zhu et al. 2024, arXiv 2409.19606",
    )
    hc_sinkhorn_iters: int | None = number(
        whole=True,
        least=0,
        most=1000,
        needs="hyper-connections",
        meaning="Sinkhorn-Knopp steps that make a mixing matrix doubly stochastic. 0: streams do not mix. None: 20.",
        source="Xie et al. 2025, arXiv 2512.24880; Hy4 (Tencent 2026) without mixing",
    )
    hc_eps: float | int | None = positive(
        needs="hyper-connections",
        meaning="Added to weights and sums so that nothing is divided by zero. None: 1e-6.",
        source="DeepSeek-V4's published code",
    )

    def resolve_hyper_connections(self) -> None:
        if BLOCK in self.block_types:
            for field, default in zip(FIELDS, (4, 20, 1e-6), strict=True):
                if getattr(self, field) is None:
                    setattr(self, field, default)

    @for_each_layer
    def validate_stream_factor(self) -> None:
        refuse_unless(self, BLOCK in self.block_types, f"block_type={BLOCK!r}", (MAGNITUDE,))

    def validate_hyper_connections(self) -> None:
        refuse_unless(self, BLOCK in self.block_types, f"block_type={BLOCK!r}", FIELDS)
        if BLOCK not in self.block_types:
            return
        refuse_unless(self, False, f"a block_type with one stream, not {BLOCK!r}", ("hidden_size_per_layer_input",))
