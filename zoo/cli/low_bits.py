"""Weights of eight or four bits while a model runs, by torchao: nothing is stored so."""

from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# What torchao's kernels of four bits scale together.
GROUP = 32
# Rows that a packed matrix of four bits has a multiple of on a CPU.
ROWS = 16


def check_quantize(word: str | None) -> None:
    """Raises UserError for a word that is none, and without torchao; before any weight is read."""
    if word is None:
        return
    if word not in MAKERS:
        raise UserError(f"--quantize {word} is not one of {', '.join(MAKERS)}.")
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise UserError("--quantize needs torchao: pip install torchao") from error


def in_few_bits(model: "nn.Module", word: str) -> int:
    """Rounds the linear maps of a model, the head's among them, to "int8" (a scale for each row) or "int4" (a scale and
    an offset for each 32 numbers), in place; -> how many. Embeddings and the 3-D weights of experts stay as they are.

    Raises UserError as `check_quantize` does, and for a model none of whose maps fits.
    """
    check_quantize(word)
    from torchao.quantization import quantize_

    made = MAKERS[word](next(model.parameters()).device.type)
    quantize_(model, made, filter_fn=fits_four_bits if word == "int4" else None)
    changed = sum("torchao" in type(one).__module__ for one in model.parameters())
    if not changed:
        raise UserError(f"--quantize {word}: no linear map has a multiple of {GROUP} inputs and of {ROWS} outputs.")
    return changed


def eight_bits(device: str) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def four_bits(device: str) -> Any:
    """torchao's way for a device, on a CPU a prototype. Raises UserError where this torchao lacks that."""
    if device != "cpu":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group_size=GROUP)
    try:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        raise UserError("--quantize int4 on a CPU needs torchao 0.18 or another with Int4OpaqueTensor.") from error
    return PrototypeInt4WeightOnlyConfig(group_size=GROUP)


def fits_four_bits(module: "torch.nn.Module", name: str) -> bool:
    """Whether the kernels take the matrix of a module."""
    from torch import nn

    return isinstance(module, nn.Linear) and module.in_features % GROUP == 0 and module.out_features % ROWS == 0


MAKERS = {"int8": eight_bits, "int4": four_bits}
