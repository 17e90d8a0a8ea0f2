"""StarCoder 2 (Lozhkov et al. 2024): Llama's attention with biases, layer norms and GPT-2's MLP."""

from ..engine.family import COMMON_FIELDS, Family, restore_rope, rope
from ..engine.rules import renames
from .shared_common import LLAMA_RULES, tiny
from .shared_gpt import PLAIN

FAMILY = Family(
    fields=COMMON_FIELDS
    | {
        "norm_epsilon": "norm_eps", "use_bias": "attention_bias", "sliding_window": "sliding_window",
        "residual_dropout": "residual_dropout", "embedding_dropout": "embedding_dropout",
    },
    fixed=PLAIN,
    derive=lambda theirs: {"rope_parameters": rope(theirs), "mlp_bias": theirs.use_bias},
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[*LLAMA_RULES, *renames({"mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"})],
    tiny=[
        tiny(head_dim=...),
        tiny(sliding_window=5, use_bias=False, tie_word_embeddings=False),
        tiny(norm_epsilon=1e-3, hidden_act="relu", rope_scaling={"rope_type": "linear", "factor": 2.0}),
    ],
)  # fmt: skip
