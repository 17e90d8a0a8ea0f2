"""Command R, R+ and Aya (Cohere 2024): attention and MLP side by side after one norm without shift, pairs rotated."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

FIELDS = {name: ours for name, ours in LLAMA_FIELDS.items() if name != "rms_norm_eps"}
FIELDS |= {"layer_norm_eps": "norm_eps", "attention_bias": "attention_bias"}
FIXED = {
    "norm_type": "layer_norm", "norm_bias": False, "precision.norm": "float32", "block_type": "parallel",
    "rope_interleave": True, "precision.rope": "float32_qk",
}  # fmt: skip
QK_NORM = {"qk_norm": "layer_norm", "qk_norm_config.weight": "per_head"}


def derive(theirs: Theirs) -> Keys:
    return {"rope_parameters": rope(theirs), "logits_scaling": 1 / theirs.logit_scale}


def restore(ours: Ours) -> Keys:
    return {"rope_parameters": restore_rope(ours), "logit_scale": 1 / ours.logits_scaling}


FAMILY = Family(
    fields=FIELDS,
    fixed=FIXED,
    derive=lambda theirs: derive(theirs) | (QK_NORM if theirs.use_qk_norm else {}),
    restore=lambda ours: restore(ours) | {"use_qk_norm": ours.qk_norm is not None},
    rules=LLAMA_RULES,
    tiny=[
        tiny(head_dim=..., use_qk_norm=True, logit_scale=0.125),
        tiny(head_dim=..., attention_bias=True, tie_word_embeddings=False, logit_scale=0.8),
        tiny(layer_norm_eps=1e-6, use_qk_norm=True),
    ],
)
