"""A model that runs with one layer in memory: each is read when its turn comes, and let go behind it.

What is outside the layers (embedding, final norm, head) stays. So a model of any size is verified, calibrated and
measured; only a model that learns is built as a whole.
"""

from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from conversion.engine.zoo_side import expected_tensors, own_dtypes
from conversion.files.writer import nbytes
from description_zoo.heads import model_class

from .tensors import Tensors, build, main_dtype

LAYERS = "model.layers."
# Bytes up to which a model is built as a whole, which is quicker.
SMALL = 2**28


def runnable(config: ZooConfig, tensors: Tensors) -> PreTrainedModel:
    """The model for forwards without gradients: whole where it is small, else a layer at a time."""
    small = sum(nbytes(tensor) for tensor in tensors.headers.values()) <= SMALL
    return build(config, tensors) if small else streamed(config, tensors)


def streamed(config: ZooConfig, tensors: Tensors) -> PreTrainedModel:
    """The model, in eval mode; it computes without gradients, in the dtype of its tensors."""
    dtype = main_dtype(tensors.headers)
    with init_empty_weights(include_buffers=False):
        model = model_class(config)._from_config(deepcopy(config), dtype=dtype)
    reader = LayerReader(tensors, dtype, own_dtypes(config, dtype), expected_tensors(config).tied)
    for name, module in model.named_modules():
        if not name.startswith(LAYERS):
            reader.fill(module, f"{name}." if name else "", recurse=False)
    model.tie_weights()
    for number, layer in enumerate(model.model.layers):
        reader.attach(layer, f"{LAYERS}{number}.")
    return model.eval()


class LayerReader:
    """Fills modules with the tensors they name."""

    def __init__(self, tensors: Tensors, dtype: torch.dtype, kept: dict[str, torch.dtype], tied: dict[str, str]):
        self.tensors, self.dtype, self.kept, self.tied = tensors, dtype, kept, tied

    def read(self, name: str) -> Tensor:
        tensor = self.tensors.read(name)
        return tensor.to(self.kept.get(name, self.dtype)) if tensor.is_floating_point() else tensor

    def fill(self, module: nn.Module, prefix: str, recurse: bool = True) -> None:
        """Reads what the module, and with `recurse` its parts, hold in files."""
        for path, part in module.named_modules() if recurse else [("", module)]:
            place = f"{prefix}{path}." if path else prefix
            for table in (part._parameters, part._buffers):
                for name, old in table.items():
                    full = f"{place}{name}"
                    if old is not None and full in self.tensors.headers:
                        new = self.read(full)
                        table[name] = nn.Parameter(new, requires_grad=False) if table is part._parameters else new

    def attach(self, layer: nn.Module, prefix: str) -> None:
        """The layer is filled before each forward, and emptied behind it."""
        empty = [(part, dict(part._parameters), dict(part._buffers)) for part in layer.modules()]

        def before(module: nn.Module, *arguments: Any) -> None:
            self.fill(layer, prefix)

        def after(module: nn.Module, *arguments: Any) -> None:
            for part, parameters, buffers in empty:
                part._parameters.update(parameters)
                part._buffers.update(buffers)

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
