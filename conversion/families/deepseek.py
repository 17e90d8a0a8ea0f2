"""DeepSeekMoE 16B (Dai et al. 2024, arXiv 2401.06066): Llama with many small experts, some of which every token visits;
the first layer is dense."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import old_rope, published_config, restore_old_rope
from .shared_common import LLAMA_RULES
from .shared_experts import AUX_LOSS, MOE_FIELDS, QWEN_MOE_RULES, tiny_experts
from .shared_gpt import require

NAMES = ("attention_bias", "moe_intermediate_size", "norm_topk_prob")


def derive(theirs: Theirs) -> Keys:
    require(theirs, pretraining_tp=1, scoring_func="softmax")
    routed, first, step = theirs.n_routed_experts, theirs.first_k_dense_replace, theirs.moe_layer_freq
    sparse = [routed and index >= first and index % step == 0 for index in range(theirs.num_hidden_layers)]
    fields = old_rope(theirs) | {"mlp_layer_types": ["sparse" if one else "dense" for one in sparse]}
    return fields | {"num_experts": routed, "n_shared_experts": theirs.n_shared_experts}


def restore(ours: Ours) -> Keys:
    sparse = [index for index, mlp in enumerate(ours.mlp_layer_types) if mlp == "sparse"]
    first, step = (sparse[0] if sparse else 0), (sparse[1] - sparse[0] if len(sparse) > 1 else 1)
    keys = {"first_k_dense_replace": first, "moe_layer_freq": step, "n_routed_experts": ours.num_experts}
    return restore_old_rope(ours) | keys | {"n_shared_experts": ours.n_shared_experts or None}


TINY = tiny_experts(num_experts=..., n_routed_experts=10, n_shared_experts=2, head_dim=...)
FAMILY = Family(
    config_class=published_config(
        "deepseek", vocab_size=102400, hidden_size=4096, intermediate_size=11008, moe_intermediate_size=1407,
        num_hidden_layers=30, num_attention_heads=32, num_key_value_heads=None, n_shared_experts=None,
        n_routed_experts=None, num_experts_per_tok=None, moe_layer_freq=1, first_k_dense_replace=0,
        norm_topk_prob=False, scoring_func="softmax", aux_loss_alpha=0.001, seq_aux=True, hidden_act="silu",
        max_position_embeddings=2048, initializer_range=0.02, rms_norm_eps=1e-6, use_cache=True, pad_token_id=None,
        bos_token_id=100000, eos_token_id=100001, pretraining_tp=1, tie_word_embeddings=False, rope_theta=10000.0,
        rope_scaling=None, attention_bias=False, attention_dropout=0.0,
    ),
    architecture="DeepseekForCausalLM",
    fields=MOE_FIELDS | {name: name for name in NAMES} | {"aux_loss_alpha": AUX_LOSS["router_aux_loss_coef"]},
    fixed={"precision.router": "activation"},
    derive=derive,
    restore=restore,
    rules=[*QWEN_MOE_RULES, *LLAMA_RULES],
    tiny=[
        TINY | {"first_k_dense_replace": 1},
        TINY | {"n_shared_experts": None, "norm_topk_prob": True, "tie_word_embeddings": True, "attention_bias": True},
        TINY | {"num_hidden_layers": 4, "moe_layer_freq": 2, "rope_theta": 500.0},
    ],
)  # fmt: skip
