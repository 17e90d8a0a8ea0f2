"""DBRX (Databricks 2024): 16 experts, four per token; queries, keys and values are clamped; layer norms without bias.

The published file keeps the base of the rotation in `attn_config`, where transformers' own class no longer looks.
"""

from ..engine.family import COMMON_FIELDS, Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Concat, Reshape, Rule, Split, Transpose, renames
from ..errors import ConversionError

BLOCK, OURS = "transformer.blocks.{i}.", "model.layers.{i}."
ATTN, EXPERTS = BLOCK + "norm_attn_norm.attn.", BLOCK + "ffn.experts.mlp."
SIZES = ("moe_intermediate_size", "hidden_size")
UNFOLD = Reshape(("num_experts*moe_intermediate_size", "hidden_size"), ("num_experts", *SIZES))


def prepare(raw: Keys) -> Keys:
    theta = (raw.get("attn_config") or {}).get("rope_theta")
    known = theta is None or "rope_parameters" in raw or "rope_theta" in raw
    return raw if known else raw | {"rope_theta": theta}


def derive(theirs: Theirs) -> Keys:
    attention, experts = theirs.attn_config, theirs.ffn_config
    power = experts.moe_normalize_expert_weights
    if power not in (None, 1):
        raise ConversionError(f"ffn_config has moe_normalize_expert_weights={power}: only 1 and null are converted.")
    return {
        "rope_parameters": rope(theirs), "clip_qkv": attention.clip_qkv, "num_key_value_heads": attention.kv_n_heads,
        "attention_dropout": attention.attn_pdrop, "intermediate_size": experts.ffn_hidden_size,
        "num_experts": experts.moe_num_experts, "num_experts_per_tok": experts.moe_top_k,
        "hidden_act": experts.ffn_act_fn["name"], "router.jitter_noise": experts.moe_jitter_eps or 0.0,
        "router_aux_loss_coef": experts.moe_loss_weight, "norm_topk_prob": power == 1,
        "router.norm_topk_eps": 0.0 if power == 1 else None,
    }  # fmt: skip


def restore(ours: Ours) -> Keys:
    parameters = restore_rope(ours)
    attention = {
        "attn_pdrop": ours.attention_dropout, "clip_qkv": ours.clip_qkv, "kv_n_heads": ours.num_key_value_heads,
        "rope_theta": parameters["rope_theta"],
    }  # fmt: skip
    experts = {
        "ffn_hidden_size": ours.moe_intermediate_size, "ffn_act_fn": {"name": ours.hidden_act},
        "moe_num_experts": ours.num_experts, "moe_top_k": ours.num_experts_per_tok,
        "moe_jitter_eps": ours.router["jitter_noise"] or None, "moe_loss_weight": ours.router_aux_loss_coef,
        "moe_normalize_expert_weights": 1.0 if ours.norm_topk_prob else None,
    }  # fmt: skip
    return {"rope_parameters": parameters, "attn_config": attention, "ffn_config": experts}


ABSENT = {"intermediate_size", "num_key_value_heads", "head_dim", "hidden_act", "attention_dropout"}
ATTENTION = {"kv_n_heads": 2, "clip_qkv": 1.1, "rope_theta": 1e4}
FFN = {"ffn_hidden_size": 28, "moe_num_experts": 10, "moe_top_k": 3}
RAW = {"moe_jitter_eps": 0.1, "moe_normalize_expert_weights": None, "ffn_act_fn": {"name": "gelu"}}
TINY = {"d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 64, "vocab_size": 101}

FAMILY = Family(
    fields={name: name for name in [*COMMON_FIELDS, "output_router_logits"] if name not in ABSENT}
    | {"resid_pdrop": "residual_dropout", "emb_pdrop": "embedding_dropout"},
    fixed={"norm_type": "layer_norm", "norm_bias": False, "norm_eps": 1e-5}
    | {"precision.router": "activation", "precision.router_weights": "activation"},
    prepare=prepare,
    derive=derive,
    restore=restore,
    rules=[
        *renames({"wte": "embed_tokens", "norm_f": "norm"}, "transformer.", "model."),
        Rule(ATTN + "Wqkv.{w}", [OURS + f"self_attn.{x}_proj.{{w}}" for x in "qkv"], Split("q", "k", "v")),
        *renames({"norm_attn_norm.attn.out_proj": "self_attn.o_proj", "norm_attn_norm.norm_1": "attn_norm",
                  "norm_attn_norm.norm_2": "mlp_norm", "ffn.router.layer": "mlp.gate"}, BLOCK),
        Rule([EXPERTS + "w1", EXPERTS + "v1"], OURS + "mlp.experts.gate_up_proj", UNFOLD, Concat(parts=2, dim=1)),
        Rule(EXPERTS + "w2", OURS + "mlp.experts.down_proj", UNFOLD, Transpose()),
    ],
    base_prefix="transformer.",
    tiny=[
        TINY | {"attn_config": ATTENTION, "ffn_config": FFN},
        TINY | {"attn_config": ATTENTION | {"clip_qkv": 0.7}, "ffn_config": FFN | RAW},
    ],
)  # fmt: skip
