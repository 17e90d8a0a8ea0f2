"""Falcon (Almazrouei et al. 2023): 7B one norm and one key-value head, 40B two norms, 11B groups, RW with ALiBi."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Drop, renames
from ..errors import ConversionError
from .bloom import FAMILY as BLOOM
from .shared_gpt import GPT_FIELDS, PLAIN, TINY_PLAIN

ALIBI = {"position_embedding_type": "alibi", "position_config.alibi_scaled": True, "precision.alibi": "bfloat16"}
TWO_NORMS = {"ln_attn": "attn_norm", "ln_mlp": "mlp_norm"}
GROUPED = {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True, "ffn_hidden_size": 80}


def derive(theirs: Theirs) -> Keys:
    new, norms = theirs.new_decoder_architecture, theirs.num_ln_in_parallel_attn
    if (new and not theirs.parallel_attn) or (not new and theirs.parallel_attn and norms == 2):
        raise ConversionError(
            f"new_decoder_architecture={new}, parallel_attn={theirs.parallel_attn}, num_ln_in_parallel_attn={norms} "
            "builds other norms than it uses: not supported."
        )
    kv_heads = 1 if theirs.multi_query else theirs.num_attention_heads
    block = "parallel_two_norms" if new and norms != 1 else "parallel"
    if not theirs.parallel_attn and not new:
        block = "pre_norm"
    order = {} if block == "pre_norm" else {"precision.parallel_sum_order": "branches_first"}
    positions = ALIBI if theirs.alibi else {"rope_parameters": rope(theirs)}
    layout = {"num_key_value_heads": theirs.num_kv_heads if new else kv_heads, "block_type": block}
    return layout | {"mlp_bias": theirs.bias} | order | positions


def restore(ours: Ours) -> Keys:
    kv_heads, block = ours.num_key_value_heads, ours.block_type
    new = block == "parallel_two_norms" or kv_heads not in (1, ours.num_attention_heads)
    alibi = ours.position_embedding_type == "alibi"
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": (2 if block == "parallel_two_norms" else 1) if new else None,
        "parallel_attn": block != "pre_norm",
        "multi_query": kv_heads == 1,
        "num_kv_heads": kv_heads,
        "alibi": alibi,
    } | ({} if alibi else {"rope_parameters": restore_rope(ours)})


FAMILY = Family(
    fields=GPT_FIELDS
    | {
        "max_position_embeddings": "max_position_embeddings", "use_cache": "use_cache", "activation": "hidden_act",
        "ffn_hidden_size": "intermediate_size", "bias": "attention_bias", "hidden_dropout": "residual_dropout",
        "attention_dropout": "attention_dropout",
    },
    fixed=PLAIN,
    derive=derive,
    restore=restore,
    rules=lambda config: [
        *renames(TWO_NORMS if config.block_type == "parallel_two_norms" else {}, "transformer.h.{i}."),
        *BLOOM.rules,
        Drop("transformer.h.{i}.self_attention.rotary_emb.inv_freq"),
    ],
    base_prefix="transformer.",
    # Their plain attention adds the ALiBi bias twice; the other is the model that was trained.
    tiny=[
        TINY_PLAIN,
        TINY_PLAIN | GROUPED | {"tie_word_embeddings": False},
        TINY_PLAIN | GROUPED | {"num_ln_in_parallel_attn": 1, "rope_theta": 500.0, "activation": "relu"},
        TINY_PLAIN | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
        | {"attn_implementation": "sdpa"},
        TINY_PLAIN | {"multi_query": False, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
)  # fmt: skip
