"""A.X K1 (SK Telecom 2026): DeepSeek-V3 with a norm behind the sum of a layer's experts."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Keep, Rule
from ..errors import ConversionError
from .deepseek_v3 import FAMILY as V3
from .shared_latent import V3_FIXED, listed, restore_listed, tiny_v3

SELECTION, BIASED = "use_score_correction_bias", "noaux_tc"
NORM, OURS = "model.layers.{i}.post_mlp_layernorm.weight", "model.layers.{i}.mlp.output_norm.weight"
SPARSE = {"where": lambda ctx: ctx.config.mlp_layer_types[ctx.layer] == "sparse"}


def derive(theirs: Theirs) -> Keys:
    if not theirs.n_shared_experts:
        raise ConversionError(
            f"n_shared_experts={theirs.n_shared_experts}: the norm behind the sum needs a shared expert: set 1 or more."
        )
    return listed(theirs) | {SELECTION: getattr(theirs, "topk_method", BIASED) == BIASED}


def restore(ours: Ours) -> Keys:
    return restore_listed(ours) | ({} if getattr(ours, SELECTION) else {"topk_method": "none"})


FAMILY = Family(
    fields=V3.fields,
    fixed={name: value for name, value in V3_FIXED.items() if name != SELECTION}
    | {"shared_expert_combination_strategy": "normed_sum"},
    derive=derive,
    restore=restore,
    # Files hold the norm for dense layers too, which have no use for it.
    rules=[*V3.rules, Rule(NORM, OURS, **SPARSE), Keep(NORM)],
    tiny=[
        tiny_v3(mlp_layer_types=["dense", "sparse", "sparse"]),
        tiny_v3(
            first_k_dense_replace=0, n_shared_experts=1, norm_topk_prob=False, routed_scaling_factor=1.7,
            rope_interleave=False, attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-5,
        ),
    ],
)  # fmt: skip
