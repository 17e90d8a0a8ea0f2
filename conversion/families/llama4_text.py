"""Llama 4 Scout and Maverick (Meta 2025), the text model: chunked layers that rotate, full ones that do not.

Each expert multiplies its input, not its output, by the sigmoid of its logit; one shared expert; every second layer may
be dense. Queries and keys are normalised after the rotation, and where there is none scaled by their position.
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, Transpose, renames
from .shared_common import LLAMA_RULES
from .shared_experts import MOE_FIELDS, tiny_experts

MLP, OURS = "model.layers.{i}.feed_forward.", "model.layers.{i}.mlp."
QK_NORM = {"qk_norm": "rms_norm", "qk_norm_config": {"weight": "none", "position": "after_rope", "layers": "rope"}}


def derive(theirs: Theirs) -> Keys:
    rotates, layer_types, width = list(theirs.no_rope_layers), list(theirs.layer_types), theirs.intermediate_size
    fields = QK_NORM if theirs.use_qk_norm else {}
    if theirs.attn_temperature_tuning and not all(rotates):
        fields = fields | {
            "attn_temperature.layers": "no_rope", "attn_temperature.scale": theirs.attn_scale,
            "attn_temperature.floor_scale": theirs.floor_scale, "attn_temperature.offset": 1,
        }  # fmt: skip
    sparse = [index in theirs.moe_layers for index in range(theirs.num_hidden_layers)]
    return fields | {
        "rope_parameters": rope(theirs), "no_rope_layers": None if all(rotates) else rotates,
        "layer_types": layer_types,
        "attention_chunk_size": theirs.attention_chunk_size if "chunked_attention" in layer_types else None,
        "mlp_layer_types": ["sparse" if one else "dense" for one in sparse], "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width,
    }  # fmt: skip


def restore(ours: Ours) -> Keys:
    fields = {"use_qk_norm": ours.qk_norm is not None, "intermediate_size": ours.moe_intermediate_size}
    if ours.attention_chunk_size is not None:
        fields["attention_chunk_size"] = ours.attention_chunk_size
    tuned = ours.attn_temperature["layers"] is not None
    if ours.no_rope_layers is not None:
        fields["attn_temperature_tuning"] = tuned
    if tuned:
        fields |= {"attn_scale": ours.attn_temperature["scale"], "floor_scale": ours.attn_temperature["floor_scale"]}
    return fields | {
        "rope_parameters": restore_rope(ours), "layer_types": list(ours.layer_types),
        "no_rope_layers": ours.no_rope_layers or [1] * ours.num_hidden_layers,
        "moe_layers": [index for index, mlp in enumerate(ours.mlp_layer_types) if mlp == "sparse"],
    }  # fmt: skip


NAMES = {f"shared_expert.{x}_proj": f"shared_experts.{x}_proj" for x in ("gate", "up", "down")} | {"router": "gate"}
TINY = tiny_experts(
    num_experts=..., num_local_experts=10, moe_intermediate_size=..., intermediate_size=28, intermediate_size_mlp=80,
    attention_chunk_size=6, floor_scale=4,
)  # fmt: skip

FAMILY = Family(
    fields={name: ours for name, ours in MOE_FIELDS.items() if name != "intermediate_size"}
    | {
        "intermediate_size_mlp": "intermediate_size", "num_local_experts": "num_experts",
        "attention_bias": "attention_bias",
    },
    fixed={
        "rope_interleave": True, "precision.rope": "float32_trig", "scoring_func": "sigmoid",
        "router.score_after_topk": True, "router.weight_on_input": True, "norm_topk_prob": False,
        "precision.router_weights": "activation",
    },
    derive=derive,
    restore=restore,
    rules=[
        *renames(NAMES | {f"{x}_proj": f"{x}_proj" for x in ("gate", "up", "down")}, MLP, OURS),
        *(Rule(f"{MLP}experts.{x}", f"{OURS}experts.{x}", Transpose()) for x in ("gate_up_proj", "down_proj")),
        *LLAMA_RULES,
    ],
    tiny=[
        TINY | {"num_hidden_layers": 5, "num_experts_per_tok": 1},
        TINY | {"interleave_moe_layer_step": 2, "use_qk_norm": False, "attention_bias": True, "num_hidden_layers": 4,
                "tie_word_embeddings": True, "no_rope_layers": [0, 1, 1, 0], "attn_temperature_tuning": False},
        TINY | {"no_rope_layers": [1, 1, 1], "rms_norm_eps": 1e-6},
    ],
)  # fmt: skip
