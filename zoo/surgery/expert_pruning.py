"""Fewer experts: those that give least go.

    gain         the mean of weight · ‖expert's output‖ over the tokens that visit it (REAP, Lasby et al. 2025,
                 arXiv 2510.13999)
    frequency    how often it is visited

The router loses its rows: a token that went to an expert that is gone goes to the next best.
"""

from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .operation import APPROXIMATE, Exactness, Example, Make, Need, Operation, Request, Statistics, SurgeryError

MLP = "model.layers.{i}.mlp."
# What has a row, or a matrix, for each expert.
PER_EXPERT = (
    "gate.weight", "gate.bias", "gate.e_score_correction_bias", "gate.per_expert_scale", "experts.gate_up_proj",
    "experts.up_proj", "experts.down_proj", "experts.gate_up_proj_bias", "experts.up_proj_bias",
    "experts.down_proj_bias",
)  # fmt: skip


class ExpertPruning(Operation):
    def __init__(self):
        takes = ("num_experts_per_tok", "n_group", "topk_group")
        super().__init__("fewer experts", ("num_experts",), takes, ("gain", "frequency"), parts=("mlp",))

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("num_experts"), int) and bool(config.num_experts)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        return [index for index, kind in enumerate(config.mlp_layer_types) if kind == "sparse"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not config.num_experts or config.num_experts < 2:
            return []
        return [Example({"num_experts": config.num_experts // 2}, Exactness(APPROXIMATE), "calibrate, then heal")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for more experts than there are, for some layers alone, and for zero experts."""
        wanted = request.fields["num_experts"]
        if not 1 <= wanted < config.num_experts:
            raise SurgeryError(
                f"num_experts={wanted}: experts are left out, so write 1 to {config.num_experts - 1}; there are "
                f"{config.num_experts}."
            )
        if not request.every:
            raise SurgeryError("num_experts is one number for all sparse layers: leave out --layers.")
        if config.zero_expert_num:
            raise SurgeryError(f"zero_expert_num={config.zero_expert_num}: zero experts stand behind the others.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need("mlp.experts", "routed")]

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        active = min(config.num_experts_per_tok, request.fields["num_experts"])
        return {"num_experts_per_tok": active} | request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        expected = expected_tensors(config).tensors
        first = request.layers[0]
        rules = []
        for ending in PER_EXPERT:
            name = MLP + ending
            if name.format(i=first) not in expected:
                continue

            def make(ctx: Context, tensor: Tensor) -> list[Tensor]:
                return [tensor[kept(statistics[ctx.layer, "mlp.experts"], request)].contiguous()]

            def shapes(ctx: Context, name=name) -> list:
                return [(request.fields["num_experts"], *expected[name.format(i=ctx.layer)].shape[1:])]

            rules.append(Rule(name, name, Make(make, shapes)))
        return rules


def kept(routed: Tensor, request: Request) -> Tensor:
    """The experts that stay, of `[2, E]`: sums of weight · ‖output‖, and how many tokens came."""
    gains, visits = routed
    scores = visits if request.method == "frequency" else gains / visits.clamp(min=1e-30)
    return scores.topk(request.fields["num_experts"]).indices.sort().values
