"""CodeGen (Nijkamp et al. 2022): GPT-J with queries, values and keys fused in four blocks."""

from ..engine.family import Family
from ..engine.rules import Rule, Split
from .gptj import FIXED, RULES, derive, restore
from .shared_gpt import GPT2_FIELDS, TINY_GPT2, K, Q, V

# Rows [4, (q, v, k), heads / 4, head_dim]: the shards of the training run.
QVK = Split("q/4", "q/4", "q/4", groups=4)
TINY = TINY_GPT2 | {"n_head": 8, "n_embd": 48, "rotary_dim": 4}

FAMILY = Family(
    fields=GPT2_FIELDS,
    fixed=FIXED | {"precision.rope": "float32_trig"},
    derive=derive,
    restore=restore,
    rules=[*RULES, Rule("transformer.h.{i}.attn.qkv_proj.{w}", [Q, V, K], QVK)],
    base_prefix="transformer.",
    tiny=[TINY, TINY | {"rotary_dim": 6, "n_inner": 80, "layer_norm_epsilon": 1e-3}],
)
