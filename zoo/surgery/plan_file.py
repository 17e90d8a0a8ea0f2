"""Several operations in order, and the texts for them, from a file.

source: owner/model
operations:
  - set: {attention_type: latent, kv_lora_rank: 16, qk_rope_head_dim: 8}
    method: rotated
    layers: all                     # 0,2-4 | auto:2
  - set: {num_experts: 8, num_experts_per_tok: 2}
  - apply: stream_rotation          # an operation that changes no field
    method: hadamard
calibrate: text.txt
heal: {text: text.txt, steps: 150, train: all, learning_rate: 1.0e-3, layerwise: 80}
evaluate: text.txt
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .healing import Healing
from .merge_plan import read_yaml, refuse_others
from .operation import SurgeryError, refuse_values

KEYS = {"source", "operations", "calibrate", "heal", "evaluate", "at_most", "to", "dtype", "seed"}
HEALING = {one.name for one in fields(Healing)}


@dataclass
class Change:
    """Fields that are wanted, in which layers, by which method."""

    fields: dict[str, Any]
    method: str | None = None
    layers: Any = None
    apply: str | None = None  # instead of fields, an operation that changes none


@dataclass
class SurgeryPlan:
    """The file, read: what `operate` takes."""

    source: str | None
    changes: list[Change]
    options: dict[str, Any] = field(default_factory=dict)


def read_plan(plan: str | Path | dict[str, Any]) -> SurgeryPlan:
    """Raises SurgeryError for keys that mean nothing, or where nothing is to be done."""
    content = read_yaml(plan)
    refuse_others(content, KEYS, "the plan")
    changes = []
    refuse_values({"operations": (content.get("operations"), list), "to": (content.get("to"), str)})
    for one in content.get("operations") or []:
        refuse_others(one, {"set", "apply", "method", "layers"}, "an operation")
        if ("apply" in one) == ("set" in one):
            raise SurgeryError(f"{one!r}: an operation says either set or apply.")
        refuse_values({"method": (one.get("method"), str), "apply": (one.get("apply"), str)})
        if "set" in one and not (isinstance(one["set"], dict) and one["set"]):
            raise SurgeryError(f"{one!r} sets nothing.")
        changes.append(Change(one.get("set", {}), one.get("method"), one.get("layers"), one.get("apply")))
    if not changes:
        raise SurgeryError("the plan has no operations.")
    options = {name: content[name] for name in ("at_most", "to", "dtype", "seed") if name in content}
    options |= {name: text_of(content[name]) for name in ("calibrate", "evaluate") if name in content}
    if "heal" in content:
        heal = content["heal"] if isinstance(content["heal"], dict) else {"text": content["heal"]}
        refuse_others(heal, {"text", *HEALING}, "heal")
        options["heal"] = text_of(heal)
        options["healing"] = Healing(**{name: value for name, value in heal.items() if name != "text"})
    return SurgeryPlan(content.get("source"), changes, options)


def text_of(given: Any) -> str:
    """A file of text, or its table. Raises SurgeryError for what names none."""
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise SurgeryError(f"{given!r} names no text.")
    return text
