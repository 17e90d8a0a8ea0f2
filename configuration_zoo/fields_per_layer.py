"""Which fields may differ from layer to layer, and how a layer's own values become complete."""

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .field_kinds import nearest
from .field_settings import described, nested, settings_of, spread
from .fields_linear import LINEAR_FIELDS
from .first_layers import per_layer_names
from .vocabulary import (
    CHUNKED,
    HYBRID_LAYERS,
    HYBRID_SLIDING,
    PARALLEL_BLOCKS,
    PER_HEAD_ATTENTIONS,
    SLIDING,
    WITH_RECURRENCE,
)

# Every field that `per_layer_config` may give a layer, by the layers that read it.
PER_LAYER_FIELDS = {
    "any layer": (
        "norm_type", "norm_eps", "norm_elementwise_affine", "norm_bias", "norm_unit_offset", "precision.norm",
        "residual_multiplier", "residual_dropout",
    ),
    "a layer with a parallel block_type": ("precision.parallel_sum_order",),
    "a layer with softmax attention": (
        "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias", "attention_out_bias",
        "attention_multiplier", "scale_attn_by_inverse_layer_idx", "precision.attention_upcast", "attention_dropout",
        "attn_logit_softcapping", "attention_sinks", "attn_output_gate",
        "attn_temperature.layers", "attn_temperature.scale", "attn_temperature.floor_scale", "attn_temperature.offset",
        "residual_factors.full_attn_alpha", "residual_factors.full_attn_beta",
        "qk_norm", "qk_norm_config.scope", "qk_norm_config.weight", "qk_norm_config.bias", "qk_norm_config.position",
        "qk_norm_config.layers", "qk_norm_config.eps",
    ),
    "a layer with keys and values per head": ("clip_qkv", "clip_qkv_position"),
    "a layer that caches keys and values per head": (
        "attention_value_scale", "mup_multipliers.key", "value_norm", "attention_k_eq_v",
    ),
    "a layer that mixes in the values of the first": ("value_residual",),
    "a layer with queries of factors": ("attention_factors.query_rank", "attention_factors.query_norm"),
    "a layer with keys and values of factors": ("attention_factors.key_rank", "attention_factors.value_rank"),
    "a layer with latent attention": (
        "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "mla_config.norm_eps",
        "mla_config.scale_q_lora", "mla_config.scale_kv_lora", "mla_config.scale_by_mscale", "mla_config.norm",
        "mla_config.query_bias", "mla_config.rope_heads", "mla_config.raw_query_latent",
        "mla_config.rope_key_norm",
    ),
    "a layer with an indexer of its own": (
        "index_topk", "index_n_heads", "index_head_dim", "indexer.rope_interleave", "indexer.norm_eps",
        "indexer.block_size", "indexer.local_blocks",
    ),
    "a 'sliding_attention' or 'hybrid_sliding' layer": ("sliding_window",),
    "a 'chunked_attention' layer": ("attention_chunk_size",),
    "a layer with a sparse_attention_pattern": ("sparse_attention_stride",),
    "a layer whose queries and keys rotate": ("rope_parameters", "rope_interleave", "precision.rope"),
    "a layer with a recurrence or a convolution": (
        *LINEAR_FIELDS, "residual_factors.linear_attn_alpha", "residual_factors.linear_attn_beta",
    ),
    "a layer with attention beside a recurrence": ("mup_multipliers.attention_in", "mup_multipliers.attention_out"),
    "a layer with a shared block": ("shared_attention_adapter_rank", "shared_mlp_adapter_rank"),
    "a layer with an MLP": (
        "gated_mlp", "hidden_act", "mlp_bias", "residual_factors.mlp_alpha", "residual_factors.mlp_beta",
        "swiglu_config.clamp_behind_activation", "swiglu_config.gate_softcap", "swiglu_config.up_softcap",
    ),
    "a layer with a dense MLP": (
        "intermediate_size", "mup_multipliers.mlp", "swiglu_config.dense_limit", "swiglu_config.dense_alpha",
        "swiglu_config.dense_up_offset", "swiglu_config.activation_sparsity",
    ),
    "a 'sparse' layer": (
        "num_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_latent_size", "zero_expert_num",
        "zero_expert_type", "expert_bias", "swiglu_limit", "swiglu_config.alpha",
        "swiglu_config.up_offset", "swiglu_config.shared_limit", "scoring_func",
        "router.sparsemixer_jitter_eps", "router.score_after_topk", "norm_topk_prob", "router.norm_topk_eps",
        "router.norm_topk_min", "routed_scaling_factor", "n_group", "topk_group", "router.group_score",
        "router.group_mask_value",
        "use_score_correction_bias", "router.bias", "precision.router", "precision.router_weights",
        "router.weight_on_input", "router.input_norm", "router.input_multiplier", "router.per_expert_scale",
        "router.logit_softcapping", "router.latent_norm",
        "router.jitter_noise", "n_shared_experts", "shared_expert_intermediate_size", "shared_expert_gate",
        "shared_expert_combination_strategy",
    ),
}  # fmt: skip
# What a bias on the scores that all layers share is made for.
ONE_BIAS = {
    "alibi": ("num_attention_heads", "head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "attention_sinks"),
    "relative": ("num_attention_heads",),
}
ALL = tuple(name for names in PER_LAYER_FIELDS.values() for name in names)


def _softmax(config, index: int) -> bool:
    return index in config.softmax_layers


def _grouped(config, index: int) -> bool:
    return _softmax(config, index) and config.attention_types[index] in PER_HEAD_ATTENTIONS


def _has_mlp(config, index: int) -> bool:
    return config.block_types[index] != "mixer_only"


def _sparse(config, index: int) -> bool:
    return _has_mlp(config, index) and config.mlp_layer_types[index] == "sparse"


def _dense(config, index: int) -> bool:
    return config.has_dense_mlp(index)


def _rotates(config, index: int) -> bool:
    return _softmax(config, index) and config.position_embedding_type == "rope" and config.turns(index)


READERS: dict[str, Callable] = {
    "any layer": lambda config, index: True,
    "a layer with a parallel block_type": lambda config, index: config.block_types[index] in PARALLEL_BLOCKS,
    "a layer with softmax attention": _softmax,
    "a layer with keys and values per head": _grouped,
    "a layer that caches keys and values per head": (
        lambda config, index: _grouped(config, index) and not config.shares_key_values(index)
    ),
    "a layer that mixes in the values of the first": lambda config, index: config.mixes_values(index),
    "a layer with queries of factors": lambda config, index: config.has_factors(index),
    "a layer with keys and values of factors": lambda config, index: config.has_factors(index, of_keys=True),
    "a layer with latent attention": (
        lambda config, index: _softmax(config, index) and config.attention_types[index] == "latent"
    ),
    "a layer with an indexer of its own": lambda config, index: (
        (config.indexer_types or {index: None})[index] == "full"
    ),
    "a 'sliding_attention' or 'hybrid_sliding' layer": (
        lambda config, index: config.layer_types[index] in (SLIDING, HYBRID_SLIDING)
    ),
    "a 'chunked_attention' layer": lambda config, index: config.layer_types[index] == CHUNKED,
    "a layer with a sparse_attention_pattern": lambda config, index: config.sparse_pattern_of(index) != "none",
    "a layer whose queries and keys rotate": _rotates,
    "a layer with a recurrence or a convolution": (lambda config, index: config.layer_types[index] in WITH_RECURRENCE),
    "a layer with attention beside a recurrence": lambda config, index: config.layer_types[index] in HYBRID_LAYERS,
    "a layer with a shared block": lambda config, index: config.block_types[index] == "shared_block",
    "a layer with an MLP": _has_mlp,
    "a layer with a dense MLP": _dense,
    "a 'sparse' layer": _sparse,
}


def layers_of(given: Any, count: int) -> dict[int, dict]:
    """What was given as `per_layer_config` with numbers as keys; raises ValueError for any other container."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(
            f"per_layer_config={given!r} must be a dict of dicts: the number of a layer, then its own fields."
        )
    layers = {}
    for key, own in given.items():
        index = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise ValueError(f"per_layer_config has {key!r}, which is no layer: they are 0 to {count - 1}.")
        if not isinstance(own, dict):
            raise ValueError(f"per_layer_config[{index}]={own!r} must be a dict of fields and their values.")
        layers[index] = dict(own)
    return layers


class PerLayerFields:
    """Layers that differ in numbers: transformers' `per_layer_config`, checked and completed at construction.

    What is derived is derived for each layer from its own values, and stands in `per_layer_config` as well.
    """

    def outside_layers(self) -> PreTrainedConfig:
        """The config as the parts of a model outside its layers read it: nothing differs."""
        if not self.is_heterogeneous:
            return self
        view = copy(self)
        view.per_layer_config = None
        return view

    def _set_layers(self, layers: dict[int, dict], given: dict) -> None:
        """Takes over what `layers` have of their own; `given` are the model's fields before any was derived."""
        if not layers:
            return
        own = {index: self._known_fields(index, fields) for index, fields in layers.items()}
        whole = {index: self._completed(index, fields, given) for index, fields in own.items() if fields}
        whole = {index: fields for index, fields in whole.items() if fields}
        if not whole:
            return
        completed = [{**vars(self), **whole.get(index, {})} for index in range(self.num_hidden_layers)]
        # transformers' caches take the type of a layer, its check of such configs one of these fields.
        for index, layer in enumerate(completed):
            if layer["sliding_window"] is not None and layer["attention_chunk_size"] is not None:
                chunked = self.layer_types[index] == CHUNKED
                unread = "sliding_window" if chunked else "attention_chunk_size"
                whole.setdefault(index, {})[unread] = None
        self.per_layer_config = whole

    def _known_fields(self, index: int, own: dict) -> dict:
        own = {self.attribute_map.get(name, name): value for name, value in own.items()}
        own = spread(own, settings_of(type(self)))
        # A dict of settings of its own says again what the model's says of the keys that all layers share.
        for name in [name for name in own if "." in name]:
            of_model = getattr(self, name, None)
            # None, of a key in which layers can differ, is what follows in the layer, whatever the model says.
            if own[name] in (None, of_model) if name not in ALL else own[name] is of_model is None:
                del own[name]
        known = {field.name for field in fields(self)} | {*described(type(self))}
        for name, value in own.items():
            says = f"per_layer_config[{index}]: {name}={value!r}"
            if name not in known:
                raise ValueError(f"{says} is not a field of ZooConfig.{nearest(name, known)}")
            if name in per_layer_names(type(self)):
                raise ValueError(f"{says} is not set there: give {name} a list with one entry for each layer.")
            if name not in ALL:
                raise ValueError(f"{says} cannot differ from layer to layer: set {name} for the whole model.")
            if name in ONE_BIAS.get(self.position_embedding_type, ()):
                raise ValueError(
                    f"{says} cannot differ from layer to layer with position_embedding_type="
                    f"{self.position_embedding_type!r}, whose bias is one for all layers."
                )
        return own

    def _completed(self, index: int, own: dict, given: dict) -> dict:
        """What layer `index` has of its own, given and derived."""
        layer = copy(self)
        groups = settings_of(type(self))
        vars(layer).update({name: given[name] for name in ALL if name != "rope_parameters" and "." not in name})
        vars(layer).update({name: given[name] for name in groups})
        try:
            for name, value in own.items():
                setattr(layer, name, deepcopy(value))
        except StrictDataclassError as error:
            raise ValueError(f"per_layer_config[{index}]: {error.__cause__ or error}") from error
        layer._resolve()
        if layer.rope_parameters and "rope_parameters" in own:
            layer.standardize_rope_params()
        complete = {}
        for readers, names in PER_LAYER_FIELDS.items():
            read = READERS[readers](self, index)
            for name in names:
                value = getattr(layer, name)
                if read and value != getattr(self, name):
                    complete[name] = value
                elif not read and own.get(name) not in (None, False, getattr(self, name)):
                    raise ValueError(
                        f"per_layer_config[{index}]: {name}={own[name]!r} does nothing in layer {index}: only "
                        f"{readers} reads it."
                    )
        return self._whole_settings(complete)

    def _whole_settings(self, own: dict) -> dict:
        """Keys of dicts of settings in their dicts, which are whole: transformers knows a layer's fields, not keys."""
        groups = {name.partition(".")[0] for name in own if "." in name}
        return nested({group: getattr(self, group) for group in groups} | own)
