"""The text model of MiniMax-M3 (MiniMax 2026): an indexer chooses blocks of keys for grouped queries; sigmoid routing,
shared experts and dense MLPs with gpt-oss's clamped unit."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Rule, Split, renames
from ..errors import ConversionError
from .shared_experts import AUX_LOSS, LLAMA_RULES, MIXTRAL_RULES, MOE_FIELDS, MTP_HEADS, correction_bias, tiny_experts

SPARSE, INDEXED, BIAS = "minimax_m3_sparse", "indexed_attention", "e_score_correction_bias"
MLP = "model.layers.{i}.mlp."
AS_THEY_ARE = "experts.gate_up_proj|experts.down_proj|gate.weight|shared_experts.down_proj.weight"
SIZES = ("index_n_heads", "index_head_dim")
APART = [*(f"shared_experts.{x}_proj" for x in ("gate", "up", "down")), "gate_proj", "up_proj"]
INDEXER = [f"{x}_{kind}" for x in "qk" for kind in ("proj", "norm")]


def fused(place: str) -> Rule:
    """A gate and an up projection, one above the other in transformers' files, apart in published ones."""
    apart = [f"{MLP}{place}{x}_proj.weight" for x in ("gate", "up")]
    return Rule(f"{MLP}{place}gate_up_proj.weight", apart, Split(parts=2))


def derive(theirs: Theirs) -> Keys:
    if "sparse" not in theirs.mlp_layer_types:
        raise ConversionError("mlp_layer_types has no 'sparse' layer: that is no MiniMax-M3, which is made of experts.")
    fields = {"rope_parameters": rope(theirs, partial=True)}
    fields["layer_types"] = [INDEXED if kind == SPARSE else kind for kind in theirs.layer_types]
    if "dense" in theirs.mlp_layer_types:
        unit = {"limit": theirs.swiglu_limit, "alpha": theirs.swiglu_alpha, "up_offset": 1.0}
        fields |= {f"swiglu_config.dense_{key}": value for key, value in unit.items()}
    size, sizes = theirs.index_block_size, {name: getattr(theirs, name) for name in SIZES}
    blocks = {"index_topk": theirs.index_topk_blocks * size, "indexer.local_blocks": theirs.index_local_blocks}
    return fields | (sizes | blocks | {"indexer.block_size": size} if SPARSE in theirs.layer_types else {})


def restore(ours: Ours) -> Keys:
    keys = {"rope_parameters": restore_rope(ours)}
    keys["layer_types"] = [SPARSE if kind == INDEXED else kind for kind in ours.layer_types]
    sizes = {name: getattr(ours, name) for name in SIZES}
    blocks = {f"index_{name}": ours.indexer[name] for name in ("block_size", "local_blocks")}
    count = ours.index_topk and {"index_topk_blocks": ours.index_topk // ours.indexer["block_size"]}
    return keys | sizes | blocks | count if count else keys


TINY = tiny_experts(
    num_experts=..., num_local_experts=10, moe_intermediate_size=..., intermediate_size=28, dense_intermediate_size=80,
    shared_intermediate_size=36, index_n_heads=2, index_head_dim=14, index_block_size=3, index_topk_blocks=2,
    layer_types=["full_attention", SPARSE, SPARSE], swiglu_limit=1.1, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FAMILY = Family(
    fields={name: ours for name, ours in (MOE_FIELDS | AUX_LOSS).items() if name != "hidden_act"}
    | {
        "num_local_experts": "num_experts", "intermediate_size": "moe_intermediate_size",
        "dense_intermediate_size": "intermediate_size", "shared_intermediate_size": "shared_expert_intermediate_size",
        "routed_scaling_factor": "routed_scaling_factor", "swiglu_limit": "swiglu_limit",
        "swiglu_alpha": "swiglu_config.alpha", "mlp_layer_types": "mlp_layer_types",
    },
    fixed={
        "norm_unit_offset": True, "qk_norm": "rms_norm", "n_shared_experts": 1, "scoring_func": "sigmoid",
        "use_score_correction_bias": True, "router.norm_topk_eps": 0.0, "swiglu_config.up_offset": 1.0,
    },
    derive=derive, restore=restore,
    rules=[
        Rule(f"{MLP}{{{AS_THEY_ARE}}}", f"{MLP}{{{AS_THEY_ARE}}}"), fused(""), fused("shared_experts."),
        *correction_bias(f"mlp.gate.{BIAS}", f"block_sparse_moe.{BIAS}"),
        *renames({f"self_attn.index{x}{name}": f"self_attn.indexer.{name}" for x in ("er.", "_") for name in INDEXER}),
        *renames({f"{x}.{name}": f"mlp.{name}" for x in ("block_sparse_moe", "mlp") for name in APART}),
        *MTP_HEADS, *MIXTRAL_RULES, *LLAMA_RULES,
    ],
    tiny=[
        TINY | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
        TINY | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            "layer_types": [SPARSE, "full_attention", SPARSE], "index_n_heads": 1, "index_head_dim": 9,
            "index_block_size": 2, "index_topk_blocks": 4, "index_local_blocks": 2, "tie_word_embeddings": True,
            "swiglu_alpha": 1.3, "routed_scaling_factor": 0.7, "rms_norm_eps": 1e-5,
        },
        TINY | {"layer_types": ["full_attention"] * 3, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    ],
)  # fmt: skip
