"""What a layer must have for a field to be read, and the check that every field that is set is read by one.

A field says its need beside its kind: `flag(needs="softmax")`. A value other than the field's default that no layer
reads is refused, never ignored: here for what a layer must have (`NEEDS`), by the checks of its group for what the
model must have (`GROUP_NEEDS`).
"""

from dataclasses import Field
from typing import Any

from transformers import PreTrainedConfig

from .field_settings import described
from .vocabulary import (
    ATTENDING_LAYERS,
    CHUNKED,
    COMPRESSED_LAYERS,
    COMPRESSED_SPARSE,
    FACTORED_ATTENTIONS,
    GATED_NORM_BLOCKS,
    HEAVILY_COMPRESSED,
    HYBRID_LAYERS,
    HYBRID_SLIDING,
    INDEXED,
    LAUREL_BLOCKS,
    SLIDING,
    WEIGHTED_BLOCKS,
    WITH_RECURRENCE,
)


class UnreadField(ValueError):
    """A field is set that no layer reads; `field` is its name."""

    def __init__(self, field: str, value: Any, reason: str):
        super().__init__(f"{field}={value!r} only means something with {reason}: leave it out or change that.")
        self.field = field


def has_softmax(layer: PreTrainedConfig, index: int) -> bool:
    return layer.layer_types[index] in ATTENDING_LAYERS


def has_later_softmax(layer: PreTrainedConfig, index: int) -> bool:
    return index > 0 and has_softmax(layer, index)


def rotates(layer: PreTrainedConfig, index: int) -> bool:
    return layer.position_embedding_type == "rope" and has_softmax(layer, index) and _turns(layer, index)


def _turns(layer, index: int) -> bool:
    return layer.rope_parameters is None or layer.rope_table_of(index) is not None


def has_sinks(layer: PreTrainedConfig, index: int) -> bool:
    return has_softmax(layer, index) and layer.has_attention_sinks(index)


def has_temperature(layer: PreTrainedConfig, index: int) -> bool:
    return has_softmax(layer, index) and layer.has_attention_temperature(index)


def has_mlp(layer: PreTrainedConfig, index: int) -> bool:
    return layer.block_types[index] != "mixer_only"


def has_experts(layer: PreTrainedConfig, index: int) -> bool:
    return has_mlp(layer, index) and layer.mlp_layer_types[index] == "sparse"


def has_plain_mlp(layer: PreTrainedConfig, index: int) -> bool:
    beside_experts = layer.n_shared_experts or layer.moe_latent_size is not None
    return has_mlp(layer, index) and (not has_experts(layer, index) or bool(beside_experts))


def has_gated_dense_mlp(layer: PreTrainedConfig, index: int) -> bool:
    own = layer.has_dense_mlp(index) and layer.block_types[index] != "shared_block"
    return layer.gated_mlp and own


def has_gated_experts(layer: PreTrainedConfig, index: int) -> bool:
    return layer.gated_mlp and has_experts(layer, index)


def has_gated_mlp(layer: PreTrainedConfig, index: int) -> bool:
    return layer.gated_mlp and has_mlp(layer, index)


def has_gated_shared_experts(layer: PreTrainedConfig, index: int) -> bool:
    return has_gated_experts(layer, index) and bool(layer.n_shared_experts)


def has_clamped_mlp(layer: PreTrainedConfig, index: int) -> bool:
    own = layer.swiglu_config
    of_experts = has_experts(layer, index) and (layer.swiglu_limit or own["shared_limit"])
    return bool(of_experts or (own["dense_limit"] and has_gated_dense_mlp(layer, index)))


def has_norm_weight(layer: PreTrainedConfig, index: int) -> bool:
    own = layer.qk_norm == layer.norm_type and layer.qk_norm_config["weight"] != "none"
    return layer.norm_elementwise_affine or own


def has_scaled_embedding(layer: PreTrainedConfig, index: int) -> bool:
    return layer.embedding_multiplier != 1


def mixes_values(layer: PreTrainedConfig, index: int) -> bool:
    return layer.mixes_values(index)


def has_factors(layer: PreTrainedConfig, index: int) -> bool:
    return layer.has_factors(index)


def has_key_factors(layer: PreTrainedConfig, index: int) -> bool:
    return layer.has_factors(index, of_keys=True)


def has_latent_query(layer: PreTrainedConfig, index: int) -> bool:
    return layer.has_factors(index) and not layer.has_factors(index, of_keys=True)


NEEDS = {
    "softmax": (has_softmax, "a layer of layer_types with softmax attention"),
    "later softmax": (has_later_softmax, "a layer of layer_types with softmax attention after the first layer"),
    "sinks": (has_sinks, "a layer of layer_types with softmax attention that it names"),
    "temperature": (has_temperature, "a layer with softmax attention that it names (no_rope_layers says which rotate)"),
    "rotation": (rotates, "a layer with softmax attention that rotates (position_embedding_type, no_rope_layers)"),
    "value residual": (mixes_values, "a layer that mixes in the values of another (attention_type 'value_residual')"),
    "factors": (has_factors, f"an attention_type of {list(FACTORED_ATTENTIONS)}"),
    "key factors": (has_key_factors, "attention_type='tensor_product'"),
    "latent query": (has_latent_query, "attention_type='multi_matrix_factorization'"),
    "mlp": (has_mlp, "a layer with an MLP, which block_type='mixer_only' lacks"),
    "plain mlp": (has_plain_mlp, "a layer with a dense MLP, shared experts or moe_latent_size"),
    "gated mlp": (has_gated_mlp, "a layer with an MLP and gated_mlp=True"),
    "gated dense mlp": (has_gated_dense_mlp, "a layer with a dense MLP of its own and gated_mlp=True"),
    "gated experts": (has_gated_experts, "a 'sparse' layer in mlp_layer_types and gated_mlp=True"),
    "gated shared experts": (has_gated_shared_experts, "n_shared_experts and gated_mlp=True"),
    "clamped mlp": (has_clamped_mlp, "a swiglu_limit, swiglu_config.shared_limit or swiglu_config.dense_limit"),
    "experts": (has_experts, "a 'sparse' layer in mlp_layer_types whose block_type has an MLP"),
    "norm weight": (has_norm_weight, "a norm with a weight (norm_elementwise_affine=True)"),
    "scaled embedding": (has_scaled_embedding, "an embedding_multiplier other than 1"),
}
# What the checks of the groups ask of the whole model. fields_linear.py has what each recurrence reads.
GROUP_NEEDS = {
    "sparse layer": "a 'sparse' layer in mlp_layer_types",
    "zero_expert_num": "zero_expert_num",
    "gated_mlp": "gated_mlp=True",
    "sparsemixer": "scoring_func='sparsemixer'",
    "norm_topk_prob": "norm_topk_prob=True",
    "n_group": "n_group",
    "router.input_norm": "router.input_norm=True",
    "n_shared_experts": "n_shared_experts",
    "latent": "attention_type='latent'",
    "indexed layer": "an 'indexed_attention' layer in layer_types",
    "selecting layer": f"a layer of layer_types that is one of {[INDEXED, COMPRESSED_SPARSE]}",
    "compressed sparse layer": f"a {COMPRESSED_SPARSE!r} layer in layer_types",
    "heavily compressed layer": f"a {HEAVILY_COMPRESSED!r} layer in layer_types",
    "mla_config.output_rank": "mla_config.output_rank",
    "qk_norm": "qk_norm",
    "clip_qkv": "clip_qkv",
    "sliding layer": f"a layer of layer_types that is one of {[SLIDING, HYBRID_SLIDING, *COMPRESSED_LAYERS]}",
    "chunked layer": f"a layer of layer_types that is one of {[CHUNKED]}",
    "sparse pattern": "a sparse_attention_pattern",
    "hyper-connections": "block_type='hyper_connection'",
    "gated norm": f"a block_type of {list(GATED_NORM_BLOCKS)}",
    "laurel block": f"a block_type of {list(LAUREL_BLOCKS)}",
    "altup": "block_type='altup'",
    "attention residual": "block_type='attention_residual'",
    "moe_latent_size": "moe_latent_size",
    "prediction layers": "num_mtp_layers",
    "auto start": "initializer.type='auto'",
    "per-layer input": "hidden_size_per_layer_input",
    "weighted residual": f"a block_type of {list(WEIGHTED_BLOCKS)}",
    "rope": "position_embedding_type='rope'",
    "sinusoidal": "position_embedding_type='sinusoidal'",
    "alibi": "position_embedding_type='alibi'",
    "relative": "position_embedding_type='relative'",
    "absolute positions": "learned or sinusoidal positions",
    "attn_temperature.layers": "attn_temperature.layers",
    "shared block": "a block_type 'shared_block'",
    "parallel block": "a parallel block_type",
    "hybrid layer": f"a layer of layer_types that is one of {list(HYBRID_LAYERS)}",
    "recurrent layer": f"a layer of layer_types that is one of {list(WITH_RECURRENCE)}",
}


def says_something(field: Field, value: Any) -> bool:
    """Whether a value is more than the absence of what the field describes."""
    absent = value is None or (value is False and field.default is None)
    return not absent and value not in (field.default, *field.metadata["neutral"])


def is_read(config: PreTrainedConfig, name: str) -> bool:
    """Whether a layer of a config reads a field that says what it needs, whatever its value."""
    need = described(type(config))[name].metadata.get("needs")
    return need in NEEDS and any(NEEDS[need][0](layer, index) for index, layer in enumerate(config.per_layer_config))


def refuse_unread(config: PreTrainedConfig) -> None:
    """Raises UnreadField for a field whose value no layer reads."""
    layers = list(config.per_layer_config)
    for name, field in described(type(config)).items():
        need = field.metadata.get("needs")
        if need not in NEEDS:
            continue
        values = [getattr(layer, name) for layer in (layers if config.is_heterogeneous else [config])]
        said = [value for value in values if says_something(field, value)]
        if not said:
            continue
        reads, reason = NEEDS[need]
        read = [getattr(layer, name) for index, layer in enumerate(layers) if reads(layer, index)]
        for value in said:
            if value not in read:
                raise UnreadField(name, value, reason)
