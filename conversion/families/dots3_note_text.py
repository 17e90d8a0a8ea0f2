"""dots3 (dots.llm 2026), text: DeepSeek-V3.2 with scaled latents, a norm on the shared key and a gate per head; three
of four layers slide, with heads and ranks of their own."""

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope
from ..engine.rules import renames
from .shared_common import restore_window_fields, window_fields
from .shared_latent import INDEX_FIELDS, V3_FIELDS, V3_FIXED, V3_RULES, listed, tiny_indexed

SLIDING, INDEXED = "sliding_attention", "indexed_attention"
INDEX = [name for name in INDEX_FIELDS if name != "layer_types"]
OWN = (
    "num_attention_heads", "num_key_value_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim",
)  # fmt: skip
NAMES = {"g_proj": "output_gate.g_proj", "k_rope_only_layernorm": "k_rope_layernorm"}
WIDTH = "shared_expert_intermediate_size"


def usual_layer(config: Theirs | Ours) -> int:
    """The first layer that does not slide, if there is one."""
    return next((index for index, kind in enumerate(config.layer_types) if kind != SLIDING), 0)


def derive(theirs: Theirs) -> Keys:
    layers = [{name: getattr(layer, name) for name in OWN} for layer in theirs.per_layer_config]
    usual = layers[usual_layer(theirs)]
    own = {index: dict(one.items() - usual.items()) for index, one in enumerate(layers)}
    tables = listed(theirs)["rope_parameters"]
    keys = listed(theirs) | window_fields(theirs) | usual | {"mla_config.norm_eps": theirs.rms_norm_eps}
    keys["rope_parameters"] = {kind: tables[kind] for kind in dict.fromkeys(theirs.layer_types)}
    keys["per_layer_config"] = {index: one for index, one in own.items() if one} or None
    keys[WIDTH] = theirs.n_shared_experts * theirs.shared_experts_intermediate_size
    if INDEXED in theirs.layer_types:
        keys |= {name: getattr(theirs, name) for name in INDEX} | {"indexer.norm_eps": 1e-6}
    return keys


def restore(ours: Ours) -> Keys:
    sliding = [index for index, kind in enumerate(ours.layer_types) if kind == SLIDING]
    layer, own = ours.per_layer_config[usual_layer(ours)], {}
    usual = {name: getattr(layer, name) for name in OWN}
    for index in sliding:
        layer = ours.per_layer_config[index]
        own[str(index)] = {name: getattr(layer, name) for name in OWN}
        own[str(index)]["head_dim"] = layer.qk_nope_head_dim + layer.qk_rope_head_dim
    keys = (
        restore_window_fields(ours) | usual | {"mlp_layer_types": list(ours.mlp_layer_types), "per_layer_config": own}
    )
    tables = restore_rope(ours)
    tables = dict.fromkeys(ours.layer_types, tables) if "rope_type" in tables else tables
    keys["rope_parameters"] = {kind: dict(table) for kind, table in tables.items()}
    keys |= {name: getattr(ours, name) for name in INDEX if INDEXED in ours.layer_types}
    return keys | {"shared_experts_intermediate_size": getattr(ours, WIDTH) // ours.n_shared_experts}


FAMILY = Family(
    fields={name: ours for name, ours in V3_FIELDS.items() if name not in OWN},
    fixed=V3_FIXED
    | {
        "rope_interleave": True, "indexer.rope_interleave": True, "attn_output_gate": "headwise",
        "mla_config.rope_key_norm": True, "mla_config.scale_q_lora": True, "mla_config.scale_kv_lora": True,
    },
    derive=derive,
    restore=restore,
    rules=[*renames({f"self_attn.{theirs}": f"self_attn.{ours}" for theirs, ours in NAMES.items()}), *V3_RULES],
    tiny=[
        tiny_indexed(
            layer_types=[INDEXED, SLIDING, INDEXED], sliding_window=5, shared_experts_intermediate_size=9,
            swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=22, swa_kv_lora_rank=30,
            swa_head_dim=25, swa_qk_nope_head_dim=17, swa_v_head_dim=13, pad_token_id=0, rms_norm_eps=1e-3,
        ),
        tiny_indexed(
            layer_types=[INDEXED] * 3, mlp_layer_types=["sparse", "dense", "sparse"], attention_bias=True,
            tie_word_embeddings=True, index_topk=50, n_group=1, topk_group=1, norm_topk_prob=False, pad_token_id=0,
            shared_experts_intermediate_size=9,
        ),
    ],
)  # fmt: skip
