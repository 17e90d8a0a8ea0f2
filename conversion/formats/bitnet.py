"""BitNet b1.58 (Ma et al. 2024): matrices of -1, 0 and 1 with one scale.

Stored packed ("offline"): bytes `[out / 4, in]`, two bits a number plus 1, the four fields of a byte one quarter of the
rows apart, and `weight_scale`, which transformers' AutoBitLinear multiplies with and its BitLinear divides by. Stored
as trained ("online"): the model computes with round(W / s) limited to ±1, times s = mean |W|. The rounding of
activations to eight bits is left out, as it is of all formats.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors
from .checks import setting
from .packing import by_rows, finite
from .stored import Found, Stored

METHODS = ("bitnet",)
_SCALE = "_scale"
# Linear layers that stay as they are where the scheme does not name any.
_WHOLE = ["lm_head"]


def find(checkpoint: StoredTensors, scheme: dict[str, Any]) -> Found:
    """Every ternary matrix; raises ConversionError for one without its scale, and for norms inside linear layers."""
    if scheme.get("use_rms_norm"):
        raise ConversionError("quantization_config has use_rms_norm: norms inside linear layers are not read here.")
    whole = setting(scheme, "modules_to_not_convert", list) or _WHOLE
    found, headers = Found(), checkpoint.headers
    times = scheme.get("linear_class", "bitlinear") == "autobitlinear"
    online = times and scheme.get("quantization_mode") == "online"
    for name, weight in headers.items():
        if not name.endswith("_proj.weight") or weight.dim() != 2 or any(module in name for module in whole):
            continue
        shape, scale = tuple(weight.shape), name + _SCALE
        if online:
            found.tensors[name] = Stored((name,), shape, ternary, as_trained)
        elif scale not in headers or headers[scale].numel() != 1:
            raise ConversionError(f"{name!r} has no {scale!r} of one number: the checkpoint is incomplete.")
        else:
            packed = weight.dtype == torch.uint8
            shape = (4 * shape[0], shape[1]) if packed else shape
            how = {"packed": packed, "times": times}
            found.tensors[name] = Stored((name, scale), shape, partial(decode, **how), partial(encode, **how))
    for name in headers.keys() - found.taken():
        if name.endswith("weight" + _SCALE):
            raise ConversionError(f"{name!r} is a scale without a weight: the checkpoint is damaged.")
    return found


def ternary(dtype: torch.dtype, weight: Tensor) -> Tensor:
    """round(W / s) limited to ±1, times s = mean |W|, rounded once to `dtype` as the model does it to its own."""
    factor = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
    return ((weight.float() * factor).round().clamp(-1, 1) / factor).to(weight.dtype).to(dtype)


def as_trained(weight: Tensor, old: Tensor) -> tuple[Tensor]:
    """The weight itself: the model rounds it when it computes."""
    return (weight.to(old.dtype),)


def decode(dtype: torch.dtype, weight: Tensor, scale: Tensor, packed: bool, times: bool) -> Tensor:
    """The numbers of the fields, `[out, in]`, times the scale or divided by it."""
    factor = scale.float().reshape(()) if times else 1 / scale.float().reshape(())
    if not packed:
        return by_rows(dtype, tuple(weight.shape), weight.__getitem__, lambda _: factor)
    quarter, columns = weight.shape
    result = torch.empty(4 * quarter, columns, dtype=dtype)
    for field in range(4):
        rows = slice(field * quarter, (field + 1) * quarter)
        result[rows] = (((weight >> 2 * field) & 3).float() - 1) * factor
    return result


def encode(weight: Tensor, old: Tensor, old_scale: Tensor, packed: bool, times: bool) -> tuple[Tensor, Tensor]:
    """round(W / s) limited to ±1, with s = mean |W|. Raises ConversionError for numbers that are not finite."""
    factor = finite(weight.float().abs().mean().clamp(min=1e-5))
    scale = (factor if times else 1 / factor).to(old_scale.dtype).view(old_scale.shape)
    numbers = (weight.float() / factor).round().clamp(-1, 1)
    if not packed:
        return numbers.to(old.dtype), scale
    fields = (numbers + 1).to(torch.uint8).view(4, *old.shape)
    return sum(fields[k] << 2 * k for k in range(4)).to(torch.uint8), scale
