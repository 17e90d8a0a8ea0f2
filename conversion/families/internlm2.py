"""InternLM2 and 2.5 (Cai et al. 2024, arXiv 2403.17297): Llama with queries, keys and values in one tensor, group by
group."""

from ..engine.family import Family, Keys, Theirs
from ..engine.published_config import old_rope, published_config, restore_old_rope
from ..engine.rules import Drop, Rule, renames
from .shared_common import LLAMA_FIELDS, tiny
from .shared_gpt import grouped_qkv, require

LAYER = "model.layers.{i}."
GATED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
NAMES = {"attention.wo": "self_attn.o_proj", "attention_norm": "attn_norm", "ffn_norm": "mlp_norm"}
NAMES |= {f"feed_forward.{theirs}": f"mlp.{ours}" for theirs, ours in GATED.items()}


def derive(theirs: Theirs) -> Keys:
    require(theirs, pretraining_tp=1)
    return old_rope(theirs)


FAMILY = Family(
    config_class=published_config(
        "internlm2", vocab_size=103168, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=None, hidden_act="silu", max_position_embeddings=2048,
        initializer_range=0.02, rms_norm_eps=1e-6, use_cache=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        pretraining_tp=1, tie_word_embeddings=False, bias=True, rope_theta=10000.0, rope_scaling=None,
    ),
    architecture="InternLM2ForCausalLM",
    fields=LLAMA_FIELDS | {"bias": "attention_bias"},
    derive=derive,
    restore=restore_old_rope,
    rules=[
        Rule("model.tok_embeddings.weight", "model.embed_tokens.weight"),
        Rule("output.weight", "lm_head.weight"),
        grouped_qkv(f"{LAYER}attention.wqkv"),
        *renames(NAMES),
        Drop(f"{LAYER}attention.rotary_emb.inv_freq"),
    ],
    tiny=[
        tiny(head_dim=..., bias=False),
        tiny(head_dim=..., num_key_value_heads=..., tie_word_embeddings=True, rope_theta=500.0, rms_norm_eps=1e-5),
        tiny(head_dim=..., rope_scaling={"type": "linear", "factor": 2.0}),
    ],
)  # fmt: skip
