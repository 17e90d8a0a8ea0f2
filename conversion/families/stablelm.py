"""StableLM (Stability AI 2023; Bellagente et al. 2024): Llama with layer norms and a rotation of a quarter head."""

from ..engine.family import COMMON_FIELDS, Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, Stack
from .shared_common import LLAMA_RULES, tiny

QK_NORM = {"qk_norm": "layer_norm", "qk_norm_config.weight": "per_head"}


def derive(theirs: Theirs) -> Keys:
    block = "parallel" if theirs.use_parallel_residual else "pre_norm"
    norms = QK_NORM if theirs.qk_layernorm else {}
    return {"rope_parameters": rope(theirs, partial=True), "block_type": block} | norms


def restore(ours: Ours) -> Keys:
    return {
        "rope_parameters": restore_rope(ours),
        "use_parallel_residual": ours.block_type == "parallel",
        "qk_layernorm": ours.qk_norm is not None,
    }


FAMILY = Family(
    fields={name: ours for name, ours in COMMON_FIELDS.items() if name != "head_dim"}
    | {"layer_norm_eps": "norm_eps", "use_qkv_bias": "attention_bias", "hidden_dropout": "residual_dropout"},
    fixed={"norm_type": "layer_norm", "attention_out_bias": False},
    derive=derive,
    restore=restore,
    rules=[
        *LLAMA_RULES,
        *(
            Rule(
                f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{h}}.weight",
                f"model.layers.{{i}}.self_attn.{x}_norm.weight",
                Stack(),
            )
            for x in "qk"
        ),
    ],
    tiny=[
        tiny(head_dim=..., num_attention_heads=3, num_key_value_heads=3),
        tiny(head_dim=..., use_qkv_bias=True, qk_layernorm=True, partial_rotary_factor=0.5, layer_norm_eps=1e-3),
        tiny(head_dim=..., use_parallel_residual=True, tie_word_embeddings=True, partial_rotary_factor=1.0),
        tiny(head_dim=..., use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.75),
    ],
)
