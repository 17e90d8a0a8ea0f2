"""Undocumented parts of transformers that zoo needs, each with what happens where a version lacks it.

A version that has renamed one of these gives the same numbers, or says in one sentence what is missing.
"""

from typing import Any

import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from configuration_zoo import ZooConfig

logger = logging.get_logger(__name__)

# What a model defines for transformers to find: name -> (where transformers has one of its own, what is lost where it
# looks for another).
FOUND_BY_TRANSFORMERS = {
    "_can_compile_fullgraph": (PreTrainedModel, "generate does not compile steps over a static cache by itself"),
    "_can_record_outputs": (PreTrainedModel, "hidden states, attentions and router logits are not returned"),
    "_fsdp_plan": (PreTrainedModel, "FSDP shards the head like a layer"),
    "_get_candidate_generator": (GenerationMixin, "generate(use_mtp=True) drafts no tokens"),
    "_init_weights": (PreTrainedModel, "new weights start as torch starts them"),
    "_keys_to_ignore_on_load_unexpected": (PreTrainedModel, "weights of prediction layers are called unexpected"),
    "_no_split_modules": (PreTrainedModel, "a device map may cut layers in two"),
    "_pp_plan": (PreTrainedModel, "a pipeline has no plan for the head"),
    "_prepare_cache_for_generation": (GenerationMixin, "generate keeps transformers' caches: the same tokens, slower"),
    "_skip_keys_device_placement": (PreTrainedModel, "a device map moves the cache from device to device"),
    "_supports_attention_backend": (PreTrainedModel, "serving engines refuse the model"),
    "_supports_flash_attn": (PreTrainedModel, "flash attention is refused"),
    "_supports_flex_attn": (PreTrainedModel, "flex attention is refused"),
    "_supports_sdpa": (PreTrainedModel, "attention is computed by the plain backend"),
    "_tied_weights_keys": (PreTrainedModel, "head and embedding are not tied"),
    "_tp_plan": (PreTrainedModel, "tensor parallelism has no plan for the head"),
    "_upload_modified_files": (PreTrainedModel, "a pushed folder keeps transformers' empty card"),
}


def warn_of_what_is_gone() -> None:
    """Once for each name above that this transformers does not know."""
    for name, (owner, loss) in FOUND_BY_TRANSFORMERS.items():
        if not hasattr(owner, name):
            logger.warning_once(
                f"transformers {transformers.__version__} has no {owner.__name__}.{name}, which zoo's models define: "
                f"{loss}. Install a version that zoo names in its requirements."
            )


def enter_among_causal_models(model_class: type[PreTrainedModel]) -> None:
    """Trainer shifts smoothed labels for classes whose name is in this table, and trains any other on predicting the
    token it has just read. A copy that is loaded as remote code enters itself. Gone: a warning."""
    table = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", None)
    if table is None:
        logger.warning_once(
            f"transformers {transformers.__version__} has no MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, by which its Trainer "
            "knows that a model predicts the next token: do not train with label_smoothing_factor."
        )
        return
    table.setdefault(model_class.config_class.model_type, model_class.__name__)


def place_window(layer: CacheLayerMixin) -> None:
    """Moves the window's size, a tensor of a sliding layer of a cache, to the layer's device, for code of transformers
    that reads it; zoo does not. Gone: nothing reads it."""
    window = getattr(layer, "_sliding_window_tensor", None)
    if window is not None:
        layer._sliding_window_tensor = window.to(layer.device)


def replicated_class(cache: Cache) -> type[CacheLayerMixin] | None:
    """The class of which a cache made without a config has one layer more for each new index, None for any other cache.
    Gone: None, so transformers' own layers stay in such a cache."""
    return getattr(cache, "layer_class_to_replicate", None)


def replicate(cache: Cache, layer_class: type[CacheLayerMixin] | None) -> None:
    """Let such a cache add layers of `layer_class` from now on, or none (None)."""
    cache.layer_class_to_replicate = layer_class


def stage_of(model: PreTrainedModel, is_cut: bool) -> Any:
    """This process' stage of a pipeline, None without one. Gone: raises ValueError for a model of which `is_cut` says
    that other processes have layers."""
    stage = getattr(model, "_pp_stage", None)
    if stage is None and is_cut:
        raise ValueError(
            f"This process has some of the layers only, and transformers {transformers.__version__} does not say where "
            "the others are: save the model without pp_size."
        )
    return stage


def resized_embedding(model: PreTrainedModel, table: nn.Embedding, *sizes: Any) -> nn.Embedding:
    """`table` with another number of rows, as the model resizes its tokens'. Gone: raises ValueError."""
    resize = getattr(model, "_get_resized_embeddings", None)
    if resize is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no PreTrainedModel._get_resized_embeddings, by which "
            "hidden_size_per_layer_input's table follows the vocabulary: install a version that zoo names."
        )
    return resize(table, *sizes)


def take_plans(module: nn.Module, config: ZooConfig) -> None:
    """Says how `module`, whose `layers` are those of a model of `config`, is split over devices: transformers asks the
    children of a model. Gone: it is whole on every device."""
    of_layers = {rule: how for rule, how in config.base_model_tp_plan.items() if rule.startswith("layers.")}
    module._tp_plan, module._ep_plan = of_layers, config.base_model_ep_plan
