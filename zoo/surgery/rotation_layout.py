"""Rotary pairs side by side (2j, 2j + 1), or half a head apart (j, j + d / 2): rows of heads change places."""

from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.rules import PermuteRope, Reverse, Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .operation import ARITHMETIC, Exactness, Example, Operation, Request, Statistics, SurgeryError, has_own

FIELD = "rope_interleave"


class RotationLayout(Operation):
    def __init__(self):
        super().__init__("layout of rotary pairs", (FIELD,), parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(FIELD), bool)

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.position_embedding_type != "rope":
            return []
        note = "as another family stores them"
        return [Example({FIELD: not config.rope_interleave}, Exactness(ARITHMETIC), note)]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where something else than rows of heads is rotated."""
        if other := {name for name in config.mixer_types if name not in (None, "grouped_query")}:
            raise SurgeryError(
                f"{FIELD}: layers of {min(other)!r} keep their layout; only grouped-query attention changes."
            )
        if config.attn_output_gate == "query":
            raise SurgeryError(f"{FIELD}: a gate stands between the heads of q_proj.")
        if any(config.per_layer_config[index].attention_k_eq_v for index in range(config.num_hidden_layers)):
            raise SurgeryError(f"{FIELD}: attention_k_eq_v=True: rows of keys are rows of values too.")
        if has_own(config, "head_dim"):
            raise SurgeryError(f"{FIELD}: layers have a head_dim of their own.")
        if "shared_block" in config.block_types:
            raise SurgeryError(f"{FIELD}: shared blocks rotate heads of their own.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        apart = PermuteRope()
        change = apart if config.rope_interleave else Reverse(apart)
        names = [f"{ATTENTION}{part}.{kind}" for part in ("q_proj", "k_proj") for kind in ("weight", "bias")]
        rules = [Rule(name, name, change) for name in names]
        if config.qk_norm is not None:
            along = PermuteRope(dim=1) if config.qk_norm_config["weight"] == "per_head" else PermuteRope()
            change = along if config.rope_interleave else Reverse(along)
            names = [f"{ATTENTION}{part}.{kind}" for part in ("q_norm", "k_norm") for kind in ("weight", "bias")]
            rules += [Rule(name, name, change) for name in names]
        stored = expected_tensors(config).tensors
        rotates = [index for index in range(config.num_hidden_layers) if config.rope_table_of(index) is not None]
        for rule in rules:
            name = rule.theirs[0].text
            rule.where = lambda ctx, name=name: ctx.layer in rotates and name.format(i=ctx.layer) in stored
        return rules
