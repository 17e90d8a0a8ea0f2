"""Ling 3.0 Flash (inclusionAI 2026): five layers whose state forgets channel by channel, within a bound, to one of
latent attention with a gate for every head, and DeepSeek-V3's experts.

Everything of a mixer is stored under `attention.`, its last projection as `dense`, whatever the kind of layer.
"""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Concat, Rule, renames
from .shared_experts import QWEN_MOE_RULES, SIGMOID_FIELDS, correction_bias
from .shared_latent import PREDICTION_LAYERS, V3_FIXED, YARN, tiny_v3, with_ranks
from .shared_linear import ATTENTION, KEYS, LAYER, MIXER, is_attention, is_recurrent, kimi_delta, restore_kimi_delta

STORED = LAYER + "attention."


def derive(theirs: Theirs) -> Keys:
    fields = kimi_delta(theirs) | {"rope_parameters": rope(theirs)}
    if "linear_attention_type" not in fields:
        return fields
    bounded = theirs.kda_safe_gate
    return fields | {
        "linear_attn_config.decay": "bounded_sigmoid" if bounded else "softplus",
        "linear_attn_config.lower_bound": theirs.kda_lower_bound if bounded else None,
        "precision.linear_decay": "activation", "precision.linear_float32_parameters": True,
    }  # fmt: skip


def restore(ours: Ours) -> Keys:
    fields = restore_kimi_delta(ours) | {"rope_parameters": restore_rope(ours), "num_nextn_predict_layers": 0}
    if ours.linear_attention_type is None:
        return fields
    bound = ours.linear_attn_config["lower_bound"]
    fields |= {"head_dim": ours.linear_key_head_dim, "short_conv_kernel_size": ours.linear_conv_kernel_dim}
    return fields | {"kda_safe_gate": bound is not None} | ({} if bound is None else {"kda_lower_bound": bound})


KINDS = {MIXER: is_recurrent, ATTENTION: is_attention}


def mixer(theirs: str, ours: str, held: str | None = None, of: str = MIXER) -> list[Rule]:
    """Rules for a tensor of a recurrence, or `of` attention, as files have it and as transformers holds it (`held`, if
    not under one name)."""
    return [Rule(name, of + ours, where=KINDS[of]) for name in (STORED + theirs, ATTENTION + (held or theirs))]


TINY = tiny_v3(
    n_routed_experts=..., q_lora_rank=..., num_local_experts=10, num_hidden_layers=4, head_dim=10, layer_group_size=3,
    first_k_dense_replace=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FAMILY = Family(
    fields=with_ranks(SIGMOID_FIELDS)
    | {"num_local_experts": "num_experts", "n_shared_experts": "n_shared_experts"},
    fixed=V3_FIXED | {"attn_output_gate": "headwise", "rope_interleave": True},
    derive=derive,
    restore=restore,
    rules=[
        *PREDICTION_LAYERS,
        *(
            Rule([f"{place}{x}_conv1d.weight" for x in "qkv"], f"{MIXER}conv1d.weight", Concat(KEYS, KEYS, KEYS))
            for place in (STORED, ATTENTION)
        ),
        *mixer("f_proj.weight", "a_proj.weight", "forget_gate.f_proj.weight"),
        *(rule for name in ("A_log", "dt_bias") for rule in mixer(name, name, f"forget_gate.{name}")),
        *mixer("g_proj.weight", "output_gate.g_proj.weight", of=ATTENTION),
        *(rule for of in KINDS for rule in mixer("dense.{w}", "o_proj.{w}", "o_proj.{w}", of)),
        *(rule for of in KINDS for rule in mixer("{*}", "{*}", of=of)),
        *renames({"word_embeddings": "embed_tokens"}, "model.", "model."),
        *correction_bias("mlp.gate.expert_bias"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        TINY,
        TINY | {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"], "num_hidden_layers": 3,
            "mlp_layer_types": ["sparse", "dense", "sparse"], "short_conv_kernel_size": 3, "kda_safe_gate": False,
            "attention_bias": True, "rms_norm_eps": 1e-3, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
            "routed_scaling_factor": 1.7, "hidden_act": "gelu", "rope_parameters": YARN, "n_shared_experts": 1,
        },
    ],
)  # fmt: skip
