"""Chameleon (Chameleon team 2024), the text model: Llama with a layer norm per head on queries and keys."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Keep, renames
from ..errors import ConversionError
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

QK_NORM = {
    "qk_norm": "layer_norm",
    "qk_norm_config.weight": "per_head",
    "qk_norm_config.bias": True,
    "qk_norm_config.eps": 1e-5,
}
SWIN_NORMS = {"input_layernorm": "attn_output_norm", "post_attention_layernorm": "mlp_output_norm"}
IMAGES = {"<image>": 7, "IMGIMGAA": 90, "IMGIMGAB": 93, "IMGIMGAC": 97}
VQ = {
    "embed_dim": 4, "num_embeddings": 3, "latent_channels": 4, "resolution": 8, "base_channels": 32,
    "channel_multiplier": [1, 1], "num_res_blocks": 1,
}  # fmt: skip
TINY = {"vocabulary_map": IMAGES, "vq_config": VQ, "head_dim": ...}


def derive(theirs: Theirs) -> Keys:
    # They never speak an image: the tokens of its codebook are excluded from the output.
    images = [token for name, token in (theirs.vocabulary_map or {}).items() if name.startswith("IMGIMG")]
    return {
        "rope_parameters": rope(theirs),
        "block_type": "output_norm" if theirs.swin_norm else "pre_norm",
        "suppressed_token_ids": sorted(images) or None,
    }


def restore(ours: Ours) -> Keys:
    if not (ours.source_config or {}).get("vocabulary_map"):
        raise ConversionError("chameleon has an image tokenizer: only a model converted from it can be converted back.")
    return {"rope_parameters": restore_rope(ours), "swin_norm": ours.block_type == "output_norm"}


FAMILY = Family(
    fields={name: ours for name, ours in LLAMA_FIELDS.items() if name != "head_dim"}
    | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    fixed=QK_NORM,
    derive=derive,
    restore=restore,
    rules=lambda config: [
        Keep("model.vqmodel.{*}"),
        *renames(SWIN_NORMS if config.block_type == "output_norm" else {}),
        *LLAMA_RULES,
    ],
    reads="chameleon",
    architecture="ChameleonForConditionalGeneration",
    oracle="ChameleonForConditionalGeneration",
    tiny=[
        tiny(**TINY),
        tiny(**TINY, swin_norm=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
    ],
)
