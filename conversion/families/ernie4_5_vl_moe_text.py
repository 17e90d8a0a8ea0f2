"""The text model of ERNIE 4.5 VL 28B-A3B and 424B-A47B (Baidu 2025): ERNIE 4.5 with experts, beside which stand those
that only pictures reach, in a router of their own.

Files count the experts of text first, then those of pictures; of the selection biases, `[2, E]`, text has the first
row. The router is stored transposed.
"""

from dataclasses import replace

from ..engine.family import Keys, Ours, Theirs
from ..engine.rules import Context, RowOf, Rule, Transpose
from .ernie4_5 import FAMILY as ERNIE
from .ernie4_5_moe import BIAS, OURS
from .ernie4_5_moe import FAMILY as ERNIE_MOE
from .shared_common import LLAMA_RULES, expert_rules
from .shared_experts import NO_SHARED_EXPERTS

GATE = "model.layers.{i}.mlp.gate.weight"
WIDTHS = "moe_intermediate_size"


def derive(theirs: Theirs) -> Keys:
    mlps = {"mlp_layer_types": list(theirs.mlp_layer_types), WIDTHS: theirs.moe_intermediate_size[0]}
    return ERNIE.derive(theirs) | mlps


def restore(ours: Ours) -> Keys:
    said = ours.source_config or {}
    of_pictures = said.get("text_config", said).get(WIDTHS, [None, 512])[1]
    mlps = {"mlp_layer_types": list(ours.mlp_layer_types), WIDTHS: [ours.moe_intermediate_size, of_pictures]}
    return ERNIE.restore(ours) | mlps


def of_text(ctx: Context) -> bool:
    return ctx.values.get("e", 0) < ctx.config.num_experts


FAMILY = replace(
    ERNIE_MOE,
    fields={name: ours for name, ours in ERNIE_MOE.fields.items() if name != WIDTHS},
    derive=derive,
    restore=restore,
    rules=[
        RowOf("model.layers.{i}.mlp." + BIAS, OURS),
        Rule(GATE, GATE, Transpose()),
        NO_SHARED_EXPERTS,
        *expert_rules(where=of_text),
        *LLAMA_RULES,
    ],
    tiny=(),
)
