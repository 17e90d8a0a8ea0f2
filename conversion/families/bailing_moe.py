"""Ling and Ring 1 and 2 (inclusionAI 2025, arXiv 2503.05139, 2510.22115): Llama under GLM's names with many small
experts; the second generation has DeepSeek-V3's router, norms on queries and keys, and turns half of each head."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import old_rope, published_config, restore_old_rope
from ..engine.rules import Rule, Split, renames
from ..errors import ConversionError
from .shared_common import PREDICTION_LAYERS
from .shared_experts import MOE_FIELDS, QWEN_MOE_RULES, SIGMOID_ROUTER, dense_first, leading_dense, tiny_experts
from .shared_gpt import K, Q, V, require

STORED, SHARED_WIDTH = "model.layers.{i}.attention.", "moe_shared_expert_intermediate_size"
NAMES = {"dense": "o_proj", "query_layernorm": "q_norm", "key_layernorm": "k_norm"}
ROUTED = ("num_experts", "moe_intermediate_size", "norm_topk_prob", "routed_scaling_factor")


def derive(theirs: Theirs) -> Keys:
    require(theirs, norm_head=False, use_rmsnorm=True, use_bias=False)
    fields = old_rope(theirs) | {"mlp_layer_types": dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)}
    if theirs.partial_rotary_factor != 1.0:
        fields["rope_parameters"]["partial_rotary_factor"] = theirs.partial_rotary_factor
    fields |= {"qk_norm": "rms_norm"} if theirs.use_qk_norm else {}
    fields |= {"attention_bias": theirs.use_qkv_bias, "n_shared_experts": theirs.num_shared_experts}
    if theirs.num_shared_experts:
        inner = getattr(theirs, SHARED_WIDTH) or theirs.moe_intermediate_size
        fields["shared_expert_intermediate_size"] = theirs.num_shared_experts * inner
    biased, scores = theirs.moe_router_enable_expert_bias, theirs.score_function
    if scores != ("sigmoid" if biased else "softmax"):
        raise ConversionError(f"moe_router_enable_expert_bias={biased}, score_function={scores!r}: not both.")
    if not biased:
        return fields | {"precision.router": "float32_linear"}
    groups = {"n_group": theirs.n_group, "topk_group": theirs.topk_group} if theirs.n_group else {}
    return fields | SIGMOID_ROUTER | groups


def restore(ours: Ours) -> Keys:
    keys = {"first_k_dense_replace": leading_dense(ours), "use_qk_norm": ours.qk_norm is not None}
    keys |= {"use_qkv_bias": ours.attention_bias, "num_shared_experts": ours.n_shared_experts}
    keys |= {"moe_router_enable_expert_bias": ours.use_score_correction_bias, "n_group": ours.n_group}
    keys |= {"topk_group": ours.topk_group, "score_function": ours.scoring_func, "num_nextn_predict_layers": 0}
    keys["partial_rotary_factor"] = ours.rope_parameters.get("partial_rotary_factor", 1.0)
    if ours.n_shared_experts:
        keys[SHARED_WIDTH] = ours.shared_expert_intermediate_size // ours.n_shared_experts
    scaling = restore_old_rope(ours)
    (scaling["rope_scaling"] or {}).pop("partial_rotary_factor", None)
    return keys | scaling


SECOND = {"moe_router_enable_expert_bias": True, "score_function": "sigmoid", "use_qk_norm": True}
FAMILY = Family(
    config_class=published_config(
        "bailing_moe", vocab_size=157184, hidden_size=2048, intermediate_size=5120, num_hidden_layers=20,
        num_attention_heads=16, num_key_value_heads=4, hidden_act="silu", use_qkv_bias=False, use_bias=False,
        rms_norm_eps=1e-6, norm_head=False, tie_word_embeddings=False, attention_dropout=0.0, initializer_range=0.02,
        max_position_embeddings=32768, rope_theta=600000.0, rope_scaling=None, partial_rotary_factor=1.0,
        use_cache=True, pad_token_id=None, bos_token_id=None, eos_token_id=None, num_experts=256, num_shared_experts=1,
        num_experts_per_tok=8, n_group=None, topk_group=None, moe_intermediate_size=512, first_k_dense_replace=0,
        head_dim=128, output_router_logits=False, use_qk_norm=False, use_rmsnorm=True, norm_topk_prob=True,
        moe_router_enable_expert_bias=False, routed_scaling_factor=1.0, score_function="softmax",
        num_nextn_predict_layers=0, moe_shared_expert_intermediate_size=None,
    ),
    architecture="BailingMoeV2ForCausalLM",
    fields=MOE_FIELDS | {name: name for name in ROUTED},
    fixed={"attention_out_bias": False},
    derive=derive,
    restore=restore,
    rules=[
        *PREDICTION_LAYERS,
        Rule("model.word_embeddings.weight", "model.embed_tokens.weight"),
        Rule(STORED + "query_key_value.{w}", [Q, K, V], Split("q", "k", "v")),
        *renames(NAMES, STORED, "model.layers.{i}.self_attn."),
        Rule("model.layers.{i}.mlp.gate.expert_bias", "model.layers.{i}.mlp.gate.e_score_correction_bias"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        tiny_experts(num_shared_experts=2, first_k_dense_replace=1),
        tiny_experts(**SECOND, n_group=5, topk_group=2, partial_rotary_factor=0.5, routed_scaling_factor=1.7),
        tiny_experts(**SECOND, num_shared_experts=0, norm_topk_prob=False, tie_word_embeddings=True, use_qkv_bias=True),
    ],
)  # fmt: skip
