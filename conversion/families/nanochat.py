"""nanochat (Karpathy 2025): no norm has a weight, embeddings are normalised too, queries and keys after the rotation.

It rotates by the negative angle: with the halves of every head swapped that is the ordinary rotation.
"""

from ..engine.family import Family, restore_rope, rope
from ..engine.rules import Rule, SwapHalves, renames
from .shared_common import LLAMA_FIELDS, ROPE_BUFFERS, tiny
from .shared_starts import depth_scaled_attention

ATTENTION = "model.layers.{i}.self_attn."

FAMILY = Family(
    fields=LLAMA_FIELDS | {"attention_bias": "attention_bias", "final_logit_softcapping": "final_logit_softcapping"},
    fixed={
        "norm_elementwise_affine": False, "embedding_norm": True, "gated_mlp": False,
        "qk_norm": "rms_norm", "qk_norm_config.weight": "none", "qk_norm_config.position": "after_rope",
    },
    derive=lambda theirs: {"rope_parameters": rope(theirs)} | depth_scaled_attention(theirs),
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    rules=[
        Rule(ATTENTION + "q_proj.{w}", ATTENTION + "q_proj.{w}", SwapHalves()),
        Rule(ATTENTION + "k_proj.{w}", ATTENTION + "k_proj.{w}", SwapHalves()),
        *renames({"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}),
        *ROPE_BUFFERS,
    ],
    tiny=[
        tiny(head_dim=...),
        tiny(head_dim=..., attention_bias=True, tie_word_embeddings=True, final_logit_softcapping=None),
    ],
)  # fmt: skip
