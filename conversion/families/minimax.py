"""MiniMax-Text-01 (MiniMax 2025, arXiv 2501.08313): lightning attention with one softmax layer among several, experts
in every layer, and sums whose residual is what came out of the norm, each with two factors.

Its files hold the decays of lightning attention too, worked out for blocks of a given size.
"""

from collections.abc import Callable

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Drop, Split
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MIXTRAL_RULES, MOE_FIELDS, tiny_experts
from .shared_linear import ATTENTION, DECAYS, MIXER, decays, is_recurrent, recurrent_rule

SUMS = [f"{part}_{factor}" for part in ("full_attn", "linear_attn", "mlp") for factor in ("alpha", "beta")]
FACTORS = {f"{name}_factor": f"residual_factors.{name}" for name in SUMS}
OWN_EPS = 1e-6


def derive(theirs: Theirs) -> Keys:
    slides = theirs.sliding_window is not None
    layer_types = [
        "sliding_attention" if slides and kind != "linear_attention" else kind for kind in theirs.layer_types
    ]
    fields = {"layer_types": layer_types, "rope_parameters": rope(theirs)}
    absent = () if "linear_attention" in layer_types else ("linear_attn",)
    absent += () if set(layer_types) - {"linear_attention"} else ("full_attn",)
    fields |= {ours: getattr(theirs, name) for name, ours in FACTORS.items() if not name.startswith(absent)}
    if "sliding_attention" in layer_types:
        fields["sliding_window"] = theirs.sliding_window
    if "linear_attention" in layer_types:
        heads = theirs.num_attention_heads
        fields |= {
            "linear_attention_type": "lightning_attention", "linear_num_value_heads": heads,
            "linear_key_head_dim": theirs.head_dim or theirs.hidden_size // heads,
            "linear_attn_config.act": theirs.hidden_act, "linear_attn_config.norm_eps": OWN_EPS,
        }  # fmt: skip
    return fields


def restore(ours: Ours) -> Keys:
    layer_types = ["full_attention" if kind == "sliding_attention" else kind for kind in ours.layer_types]
    fields = {"layer_types": layer_types, "rope_parameters": restore_rope(ours), "sliding_window": ours.sliding_window}
    return fields | {name: getattr(ours, field) or 1 for name, field in FACTORS.items()}


def buffers(ours: Ours, raw: Keys) -> dict[str, Callable]:
    """The decays of every lightning layer of a model that did not bring its own."""
    sizes = (ours.num_attention_heads, ours.num_hidden_layers, raw["block_size"])
    return {
        f"model.layers.{i}.self_attn.{name}": lambda i=i, name=name: decays(sizes[0], i, *sizes[1:])[name]
        for i, kind in enumerate(ours.layer_types) if kind == "linear_attention" for name in DECAYS
    }  # fmt: skip


NAMES = {"out_proj": "o_proj", "output_gate": "g_proj", "norm": "o_norm"}
TINY = tiny_experts(num_experts=..., num_local_experts=10, moe_intermediate_size=..., intermediate_size=28)
FACTORED = dict(zip(FACTORS, (1.3, 0.7, 0.9, 1.2, 1.1, 0.8), strict=True))

FAMILY = Family(
    fields=MOE_FIELDS | AUX_LOSS | {"num_local_experts": "num_experts", "router_jitter_noise": "router.jitter_noise"},
    fixed={"block_type": "pre_norm_residual", "norm_topk_prob": True, "router.norm_topk_eps": 0.0},
    derive=derive,
    restore=restore,
    buffers=buffers,
    rules=[
        Drop([f"{ATTENTION}{name}" for name in DECAYS], where=is_recurrent),
        recurrent_rule(f"{ATTENTION}qkv_proj.weight", [f"{MIXER}{x}_proj.weight" for x in "qkv"],
                       Split(*["linear_key_head_dim"] * 3, groups="linear_num_value_heads")),
        *(recurrent_rule(f"{ATTENTION}{theirs}.weight", f"{MIXER}{ours}.weight") for theirs, ours in NAMES.items()),
        *MIXTRAL_RULES, *LLAMA_RULES,
    ],
    tiny=[
        TINY | FACTORED | {"num_hidden_layers": 4},
        TINY | FACTORED | {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"], "sliding_window": 5,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "hidden_act": "gelu", "router_jitter_noise": 0.1,
        },
    ],
)  # fmt: skip
