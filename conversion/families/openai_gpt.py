"""GPT (Radford et al. 2018): norms after the sums, none before the head, learned positions."""

from ..engine.family import Family
from ..engine.rules import renames
from .gpt2 import RULES
from .shared_gpt import BIASED, GPT2_FIELDS, TINY_GPT2

# Their "gelu" is the tanh form.
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
BACK = {"gelu_new": "gelu"}
ABSENT = ("n_inner", "activation_function", "use_cache")

FAMILY = Family(
    fields={name: ours for name, ours in GPT2_FIELDS.items() if name not in ABSENT},
    fixed=BIASED | {"position_embedding_type": "learned", "block_type": "post_norm", "final_norm": False},
    derive=lambda theirs: {"hidden_act": ACTIVATIONS[theirs.afn]},
    restore=lambda ours: {"afn": BACK.get(ours.hidden_act, ours.hidden_act)},
    rules=[
        *renames({"tokens_embed": "embed_tokens", "positions_embed": "embed_positions"}, "transformer.", "model."),
        *renames({"ln_1": "attn_output_norm", "ln_2": "mlp_output_norm"}, "transformer.h.{i}."),
        *RULES,
    ],
    base_prefix="transformer.",
    tiny=[TINY_GPT2, TINY_GPT2 | {"afn": "swish", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}],
)
