"""The text model of Qwen3-VL-30B-A3B and 235B-A22B (Qwen team 2025): Qwen3-MoE, whose weights of experts always sum to
one.

Published files hold the experts of a layer as one tensor with the channels that it reads first, `[E, D, 2I]` and
`[E, I, D]`; those that transformers writes hold them as it computes with them, `[E, 2I, D]` and `[E, D, I]`.
"""

from dataclasses import replace

from torch import Tensor

from ..engine.family import Keys, Theirs, rope
from ..engine.rules import Context, EachOp, Rule
from .qwen3_omni_moe_text import FAMILY as QWEN3_OMNI_MOE
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, stepped

EXPERTS = "model.layers.{i}.mlp.experts."


class ReadsFirst(EachOp):
    """Swaps the last two dimensions of experts, unless they come as zoo has them: `ours`, a size of the first of both.

    A square is as zoo has it, as transformers reads it.
    """

    def __init__(self, ours: str):
        self.ours = ours

    def to_ours(self, tensor: Tensor, ctx: Context) -> Tensor:
        return tensor if tensor.shape[-2] == ctx.size(self.ours) else tensor.transpose(-2, -1)

    def to_theirs(self, tensor: Tensor, ctx: Context) -> Tensor:
        same = tensor.shape[-2] == tensor.shape[-1] or tensor.shape in ctx.shapes
        return tensor if same else tensor.transpose(-2, -1)


def derive(theirs: Theirs) -> Keys:
    return {"rope_parameters": rope(theirs)} | stepped(theirs)


FAMILY = replace(
    QWEN3_OMNI_MOE,
    fields={name: ours for name, ours in QWEN3_OMNI_MOE.fields.items() if name not in {"norm_topk_prob", *AUX_LOSS}},
    fixed=QWEN3_OMNI_MOE.fixed | {"norm_topk_prob": True, "router.norm_topk_eps": 0.0},
    derive=derive,
    rules=[
        Rule(EXPERTS + "gate_up_proj", EXPERTS + "gate_up_proj", ReadsFirst("moe_intermediate_size*2")),
        Rule(EXPERTS + "down_proj", EXPERTS + "down_proj", ReadsFirst("hidden_size")),
        *LLAMA_RULES,
    ],
)
