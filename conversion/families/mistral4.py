"""Mistral Small 4 (Mistral AI 2026): latent attention with a query temperature, experts in groups behind a softmax
router in the model's dtype; experts stored fused."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.rules import Rule
from .ministral3 import BETA
from .ministral3 import derive as temperature
from .ministral3 import restore as restore_temperature
from .shared_experts import dense_first, leading_dense
from .shared_latent import LATENT, V3_FIELDS, V3_RULES, YARN, tiny_v3

FACTOR, LEADING = "partial_rotary_factor", "first_k_dense_replace"
FUSED = "model.layers.{i}.mlp.experts.{gate_up_proj|down_proj}"


def derive(theirs: Theirs) -> Keys:
    """A head there is both parts of a key, of which a share rotates; here the part that rotates is the width."""
    fields = temperature(theirs)
    fields["rope_parameters"].pop(FACTOR, None)
    return fields | {"mlp_layer_types": dense_first(theirs.first_k_dense_replace, theirs.num_hidden_layers)}


def restore(ours: Ours) -> Keys:
    fields = restore_temperature(ours)
    fields["rope_parameters"][FACTOR] = ours.qk_rope_head_dim / ours.qk_head_dim
    return fields | {LEADING: leading_dense(ours)}


ROPE = YARN | {BETA: 0.3, "max_position_embeddings": 64}
FAMILY = Family(
    fields=V3_FIELDS | {"rope_interleave": "rope_interleave"},
    fixed=LATENT | {"precision.router": "activation", "precision.router_weights": "activation",
                    "router.group_mask_value": "zero"},
    derive=derive,
    restore=restore,
    rules=[Rule(FUSED, FUSED), *V3_RULES],
    architecture="Mistral4ForCausalLM",
    oracle="Mistral4ForCausalLM",
    tiny=[
        tiny_v3(first_k_dense_replace=1, rope_parameters=ROPE),
        tiny_v3(
            q_lora_rank=None, rope_interleave=False, attention_bias=True, n_shared_experts=1, norm_topk_prob=False,
            routed_scaling_factor=1.7, tie_word_embeddings=True, pad_token_id=0,
            rope_parameters=ROPE | {BETA: 0.1, "mscale_all_dim": 0.0},
        ),
    ],
)  # fmt: skip
