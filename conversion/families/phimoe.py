"""Phi-3.5-MoE (Abdin et al. 2024): layer norms, and two experts picked one after the other by SparseMixer.

transformers' rotation "longrope" here always uses the short factors and scales by `short_mscale` or `long_mscale`; an
ordinary one with equal factors says the same as long as the two scales agree, as they do in what is published.
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import renames
from ..errors import ConversionError
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MIXTRAL_RULES, MOE_FIELDS, tiny_experts


def derive(theirs: Theirs) -> Keys:
    parameters = rope(theirs)
    kind = parameters["rope_type"]
    if kind == "default":
        return {"rope_parameters": parameters}
    short, long = parameters.pop("short_mscale"), parameters.pop("long_mscale")
    if kind != "longrope" or short != long:
        raise ConversionError(
            f"rope_parameters has rope_type={kind!r} with short_mscale={short} and long_mscale={long}: "
            "phimoe is converted with rope_type 'default', or 'longrope' with two equal scales."
        )
    return {"rope_parameters": parameters | {"long_factor": parameters["short_factor"], "attention_factor": short}}


def restore(ours: Ours) -> Keys:
    parameters = restore_rope(ours)
    if "attention_factor" in parameters:
        scale = parameters.pop("attention_factor")
        parameters |= {"short_mscale": scale, "long_mscale": scale}
    return {"rope_parameters": parameters}


FIELDS = {name: ours for name, ours in MOE_FIELDS.items() if name != "num_experts_per_tok"} | AUX_LOSS
TINY = tiny_experts(
    num_experts=..., num_local_experts=10, head_dim=..., moe_intermediate_size=..., intermediate_size=28
)
TINY |= {"num_experts_per_tok": 2}
LONG = {
    "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0] * 4,
    "short_mscale": 1.25, "long_mscale": 1.25, "original_max_position_embeddings": 16,
}  # fmt: skip

FAMILY = Family(
    fields=FIELDS
    | {
        "num_local_experts": "num_experts", "sliding_window": "sliding_window", "attention_bias": "attention_bias",
        "lm_head_bias": "lm_head_bias", "router_jitter_noise": "router.sparsemixer_jitter_eps",
        "input_jitter_noise": "router.jitter_noise",
    },
    fixed={
        "norm_type": "layer_norm", "scoring_func": "sparsemixer", "num_experts_per_tok": 2,
        "precision.router": "activation", "precision.router_weights": "activation",
    },
    derive=derive,
    restore=restore,
    rules=[*MIXTRAL_RULES, *renames({"mlp.router": "mlp.gate"}), *LLAMA_RULES],
    tiny=[
        TINY | {"attention_bias": True, "lm_head_bias": True, "rope_parameters": LONG, "router_jitter_noise": 0.2},
        TINY | {"tie_word_embeddings": True, "sliding_window": 5, "rms_norm_eps": 1e-6, "input_jitter_noise": 0.1},
    ],
)  # fmt: skip
