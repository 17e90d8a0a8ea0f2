"""Kernels of the Hub in a zoo model, `use_kernels=True`: which of its parts compute what a kernel computes.

transformers maps words ("RMSNorm") to layers of the Hub, and `kernels` puts the forward of such a layer into modules
whose class has that word. Here a module whose flags make it that very computation gets such a class, with the
attributes that the kernel reads; any other keeps its own forward. Experts go by `experts_implementation`, which has the
Hub's kernels too; for a rotation the Hub wants queries and keys at once, which are rotated apart here.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .mlp_dense import GatedMLP
from .norms import RMSNorm
from .ops_state_space_kernels import CHANNEL_SCAN, CONVOLUTION, CONVOLUTION_STEP, STATE_SCAN, STATE_STEP, KernelFunction
from .recurrent_convolution import ShortConvolution
from .recurrent_gated_norm import GatedRMSNorm
from .recurrent_state_space import SelectiveScan, StateSpaceDuality

logger = logging.get_logger(__name__)


class HubRMSNorm(RMSNorm):
    """x / sqrt(mean(x²) + eps) · weight, rounded before the weight."""

    kernel_layer_name = "RMSNorm"

    @property
    def variance_epsilon(self) -> float:
        return self.eps

    @staticmethod
    def suits(module: nn.Module) -> bool:
        plain = module.offset == 0 and module.cast != "scale_then_cast" and not module.cast_input
        return plain and module.weight is not None and module.weight.dim() == 1


class HubSwiGLU(GatedMLP):
    """down(silu(gate x) · up x)."""

    kernel_layer_name = "SwiGLUMLP"
    activations = ("SiLU", "SiLUActivation")

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        plain = module.multipliers is None and module.sub_norm is None
        return plain and type(module.act_fn).__name__ in cls.activations


class HubGeGLU(HubSwiGLU):
    """down(gelu(gate x) · up x), the gelu by tanh."""

    kernel_layer_name = "GeGLUMLP"
    activations = ("GELUTanh", "PytorchGELUTanh")


class HubGatedRMSNorm(GatedRMSNorm):
    """norm(y) · weight · act(gate), heads of one weight: `gate_fn` is the activation, `activation` its name."""

    kernel_layer_name = "RMSNormGated"
    gates = {"SiLU": "silu", "SiLUActivation": "silu", "Sigmoid": "sigmoid"}

    @property
    def variance_epsilon(self) -> float:
        return self.eps

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        shared = module.weight is not None and module.weight.shape[-1] == module.width
        return shared and module.norm_first and type(module.activation).__name__ in cls.gates

    def become(self) -> None:
        gate_fn = self.activation
        del self.activation
        self.gate_fn, self.activation = gate_fn, self.gates[type(gate_fn).__name__]

    def __call__(self, states: torch.Tensor, gate: torch.Tensor, *source: nn.Module) -> torch.Tensor:
        heads = (part.unflatten(-1, (-1, self.width)) for part in (states, gate))
        return super().__call__(*heads).flatten(-2)

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        normed = self._normalise(hidden_states.float(), hidden_states.dtype, None)
        return (normed * self.gate_fn(gate.float())).to(hidden_states.dtype)


# Class of a module -> classes with the word of a kernel, of which the first that suits takes its place.
LAYERS = {RMSNorm: (HubRMSNorm,), GatedMLP: (HubSwiGLU, HubGeGLU), GatedRMSNorm: (HubGatedRMSNorm,)}
# Class of a module -> functions of ops_state_space_kernels that it calls.
FUNCTIONS: dict[type, tuple[KernelFunction, ...]] = {
    ShortConvolution: (CONVOLUTION, CONVOLUTION_STEP),
    StateSpaceDuality: (STATE_SCAN, STATE_STEP),
    SelectiveScan: (CHANNEL_SCAN, STATE_STEP),
}


def prepare_kernels(model: nn.Module) -> None:
    """Gives parts of `model` that compute what a kernel of the Hub computes the classes above, and functions that the
    Hub has to the modules that call them. Warns where there is none."""
    found = 0
    for module in model.modules():
        for hub in LAYERS.get(type(module), ()):
            if hub.suits(module):
                module.__class__ = hub
                if hasattr(hub, "become"):
                    module.become()
                break
        found += hasattr(type(module), "kernel_layer_name")
        functions = [one.call for one in FUNCTIONS.get(type(module), ()) if isinstance(one.call, nn.Module)]
        if functions:
            # Where the decorator use_kernelized_func puts them.
            vars(module)["_kernel_funcs"] = {type(one).kernel_layer_name: one for one in functions}
        found += len(functions)
    if not found:
        logger.warning_once(
            "use_kernels=True changes nothing: no part of this model computes what a kernel of the Hub does."
        )


def set_use_kernels(model: PreTrainedModel, use_kernels: bool, *args: Any, **kwargs: Any) -> None:
    """transformers' own `set_use_kernels`, behind `prepare_kernels`."""
    if use_kernels:
        prepare_kernels(model)
    PreTrainedModel.set_use_kernels(model, use_kernels, *args, **kwargs)
