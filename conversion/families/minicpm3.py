"""MiniCPM3 (Hu et al. 2024, arXiv 2404.06395; OpenBMB): latent attention in a dense model with scaled embeddings,
residuals and logits."""

from math import sqrt

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from .shared_common import LLAMA_RULES
from .shared_latent import LATENT, LATENT_FIELDS, tiny_latent

LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 7.0],
    "original_max_position_embeddings": 12,
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    scales = {
        "residual_multiplier": theirs.scale_depth / sqrt(theirs.num_hidden_layers),
        "logits_scaling": theirs.logits_scaling,
    }
    return {"rope_parameters": rope(theirs)} | scales


def restore(ours: Ours) -> Keys:
    # The digits that a division and a multiplication by the same root leave alone.
    depth = round(ours.residual_multiplier * sqrt(ours.num_hidden_layers), 12)
    base = round(ours.hidden_size / ours.logits_scaling)
    return {"rope_parameters": restore_rope(ours), "scale_depth": depth, "dim_model_base": base}


FAMILY = Family(
    fields=LATENT_FIELDS | {"mlp_bias": "mlp_bias", "scale_emb": "embedding_multiplier"},
    fixed=LATENT | {"precision.embedding_multiplier_in_weight_dtype": True},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        tiny_latent(scale_emb=3, dim_model_base=19),
        tiny_latent(
            q_lora_rank=None, v_head_dim=..., attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
            scale_depth=0.9, dim_model_base=None, rope_parameters=LONG,
        ),
    ],
)  # fmt: skip
