"""What families of compressed attention share: stored names, which rotation and rate a type of layer has, sizes."""

from ..engine.family import Keys, Ours, Theirs
from ..engine.rules import Rule, renames
from ..errors import ConversionError
from .shared_common import expert_rules, tiny
from .shared_gpt import require

SPARSE, HEAVY, SLIDING = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
RATES = {SPARSE: "mla_config.compressed_sparse_rate", HEAVY: "mla_config.heavily_compressed_rate"}
INDEX = ("index_topk", "index_n_heads", "index_head_dim")
LAYER = "model.layers.{i}."
COMPRESSED = {"wkv": "kv_proj", "wgate": "gate_proj", "norm": "kv_norm"}
ATTENTION = {
    "wq_a": "q_a_proj", "q_norm": "q_a_layernorm", "wq_b": "q_b_proj", "wkv": "k_proj", "norm": "k_norm",
    "wo_a": "o_a_proj", "wo_b": "o_b_proj",
}  # fmt: skip
SHARED = {"w1": "gate", "w3": "up", "w2": "down"}
NAMES = {
    "attn_norm": "attn_norm", "ffn_norm": "mlp_norm", "ffn.gate": "mlp.gate",
    **{f"attn.{one}.{a}": f"self_attn.{one}.{b}" for a, b in COMPRESSED.items() for one in ("compressor",)},
    **{f"attn.indexer.compressor.{a}": f"self_attn.indexer.compressor.{b}" for a, b in COMPRESSED.items()},
    "attn.indexer.wq_b": "self_attn.indexer.wq_b", "attn.indexer.weights_proj": "self_attn.indexer.weights_proj",
    **{f"attn.{a}": f"self_attn.{b}" for a, b in ATTENTION.items()},
    **{f"ffn.shared_experts.{a}": f"mlp.shared_experts.{b}_proj" for a, b in SHARED.items()},
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    require(theirs, attention_bias=False, mlp_bias=False, num_key_value_heads=1, n_shared_experts=1)
    hashed = [kind == "hash_moe" for kind in theirs.mlp_layer_types]
    if hashed != sorted(hashed, reverse=True):
        raise ConversionError(f"mlp_layer_types={theirs.mlp_layer_types}: 'hash_moe' layers come first.")
    used = {*theirs.layer_types}
    tables = {one: theirs.rope_parameters["main" if one == SLIDING else "compress"] for one in sorted(used)}
    keys = {"rope_parameters": tables, "router.num_hash_layers": sum(hashed), "layer_types": list(theirs.layer_types)}
    keys |= {"mlp_layer_types": ["sparse"] * len(hashed)}
    keys |= {field: theirs.compress_rates[one] for one, field in RATES.items() if one in used}
    return keys | {name: getattr(theirs, name) for name in INDEX if SPARSE in used}


def restore(ours: Ours) -> Keys:
    tables, hashed = ours.rope_parameters, ours.router["num_hash_layers"]
    compress = next((tables[one] for one in RATES if one in tables), None)
    main = tables.get(SLIDING) or {**compress, "rope_type": "default"}
    layers = ["hash_moe"] * hashed + ["moe"] * (ours.num_hidden_layers - hashed)
    keys = {"rope_parameters": {"main": main, "compress": compress or main}, "mlp_layer_types": layers}
    keys |= {"layer_types": list(ours.layer_types), "partial_rotary_factor": main.get("partial_rotary_factor", 1.0)}
    keys |= {"compress_rates": {one: getattr(ours, field) or 4 for one, field in RATES.items()}}
    keys |= {name: getattr(ours, name) for name in INDEX if getattr(ours, name) is not None}
    return keys | {"num_nextn_predict_layers": 0}


TINY = tiny(
    num_key_value_heads=..., intermediate_size=..., n_routed_experts=10, num_experts_per_tok=3,
    moe_intermediate_size=28, q_lora_rank=26, o_groups=2, o_lora_rank=7, hc_mult=3, index_topk=4, index_n_heads=18,
    index_head_dim=10, sliding_window=5, partial_rotary_factor=0.5, swiglu_limit=0.9,
)  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}

# Streams, sinks, entries and experts; then what has another name alone.
COMPRESSED_RULES = [
    Rule("model.hc_head.hc_{fn|base|scale}", "model.hc_head.{fn|base|scale}"),
    Rule(LAYER + "hc_attn_{fn|base|scale}", LAYER + "attn_hc.{fn|base|scale}"),
    Rule(LAYER + "hc_ffn_{fn|base|scale}", LAYER + "mlp_hc.{fn|base|scale}"),
    Rule(LAYER + "attn.attn_sink", LAYER + "self_attn.sinks"),
    Rule(LAYER + "attn.compressor.ape", LAYER + "self_attn.compressor.position_bias"),
    Rule(LAYER + "attn.indexer.compressor.ape", LAYER + "self_attn.indexer.compressor.position_bias"),
    Rule(LAYER + "ffn.gate.tid2eid", LAYER + "mlp.gate.tid2eid"),
    Rule(LAYER + "ffn.gate.bias", LAYER + "mlp.gate.e_score_correction_bias"),
    *expert_rules(LAYER + "ffn.experts.{e}.", "w1", "w3", "w2"),
    *renames(NAMES),
]
