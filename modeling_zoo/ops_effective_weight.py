"""The matrix that a linear layer really applies, whatever has been done to the layer.

Adapters, quantisation and tensor parallelism replace or wrap a layer and leave a `weight` that is not what the layer
multiplies with. Code that needs the matrix itself asks for the effective one: `direct_weight` where the layer's own
tensor is it, else `basis_weight` where `is_linear_map`.
"""

import torch
from torch import nn


def direct_weight(module: nn.Module) -> torch.Tensor | None:
    """`module.weight` `[out, in]` where that is all the module applies (this process' rows of it if it is sharded over
    rows for inference), else None."""
    if type(module).forward is not nn.Linear.forward or module.bias is not None or has_hooks(module):
        return None
    weight = module.weight
    if hasattr(weight, "to_local"):
        rows_only = all(placement.is_shard(0) or placement.is_replicate() for placement in weight.placements)
        return weight.to_local() if rows_only and not torch.is_grad_enabled() else None
    forward_replaced = "forward" in vars(module)
    return None if forward_replaced or type(weight) not in (nn.Parameter, torch.Tensor) else weight


def basis_weight(module: nn.Module, width: int, like: torch.Tensor) -> torch.Tensor:
    """The matrix `[out, width]` of a linear map, from its values at the unit vectors, in the dtype of `like`."""
    return module(torch.eye(width, dtype=like.dtype, device=like.device)).t()


def is_linear_map(module: nn.Module) -> bool:
    """Whether the module applied to the unit vectors gives the columns of a matrix: no bias anywhere in it, no hooks,
    no dropout at work, nor a gradient that other ranks have a part of."""
    parameters = dict(module.named_parameters())
    biased = any("bias" in name for name in parameters)
    divided = torch.is_grad_enabled() and any(hasattr(part, "to_local") for part in parameters.values())
    return not (biased or divided or has_hooks(module) or module.training)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
