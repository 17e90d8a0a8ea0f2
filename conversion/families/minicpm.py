"""MiniCPM 1B, 2B, 8x2B and MiniCPM4 (Hu et al. 2024, arXiv 2404.06395): Llama with scaled embeddings, residuals and
logits; Mixtral's experts in one of them."""

from math import sqrt

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import old_rope, published_config, restore_old_rope
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, expert_rules, tiny
from .shared_gpt import require

FIELDS = LLAMA_FIELDS | {"attention_bias": "attention_bias", "scale_emb": "embedding_multiplier"}


def derive(theirs: Theirs) -> Keys:
    require(theirs, pretraining_tp=1, sparse_config=None)
    routed = {"num_experts": theirs.num_experts, "num_experts_per_tok": theirs.num_experts_per_tok}
    routed |= {"router.norm_topk_eps": 0.0, "precision.router_weights": "activation"}
    scales = {
        "residual_multiplier": theirs.scale_depth / sqrt(theirs.num_hidden_layers),
        "logits_scaling": theirs.hidden_size / theirs.dim_model_base,
    }
    return old_rope(theirs) | scales | (routed if theirs.num_experts else {})


def restore(ours: Ours) -> Keys:
    # The digits that a division and a multiplication by the same root leave alone.
    depth = round(ours.residual_multiplier * sqrt(ours.num_hidden_layers), 12)
    base = round(ours.hidden_size / ours.logits_scaling, 6)
    routed = {"num_experts": ours.num_experts or 0, "num_experts_per_tok": ours.num_experts_per_tok or 2}
    return restore_old_rope(ours) | {"scale_depth": depth, "dim_model_base": base} | routed


SCALES = {"scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 19}
FAMILY = Family(
    config_class=published_config(
        "minicpm", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=None, hidden_act="silu", max_position_embeddings=2048,
        initializer_range=0.02, rms_norm_eps=1e-6, use_cache=True, pad_token_id=None, bos_token_id=1, eos_token_id=2,
        pretraining_tp=1, tie_word_embeddings=True, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
        attention_dropout=0.0, scale_emb=1, dim_model_base=1, scale_depth=1, num_experts=0, num_experts_per_tok=2,
        sparse_config=None,
    ),
    architecture="MiniCPMForCausalLM",
    fields=FIELDS,
    fixed={"precision.rope": "float32_qk"},
    derive=derive,
    restore=restore,
    rules=[*expert_rules("model.layers.{i}.mlp.experts.{e}.", "w1", "w3", "w2"), *LLAMA_RULES],
    tiny=[
        tiny(head_dim=..., **SCALES),
        tiny(head_dim=..., **SCALES, num_experts=10, num_experts_per_tok=3, tie_word_embeddings=False),
        tiny(head_dim=..., attention_bias=True, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}),
    ],
)  # fmt: skip
