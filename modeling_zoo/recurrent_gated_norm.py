"""The norm and the gate on the output of a recurrence."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .mlp_dense import activation_named
from .ops_own_part import own_part, split_ways


class GatedRMSNorm(nn.Module):
    """norm(y) · weight · act(gate), or norm(y · act(gate)) · weight, `[..., n · width]`, RMS over groups of `width`.

    `width` is a head (Gated DeltaNet), a group of heads (Mamba-2) or the whole output (TransNormer); a weight of that
    `size` or, shared by the groups, of `width`. `cast`: round the normed output to its dtype before the weight
    ("cast_then_scale") or keep float32 to the end ("float32"). Either of norm and gate may be missing. `source`: the
    linear map whose outputs the groups are, of which a rank may have some rows.
    """

    def __init__(self, settings: SimpleNamespace, width: int, size: int):
        super().__init__()
        self.eps, self.width = settings.norm_eps, width
        self.norm_first = settings.norm_before_gate
        self.keeps_float32 = settings.norm_cast == "float32"
        self.activation = None if settings.output_gate == "none" else activation_named(settings.output_gate)
        has_norm = settings.output_norm != "none"
        self.weight = nn.Parameter(torch.ones(size)) if has_norm else None

    def initialize(self, std: float) -> None:
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(
        self, states: torch.Tensor, gate: torch.Tensor | None = None, source: nn.Module | None = None
    ) -> torch.Tensor:
        dtype = states.dtype
        factor = None if self.activation is None else self.activation(gate.float())
        if factor is not None and (not self.norm_first or self.weight is None):
            states, factor = states.float() * factor, None
        if self.weight is not None:
            states = self._normalise(states.float(), dtype, source)
        return (states if factor is None else states * factor).to(dtype)

    def _normalise(self, states, dtype, source):
        grouped = states.unflatten(-1, (-1, self.width))
        grouped = F.rms_norm(grouped, (self.width,), eps=self.eps)
        weight = self.weight.view(-1, self.width)
        if source is not None and split_ways(source) > 1:
            # A row for each head of all ranks, so that the gradient of a shared one is the sum over them.
            weight = own_part(weight.expand(source.out_features // self.width, -1), source)
        grouped = grouped * weight.float() if self.keeps_float32 else weight * grouped.to(dtype)
        return grouped.flatten(-2)

    def extra_repr(self) -> str:
        return f"width={self.width}, eps={self.eps}, norm_first={self.norm_first}"


def make_output_norm(settings: SimpleNamespace) -> GatedRMSNorm:
    """The norm and gate of a mixer whose output is `num_value_heads · value_head_dim` wide."""
    inner = settings.num_value_heads * settings.value_head_dim
    widths = {
        "head": (settings.value_head_dim, settings.value_head_dim),
        "group": (inner // settings.num_key_heads, inner),
        "full": (inner, inner),
        "none": (inner, inner),
    }
    return GatedRMSNorm(settings, *widths[settings.output_norm])
