"""HyperCLOVA X SEED Think 14B (Naver 2025): Granite with norms on the outputs too; its logits are multiplied."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import renames
from .granite import FIELDS
from .granite import derive as granite
from .granite import restore as restore_granite
from .shared_common import LLAMA_RULES, tiny


def derive(theirs: Theirs) -> Keys:
    block = "sandwich_norm" if theirs.use_post_norm else "pre_norm"
    return granite(theirs) | {"block_type": block, "logits_scaling": 1 / theirs.logits_scaling}


def restore(ours: Ours) -> Keys:
    scales = {"logits_scaling": 1 / ours.logits_scaling, "use_post_norm": ours.block_type == "sandwich_norm"}
    return restore_granite(ours) | scales


FAMILY = Family(
    fields={name: ours for name, ours in FIELDS.items() if name != "logits_scaling"},
    derive=derive,
    restore=restore,
    rules=[*renames({"post_norm1": "attn_output_norm", "post_norm2": "mlp_output_norm"}), *LLAMA_RULES],
    tiny=[
        tiny(
            embedding_multiplier=10.0, residual_multiplier=0.3, attention_multiplier=0.17, logits_scaling=0.125,
        ),
        tiny(use_post_norm=False, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, logits_scaling=0.7),
    ],
)  # fmt: skip
