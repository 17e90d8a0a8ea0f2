"""The inner width of MLPs: wider and the same, narrower with what is left put right by least squares.

Wider: new neurons give nothing, as their columns of the output projection are zero. Narrower: neurons are scored by
what would be missing without them,

    fluctuation    Var(h_c) · ‖w_c‖² (An et al. 2024, FLAP, arXiv 2312.11983)
    wanda          √E[h_c²] · ‖w_c‖ (Sun et al. 2024, arXiv 2306.11695)
    activation     E|h_c|, as √E[h_c²] (Muralidharan et al. 2024, Minitron, arXiv 2407.14679)

and those that stay, S, learn from the second moment of h to give what all gave, W' = argmin E‖W h - W' h_S‖².
`magnitude`, the norms of a neuron's weights, needs no text and mends nothing.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    Exactness,
    Example,
    Make,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    for_layers,
    has_own,
)

MLP = "model.layers.{i}.mlp."
READS = "mlp.down_proj"
START_STD = 0.02
# Of the mean eigenvalue: where neurons fire alike the normal equations have no single solution.
RIDGE = 1e-6


class MlpWidth(Operation):
    def __init__(self):
        methods = ("fluctuation", "wanda", "activation", "magnitude")
        super().__init__("width of MLPs", ("intermediate_size",), methods=methods, parts=("mlp",), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("intermediate_size"), int)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        kinds = zip(config.mlp_layer_types, config.block_types, strict=True)
        return [index for index, (kind, block) in enumerate(kinds) if kind == "dense" and block != "mixer_only"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}) or has_own(config, "intermediate_size"):
            return []
        width = config.intermediate_size
        more, fewer = ({"intermediate_size": size} for size in (width + width // 2, max(1, width * 3 // 4)))
        return [
            Example(more, Exactness(ARITHMETIC), "further neurons, silent until they learn"),
            Example(fewer, Exactness(APPROXIMATE), "fewer parameters: calibrate, then heal"),
        ]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where layers have widths of their own, or others share them."""
        if has_own(config, "intermediate_size"):
            raise SurgeryError("per_layer_config gives layers an intermediate_size of their own: change one at a time.")
        if request.fields["intermediate_size"] < 1:
            raise SurgeryError(f"intermediate_size={request.fields['intermediate_size']} must be at least 1.")
        if tied := {"shared_block", "sub_norm"} & set(config.block_types):
            raise SurgeryError(f"block_type={min(tied)!r}: other layers, or a norm over all neurons, read the MLP.")
        if "sparse" in config.mlp_layer_types and config.moe_intermediate_size is None:
            raise SurgeryError("moe_intermediate_size is missing: experts would follow intermediate_size.")

    def narrower(self, config: ZooConfig, request: Request) -> bool:
        return request.fields["intermediate_size"] < config.intermediate_size

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE if self.narrower(config, request) else ARITHMETIC)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need(READS)] if self.narrower(config, request) and request.method != "magnitude" else []

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        every = request.every and "sparse" not in config.mlp_layer_types
        wanted = Request(request.fields, request.layers, request.method, every)
        return for_layers(config, wanted, {"intermediate_size": request.fields["intermediate_size"]})

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        width, chosen = request.fields["intermediate_size"], set(request.layers)
        incoming = ["gate", "up"] if config.gated_mlp else ["up"]
        names = [f"{MLP}{part}_proj.weight" for part in (*incoming, "down")]
        names += [f"{MLP}{part}_proj.bias" for part in incoming] if config.mlp_bias else []
        expected = expected_tensors(new).tensors

        def shapes(ctx: Context) -> list:
            return [expected[name.format(i=ctx.layer)].shape for name in names]

        def make(ctx: Context, *tensors: Tensor) -> list[Tensor]:
            *rows, down = tensors[: len(incoming) + 1]
            biases = list(tensors[len(incoming) + 1 :])
            if width >= config.intermediate_size:
                seed = request.seed * 1009 + (ctx.layer or 0)
                return [*wider(rows, width, seed), wider_columns(down, width), *(filled(one, width) for one in biases)]
            kept, new_down = narrowed(rows, down, statistics.get((ctx.layer, READS)), width, request.method)
            return [*(one[kept] for one in rows), new_down, *(one[kept] for one in biases)]

        return [Rule(names, names, Make(make, shapes), where=lambda ctx: ctx.layer in chosen)]


def wider(rows: list[Tensor], width: int, seed: int) -> list[Tensor]:
    """`[I, D]` each → `[width, D]`, further rows drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for one in rows:
        drawn = torch.randn(width - len(one), one.shape[1], generator=generator) * START_STD
        made.append(torch.cat((one, drawn.to(one.dtype))))
    return made


def wider_columns(down: Tensor, width: int) -> Tensor:
    return filled(down.T, width).T.contiguous()


def filled(rows: Tensor, width: int) -> Tensor:
    return torch.cat((rows, rows.new_zeros(width - len(rows), *rows.shape[1:])))


def narrowed(rows: list[Tensor], down: Tensor, moment: Tensor | None, width: int, method: str) -> tuple[Tensor, Tensor]:
    """(the neurons that stay, their output projection `[D, width]`); `moment` is E[h hᵀ] `[I + 1, I + 1]`."""
    norms = down.double().norm(dim=0)
    if moment is None:
        scores = norms * torch.stack([one.double().norm(dim=1) for one in rows]).prod(0)
        kept = scores.topk(width).indices.sort().values
        return kept, down[:, kept].contiguous()
    energy, mean = torch.diagonal(moment)[:-1], moment[-1, :-1]
    scores = {
        "fluctuation": (energy - mean.square()) * norms.square(),
        "wanda": energy.clamp(min=0).sqrt() * norms,
        "activation": energy,
    }[method]
    kept = scores.topk(width).indices.sort().values
    return kept, least_squares(down, moment[:-1, :-1], kept)


def least_squares(down: Tensor, moment: Tensor, kept: Tensor) -> Tensor:
    """W' = W E[h h_Sᵀ] E[h_S h_Sᵀ]⁻¹, `[D, S]`."""
    inner = moment[kept][:, kept]
    inner = inner + RIDGE * torch.diagonal(inner).mean() * torch.eye(len(kept), dtype=inner.dtype)
    solved = torch.linalg.solve(inner, moment[kept] @ down.double().T)
    return solved.T.to(down.dtype).contiguous()
