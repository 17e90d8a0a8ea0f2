"""Initial weights: a standard deviation for every matrix, another for those that write to the residual stream.

A mixer's own vectors (decays, time steps, norms, sinks) are initialised as their papers say, in its `initialize`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .norms import Norm
from .position_tables import ADDED_POSITIONS


def normal_std(config: ZooConfig, inputs: int) -> float:
    """initializer_range, whatever the shape."""
    return config.initializer_range


def small_std(config: ZooConfig, inputs: int) -> float:
    """sqrt(2 / 5D): Xavier's for a matrix of D × 4D, for all (Nguyen & Salazar 2019, arXiv 1910.05895, §2.2)."""
    return math.sqrt(2 / (5 * config.hidden_size))


def fan_in_std(config: ZooConfig, inputs: int) -> float:
    """1 / sqrt(inputs): outputs as wide as inputs (LeCun et al. 1998; PaLM, Chowdhery et al. 2022, §5)."""
    return inputs**-0.5


INITIALIZERS = {"normal": normal_std, "small": small_std, "fan_in": fan_in_std, "auto": fan_in_std}


def same_std(config: ZooConfig, std: float, layer_idx: int) -> float:
    """As every other matrix."""
    return std


def depth_std(config: ZooConfig, std: float, layer_idx: int) -> float:
    """std / sqrt(N), N the sub-layers on the residual stream (GPT-2, Radford et al. 2019, §2.3; Megatron-LM)."""
    return std / math.sqrt(sum(1 if kind in ("mixer_only", "mlp_only") else 2 for kind in config.block_types))


def layer_std(config: ZooConfig, std: float, layer_idx: int) -> float:
    """std / sqrt(2 (layer + 1)) (depth-scaled, Zhang et al. 2019, arXiv 1908.11365; OLMo)."""
    return std / math.sqrt(2 * (layer_idx + 1))


def wang_std(config: ZooConfig, std: float, layer_idx: int) -> float:
    """2 / (layers · sqrt(D)) (Wang & Komatsuzaki 2021; GPT-NeoX, Black et al. 2022, §2)."""
    return 2 / (config.num_hidden_layers * math.sqrt(config.hidden_size))


def zero_std(config: ZooConfig, std: float, layer_idx: int) -> float:
    """Every layer starts as the identity (Fixup, Zhang et al. 2019, arXiv 1901.09321)."""
    return 0.0


RESIDUAL_INITIALIZERS = {
    "same": same_std,
    "depth": depth_std,
    "layer": layer_std,
    "wang": wang_std,
    "zero": zero_std,
}
# Names of the modules and parameters through which mixers, MLPs and experts write to the residual stream.
RESIDUAL_NAMES = ("o_proj", "down_proj", "fc2_latent_proj")
# Norms that end a branch, in the layers that say so of themselves (`ends_in_norm`).
OUTPUT_NORMS = ("attn_output_norm", "mlp_output_norm")


# "auto", tied embeddings: the logit of the token that was read, before any layer has learned.
TIED_LOGIT = 1.5


def residual_rms(config: ZooConfig) -> float:
    """The size of the residual stream before the first step, to which what branches write is in proportion; 1, no
    factor, unless `initializer.type` is "auto"."""
    return config.initializer["residual_rms"] if config.initializer["type"] == "auto" else 1.0


def embedding_std(config: ZooConfig, module: nn.Embedding) -> float:
    """initializer.embedding_range; without one initializer_range, under "auto" what starts the residual stream at its
    size whatever factor stands behind the table."""
    if config.initializer["embedding_range"] is not None:
        return config.initializer["embedding_range"]
    if config.initializer["type"] != "auto":
        return config.initializer_range
    return residual_rms(config) / abs(getattr(module, "scale", config.embedding_multiplier))


def head_factor(model: nn.Module, module: nn.Module) -> float:
    """Of the matrix of `module`: under "auto" the head starts at logits_scaling / D, so that the first logits are about
    1 / sqrt(D) and the first loss is ln V (muP, Yang et al. 2022, arXiv 2203.03466, table 8); 1 otherwise."""
    config = model.config
    if config.initializer["type"] != "auto" or module is not model.get_output_embeddings():
        return 1.0
    return config.logits_scaling * config.output_width**-0.5


def last_norm_weight(config: ZooConfig) -> float:
    """Of the norm before a tied head under "auto": a token that meets its own row has the logit TIED_LOGIT; 1
    otherwise."""
    if config.initializer["type"] != "auto" or not config.tie_word_embeddings:
        return 1.0
    own = residual_rms(config) / config.embedding_multiplier * config.output_width / config.logits_scaling
    return min(1.0, TIED_LOGIT / abs(own))


def residual_layer_of(model: nn.Module, module: nn.Module) -> int | None:
    """The index of the layer in which `module` writes to the residual stream, None for any other module; layers that
    predict further tokens follow those of the model.

    transformers hands modules to `_init_weights` one by one, without a name.
    """
    behind = getattr(getattr(model, "mtp", None), "layers", ())
    first, layers = (model.config.num_hidden_layers, behind) if len(behind) else (0, getattr(model, "layers", ()))
    for layer_idx, layer in enumerate(layers, first):
        for path, child in layer.named_modules():
            if child is module:
                return layer_idx if writes_to_residual(layer, path, module) else None
    return None


def writes_to_residual(layer: nn.Module, path: str, module: nn.Module) -> bool:
    """Whether `module`, at `path` in `layer`, is the last with parameters of a branch: its norm where one ends the
    branch, since a norm takes out the scale of the matrix before it, else the matrix."""
    if layer.ends_in_norm:
        return path in OUTPUT_NORMS
    return path.rpartition(".")[2] in RESIDUAL_NAMES or has_matrices(module)


def initialize(model: nn.Module, module: nn.Module) -> None:
    """Initialises what `module` of `model` holds itself, after transformers' own initialisation and after its
    children. `init` leaves alone what a checkpoint has filled."""
    config = model.config
    if hasattr(module, "initialize"):
        module.initialize(config.initializer_range)
    if draws_embeddings(config) and isinstance(module, nn.Embedding):
        draw_embedding(module, config)
    if draws_matrices(config) and not isinstance(module, nn.Embedding):
        draw_matrices(model, module)
        scale_norm(model, module)
    if draws_by_name(config):
        draw_by_name(model, module)


def draws_embeddings(config: ZooConfig) -> bool:
    """Whether tables start in another way than transformers has drawn them."""
    start = config.initializer
    return start["embedding_range"] is not None or start["cutoff"] is not None or start["type"] == "auto"


def draws_matrices(config: ZooConfig) -> bool:
    """Whether matrices start in another way than transformers, or their module itself, has drawn them."""
    types = config.initializer["type"], config.initializer["residual_type"]
    return types != ("normal", "same") or config.initializer["cutoff"] is not None


def draws_by_name(config: ZooConfig) -> bool:
    """Whether some matrices have a standard deviation of their own."""
    return config.initializer["by_name"] is not None


def draw_matrices(model: nn.Module, module: nn.Module) -> None:
    """Draws those that `module` of `model` holds itself."""
    config = model.config
    residual = RESIDUAL_INITIALIZERS[config.initializer["residual_type"]]
    for name, matrix in own_matrices(module):
        std = INITIALIZERS[config.initializer["type"]](config, matrix.shape[-1]) * head_factor(model, module)
        if residual is not same_std and (isinstance(module, nn.Linear) or name in RESIDUAL_NAMES):
            layer_idx = residual_layer_of(model, module)
            std = std if layer_idx is None else residual(config, std, layer_idx) * residual_rms(config)
        # Otherwise transformers, or the module itself, has drawn just this.
        if std != config.initializer_range or config.initializer["cutoff"] is not None:
            draw(matrix, std, config)


@torch.no_grad()
def scale_norm(model: nn.Module, module: nn.Module) -> None:
    """The weight of a norm that ends a branch, by the same rule as a matrix that does: 1 / sqrt(N) with "depth". Under
    "auto" with tied embeddings the last norm's, too."""
    config, weight = model.config, getattr(module, "weight", None)
    if not isinstance(module, Norm) or weight is None:
        return
    if module is getattr(model, "norm", None):
        init.constant_(weight, last_norm_weight(config) - module.offset)
        return
    residual = RESIDUAL_INITIALIZERS[config.initializer["residual_type"]]
    layer_idx = None if residual is same_std else residual_layer_of(model, module)
    if layer_idx is not None:
        std = INITIALIZERS[config.initializer["type"]](config, config.hidden_size)
        share = residual(config, std, layer_idx) / std
        init.constant_(weight, share * residual_rms(config) - module.offset)


def draw_by_name(model: nn.Module, module: nn.Module) -> None:
    """Draws the matrices of a module in a layer whose name, or theirs, is a key of `initializer.by_name`."""
    spreads, layers = model.config.initializer["by_name"], getattr(model, "layers", ())
    paths = [path for layer in layers for path, child in layer.named_modules() if child is module]
    for name, parameter in module.named_parameters(recurse=False):
        keys = {name, *(path.rpartition(".")[2] for path in paths)} & spreads.keys()
        if paths and keys and parameter.ndim >= 2:
            draw(parameter, spreads[keys.pop()], model.config)


def own_matrices(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter `[..., out, in]`) of a linear map, experts or a router; nothing of any other module."""
    if isinstance(module, nn.Linear) or has_matrices(module):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not name.endswith("_bias"):
                yield name, parameter


def has_matrices(module: nn.Module) -> bool:
    """Whether it says of itself that its parameters are linear maps, without being one."""
    return getattr(module, "has_matrices", False)


def draw(parameter: torch.Tensor, std: float, config: ZooConfig) -> None:
    """Fills from N(0, std²), truncated at ± initializer.cutoff · std if that is set."""
    if config.initializer["cutoff"] is None or std == 0:
        init.normal_(parameter, mean=0.0, std=std)
    else:
        edge = config.initializer["cutoff"] * std
        init.trunc_normal_(parameter, mean=0.0, std=std, a=-edge, b=edge)


def draw_embedding(module: nn.Embedding, config: ZooConfig) -> None:
    """A table of tokens by initializer.embedding_range, one of positions by initializer_range; the padding row is
    zero."""
    table = torch.empty_like(module.weight)
    is_positions = isinstance(module, tuple(ADDED_POSITIONS.values()))
    draw(table, config.initializer_range if is_positions else embedding_std(config, module), config)
    if module.padding_idx is not None:
        table[module.padding_idx] = 0
    init.copy_(module.weight, table)


@torch.no_grad()
def restore_buffers(model: nn.Module) -> None:
    """Fills the buffers that modules compute from the config and no checkpoint holds: after `to_empty` they hold
    whatever was in memory, and in a model whose weights were assigned they are still on the meta device."""
    device = next(model.parameters()).device
    for module in model.modules():
        for name, values in getattr(module, "computed_buffers", dict)().items():
            held = getattr(module, name)
            if held.is_meta:
                setattr(module, name, values.to(device))
            else:
                held.copy_(values)


class InitialWeights:
    """Initial weights as the config says, and the buffers that no checkpoint holds. A mixin in front of
    `PreTrainedModel`."""

    def _init_weights(self, module):
        super()._init_weights(module)
        initialize(self, module)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_state_dict(*args, **kwargs)
        restore_buffers(self)
        return loaded
