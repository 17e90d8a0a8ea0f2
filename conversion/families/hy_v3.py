"""Hy3 (Tencent 2026): DeepSeek-V3's router, without groups, over attention with normed queries and keys."""

from ..engine.family import Family, Keys, Theirs
from ..engine.rules import renames
from ..errors import ConversionError
from .shared_common import PREDICTION_LAYERS
from .shared_experts import MOE_FIELDS, QWEN_MOE_RULES, SIGMOID_ROUTER, correction_bias, tiny_experts
from .shared_latent import listed, restore_listed

SHARED = {f"mlp.shared_mlp.{x}_proj": f"mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")}
FIELDS = {name: name for name in ("attention_bias", "mlp_bias", "num_experts", "moe_intermediate_size")}


def derive(theirs: Theirs) -> Keys:
    if not theirs.num_shared_experts:
        raise ConversionError(
            f"num_shared_experts={theirs.num_shared_experts}: transformers builds one as wide as a dense MLP: set 1 or "
            "more."
        )
    return listed(theirs)


FAMILY = Family(
    fields=MOE_FIELDS
    | FIELDS
    | {"num_shared_experts": "n_shared_experts", "router_scaling_factor": "routed_scaling_factor"},
    fixed=SIGMOID_ROUTER | {"qk_norm": "rms_norm"},
    derive=derive,
    restore=restore_listed,
    rules=[
        *PREDICTION_LAYERS,
        *renames(SHARED | {"mlp.router.gate": "mlp.gate"}),
        *correction_bias("mlp.expert_bias", "mlp.e_score_correction_bias"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        tiny_experts(num_shared_experts=2),
        tiny_experts(
            mlp_layer_types=["sparse", "dense", "sparse"], router_scaling_factor=0.7, attention_bias=True,
            tie_word_embeddings=True, rms_norm_eps=1e-6,
        ),
    ],
)  # fmt: skip
