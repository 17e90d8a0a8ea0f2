"""Layers that predict further tokens, in the files of a family: where they stand and what they become.

Their insides are a layer of the family, so its own rules hold for them under other names. Files say nothing certain of
them in config.json, which often promises layers that were left out: the tensors decide. What is not built as zoo builds
it stays set aside, as a whole.
"""

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from configuration_zoo.first_layers import per_layer_names

from .patterns import Pattern
from .rules import Context, Keep, Rule

LAYER, OURS = "model.layers.{i}.", "mtp.layers.{i}."
# How many layers that predict further tokens a config.json promises, in the spellings of the families.
COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


@dataclass(frozen=True)
class Arrangement:
    """How the files of a family have these layers.

    `block`: beginning of the names of a layer; `behind`: they are counted on from the model's own; `ends`: the names of
    what stands around a layer, theirs -> ours; `copies`: tensors that repeat some of the model's.
    """

    block: str
    projection: str
    behind: bool = False
    ends: dict[str, str] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    layer_type: str | None = None

    def first(self, config: ZooConfig) -> int:
        """The number that the files give to the first of them."""
        return config.num_hidden_layers if self.behind else 0

    def fields(self, config: ZooConfig, count: int, layer_type: str | None = None) -> dict[str, Any]:
        """The fields of a ZooConfig with `count` of them."""
        wanted = layer_type or self.layer_type
        there = {"layer_type": wanted} if wanted in config.layer_types else {}
        return {"num_mtp_layers": count, "mtp": {"projection": self.projection, **there}}


# DeepSeek-V3, GLM-4.5 and their heirs, some of which call the last norm otherwise.
BEHIND = Arrangement(
    block=LAYER,
    projection="one_per_depth",
    behind=True,
    ends={
        LAYER + "enorm.{w}": "mtp.projections.{i}.embedding_norm.{w}",
        LAYER + "hnorm.{w}": "mtp.projections.{i}.hidden_norm.{w}",
        LAYER + "eh_proj.{w}": "mtp.projections.{i}.eh_proj.{w}",
        LAYER + "shared_head.norm.{w}": "mtp.norm.{i}.{w}",
        LAYER + "final_layernorm.{w}": "mtp.norm.{i}.{w}",
    },
    copies=(LAYER + "embed_tokens.{w}", LAYER + "shared_head.head.{w}"),
)
# Qwen3-Next, Qwen3.5 and EXAONE-MoE.
BESIDE = Arrangement(
    block="mtp.layers.{i}.",
    projection="one_for_all",
    ends={
        "mtp.pre_fc_norm_embedding.{w}": "mtp.projections.0.embedding_norm.{w}",
        "mtp.pre_fc_norm_hidden.{w}": "mtp.projections.0.hidden_norm.{w}",
        "mtp.fc.{w}": "mtp.projections.0.eh_proj.{w}",
        "mtp.norm.{w}": "mtp.norm.0.{w}",
    },
    layer_type="full_attention",
)


# Mellum.
BESIDE_IN_WINDOWS = replace(BESIDE, layer_type="sliding_attention")


class KeepPrediction(Keep):
    """Sets prediction layers aside, where they are not parts of the model by their `arrangement`."""

    def __init__(self, theirs: str | list[str], arrangement: Arrangement, where: Any = None):
        super().__init__(theirs, where)
        self.arrangement = arrangement


def arrangement_of(rules: Iterable[Rule]) -> Arrangement | None:
    """How a family with these rules has prediction layers, None where it has none."""
    return next((rule.arrangement for rule in rules if isinstance(rule, KeepPrediction)), None)


def stacked(config: ZooConfig) -> ZooConfig:
    """The prediction layers of a config, as the layers of a model."""
    view = config.mtp_layer_config()
    for name in per_layer_names(type(config)):
        entries = getattr(view, name)
        if isinstance(entries, list) and len(entries) == 1:
            setattr(view, name, entries * config.num_mtp_layers)
    view.num_hidden_layers = config.num_mtp_layers
    return view


def prediction_rules(rules: list[Rule], config: ZooConfig) -> list[Rule]:
    """The rules for the prediction layers of a config, made from those for the layers of its family."""
    arrangement = arrangement_of(rules)
    if arrangement is None or not config.num_mtp_layers:
        return []
    view, shift = stacked(config), arrangement.first(config)

    def moved(rule: Rule) -> Rule:
        """The rule for a layer of a model -> the same for a prediction layer."""
        new = copy(rule)
        new.theirs = [Pattern(one.text.replace(LAYER, arrangement.block)) for one in rule.theirs]
        new.ours = [Pattern(one.text.replace(LAYER, OURS)) for one in rule.ours]
        new.index = (lambda values: {"i": values["i"] - shift}, lambda values: {"i": values["i"] + shift})
        new.context = lambda config, values: Context(view, values, len(new.theirs))
        new.where = lambda ctx: 0 <= ctx.layer < view.num_hidden_layers and (rule.where is None or rule.where(ctx))
        return new

    own = [Rule(theirs, ours) for theirs, ours in arrangement.ends.items()]
    own += [Keep(theirs) for theirs in arrangement.copies]
    of_layers = [rule for rule in rules if rule.index is None and not isinstance(rule, KeepPrediction)]
    of_layers = [rule for rule in of_layers if all(LAYER in one.text for one in (*rule.theirs, *rule.ours))]
    counted = [moved(rule) if "i" in rule.theirs[0].placeholders else rule for rule in own]
    return [*counted, *map(moved, of_layers), moved(Rule(LAYER + "{*}", LAYER + "{*}"))]


def found_in(aside: dict[str, Rule], names: dict[str, str], config: ZooConfig, raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config for prediction layers among the tensors set `aside`, {} where there are none.

    `names`: each of these -> as the rules see it; config.json may say their type.
    """
    arrangement = arrangement_of(aside.values())
    if arrangement is None:
        return {}
    layers = Pattern(arrangement.block + "{*}")
    found = [layers.match(names[name]) for name, rule in aside.items() if isinstance(rule, KeepPrediction)]
    numbers = sorted({values["i"] for values in found if values is not None})
    first = arrangement.first(config)
    if not numbers or numbers != list(range(first, first + len(numbers))):
        return {}
    return arrangement.fields(config, len(numbers), type_in(raw))


def type_in(raw: dict[str, Any]) -> str | None:
    """The type of these layers, where config.json says it."""
    return next(iter(raw.get("mtp_layer_types") or []), None)


def fits(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether a plan gives the prediction layers of a model every tensor in its shape, and no other."""
    found, wanted = (
        {name: tensor.shape for name, tensor in tensors.items() if name.startswith("mtp.")}
        for tensors in (outputs, expected)
    )
    return found == wanted


def said_by(config: ZooConfig, rules: list[Rule], raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that the tensors of the prediction layers of a model, and config.json, will say when they are read
    again; {} where a family with these rules has none."""
    arrangement = arrangement_of(rules)
    if arrangement is None or not config.num_mtp_layers:
        return {}
    return arrangement.fields(config, config.num_mtp_layers, type_in(raw))


def promise(raw: dict[str, Any], count: int, known: Collection[str]) -> None:
    """Says in the part of a config.json about the text model how many prediction layers there are: by the key it has
    for that, by one of those that its class knows, or by the usual one."""
    wanted = [*(key for key in COUNTS if key in raw), *(key for key in COUNTS if key in known), COUNTS[0]]
    if (raw.get(wanted[0]) or 0) != count:
        raw[wanted[0]] = count
