"""How a folder stores its weights, and how many bytes they take there."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.checkpoint import Checkpoint, has_weights
from ..files.pickles import pickles_of
from ..files.writer import nbytes
from ..layouts import gguf
from ..layouts.known import layout_of
from .schemes import scheme_of


def storage_of(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """{"stored_as": the scheme that config.json names, or the dtype of most bytes, "stored_bytes": of all tensors in
    its files}; {} for a folder without weights. Raises ConversionError where the files are damaged."""
    if layout := layout_of(folder):
        words, paths = layout.stored(folder)
        return {"stored_as": words, "stored_bytes": sum(path.stat().st_size for path in paths)}
    if pickled := pickles_of(folder):
        # They are not opened to look at them.
        return {"stored_as": "pickle", "stored_bytes": sum(path.stat().st_size for path in pickled)}
    if not has_weights(folder):
        return {}
    headers = Checkpoint(folder, named=raw.get("transformers_weights")).headers
    scheme = scheme_of(raw, folder)
    return {"stored_as": in_words(scheme) if scheme else main_dtype(headers), "stored_bytes": total_bytes(headers)}


def main_dtype(tensors: dict[str, Tensor]) -> str:
    """The dtype that takes most bytes, `bfloat16`."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + nbytes(tensor)
    return max(sizes, key=sizes.get, default="")


def total_bytes(tensors: dict[str, Tensor]) -> int:
    """The bytes of all tensors."""
    return sum(map(nbytes, tensors.values()))


def packed_as(folder: Path, raw: dict[str, Any]) -> str | None:
    """How the weights of a folder, or of a GGUF file, are packed, in words; None for plain floating numbers."""
    if gguf.recognises(folder):
        return gguf.stored(folder)[0] if gguf.is_packed(folder) else None
    scheme = scheme_of(raw, folder)
    return in_words(scheme) if scheme else None


def in_words(scheme: dict[str, Any]) -> str:
    """`fp8`, `gptq, 4 bits`, `compressed-tensors (pack-quantized)`, `modelopt (NVFP4)`"""
    kind = scheme.get("format") or scheme.get("fmt") or scheme.get("quant_algo") or scheme.get("bnb_4bit_quant_type")
    bits = scheme.get("bits") or scheme.get("w_bit")
    return scheme["quant_method"] + (f" ({kind})" if kind else "") + (f", {bits} bits" if bits else "")
