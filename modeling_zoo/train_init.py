"""What weights are before the first step: a spread for every matrix, another for those that write to the stream.

A mixer's own vectors (decays, time steps, norms, sinks) keep the start their papers give them, in `initialize`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .mlp_experts import Experts
from .mlp_routers import Router
from .position_tables import LearnedPositions


def normal_std(config, inputs):
    """initializer_range, whatever the shape."""
    return config.initializer_range


def small_std(config, inputs):
    """sqrt(2 / 5D): Xavier's for a matrix of D × 4D, for all (Nguyen & Salazar 2019, arXiv 1910.05895, §2.2)."""
    return math.sqrt(2 / (5 * config.hidden_size))


def fan_in_std(config, inputs):
    """1 / sqrt(inputs): outputs as wide as inputs (LeCun et al. 1998; PaLM, Chowdhery et al. 2022, §5)."""
    return inputs**-0.5


INITIALIZERS = {"normal": normal_std, "small": small_std, "fan_in": fan_in_std}


def same_std(config, std, layer_idx):
    """As every other matrix."""
    return std


def depth_std(config, std, layer_idx):
    """std / sqrt(N), N the sub-layers that write to the stream (GPT-2, Radford et al. 2019, §2.3; Megatron-LM)."""
    return std / math.sqrt(sum(1 if kind in ("mixer_only", "mlp_only") else 2 for kind in config.block_types))


def layer_std(config, std, layer_idx):
    """std / sqrt(2 (layer + 1)) (depth-scaled, Zhang et al. 2019, arXiv 1908.11365; OLMo)."""
    return std / math.sqrt(2 * (layer_idx + 1))


def wang_std(config, std, layer_idx):
    """2 / (layers · sqrt(D)) (Wang & Komatsuzaki 2021; GPT-NeoX, Black et al. 2022, §2)."""
    return 2 / (config.num_hidden_layers * math.sqrt(config.hidden_size))


def zero_std(config, std, layer_idx):
    """Every layer starts as the identity (Fixup, Zhang et al. 2019, arXiv 1901.09321)."""
    return 0.0


RESIDUAL_INITIALIZERS = {
    "same": same_std,
    "depth": depth_std,
    "layer": layer_std,
    "wang": wang_std,
    "zero": zero_std,
}
# Names under which mixers, MLPs and experts end in the stream.
RESIDUAL_NAMES = ("o_proj", "down_proj", "fc2_latent_proj")


def mark_writers(layer, layer_idx):
    """Notes on the modules of `layer` that write to the stream which layer they are of: a module is started alone."""
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] in RESIDUAL_NAMES or isinstance(module, Experts):
            module.writes_in_layer = layer_idx


def initialize(module, config):
    """Starts what `module` itself holds, after transformers' own start; children came before. `init` leaves alone what
    a checkpoint has filled."""
    if hasattr(module, "initialize"):
        module.initialize(config.initializer_range)
    if isinstance(module, nn.Embedding):
        if config.embedding_initializer_range is not None or config.initializer_cutoff is not None:
            draw_embedding(module, config)
        return
    layer_idx = getattr(module, "writes_in_layer", None)
    for name, matrix in own_matrices(module):
        std = spread = INITIALIZERS[config.initializer_type](config, matrix.shape[-1])
        if layer_idx is not None and (isinstance(module, nn.Linear) or name in RESIDUAL_NAMES):
            std = RESIDUAL_INITIALIZERS[config.residual_initializer_type](config, spread, layer_idx)
        # transformers, or the module itself, has drawn the plain start.
        if std != config.initializer_range or config.initializer_cutoff is not None:
            draw(matrix, std, config)


def own_matrices(module):
    """(name, parameter `[..., out, in]`) of a linear map, experts or a router; nothing of any other module."""
    if isinstance(module, (nn.Linear, Experts, Router)):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not name.endswith("_bias"):
                yield name, parameter


def draw(parameter, std, config):
    """Normal with spread `std`, cut off at initializer_cutoff · std if that is set."""
    if config.initializer_cutoff is None or std == 0:
        init.normal_(parameter, mean=0.0, std=std)
    else:
        edge = config.initializer_cutoff * std
        init.trunc_normal_(parameter, mean=0.0, std=std, a=-edge, b=edge)


def draw_embedding(module, config):
    """A table of tokens, or of positions at the common spread; its padding row zero as before."""
    own = None if isinstance(module, LearnedPositions) else config.embedding_initializer_range
    table = torch.empty_like(module.weight)
    draw(table, config.initializer_range if own is None else own, config)
    if module.padding_idx is not None:
        table[module.padding_idx] = 0
    init.copy_(module.weight, table)


@torch.no_grad()
def restore_buffers(model):
    """Fills the buffers that modules compute from the config and no checkpoint has: `to_empty` leaves in them whatever
    memory held, and a model that was assigned its weights has none."""
    device = next(model.parameters()).device
    for module in model.modules():
        for name, values in getattr(module, "computed_buffers", dict)().items():
            held = getattr(module, name)
            if held.is_meta:
                setattr(module, name, values.to(device))
            else:
                held.copy_(values)


class InitialWeights:
    """Starting as the config says, and what loading leaves to the model. A mixin in front of `PreTrainedModel`."""

    def _init_weights(self, module):
        super()._init_weights(module)
        initialize(module, self.config)

    def load_state_dict(self, *args, **kwargs):
        loaded = super().load_state_dict(*args, **kwargs)
        restore_buffers(self)
        return loaded
