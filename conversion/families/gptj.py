"""GPT-J (Wang & Komatsuzaki 2021): attention and MLP side by side after one norm, interleaved partial rotation."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Drop, renames
from .shared_gpt import GPT2_FIELDS, PLAIN, TINY_GPT2, rotary_factor

FIXED = PLAIN | {
    "mlp_bias": True, "lm_head_bias": True, "block_type": "parallel", "precision.parallel_sum_order": "branches_first",
    "rope_interleave": True, "precision.attention_upcast": True,
}  # fmt: skip


def derive(theirs: Theirs) -> Keys:
    head_dim = theirs.hidden_size // theirs.num_attention_heads
    factor = rotary_factor(theirs.rotary_dim, head_dim)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}}


def restore(ours: Ours) -> Keys:
    return {"rotary_dim": int(ours.head_dim * ours.rope_parameters.get("partial_rotary_factor", 1.0))}


RULES = [
    *renames({"wte": "embed_tokens", "ln_f": "norm"}, "transformer.", "model."),
    *renames(
        {"ln_1": "attn_norm", "attn.out_proj": "self_attn.o_proj"}
        | {"mlp.fc_in": "mlp.up_proj", "mlp.fc_out": "mlp.down_proj"},
        "transformer.h.{i}.",
    ),
    Drop("transformer.h.{i}.attn.{bias|masked_bias|causal_mask|embed_positions}"),
]

FAMILY = Family(
    fields=GPT2_FIELDS,
    fixed=FIXED,
    derive=derive,
    restore=restore,
    rules=[*RULES, *renames({f"attn.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"}, "transformer.h.{i}.")],
    base_prefix="transformer.",
    tiny=[
        TINY_GPT2 | {"rotary_dim": 6},
        TINY_GPT2 | {"rotary_dim": 8, "n_inner": 80, "activation_function": "relu", "tie_word_embeddings": True},
    ],
)
