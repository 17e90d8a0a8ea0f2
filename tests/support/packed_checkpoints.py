"""Checkpoints as they are published: matrices packed in a storage format, beside the numbers that stand for."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion import family_of

# How one matrix is stored, and what it stands for: (name, matrix) -> ({stored name: tensor}, the numbers), or None.
Pack = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor] | None]


def packed_checkpoint(
    folder: Path, model_type: str, pack: Pack, scheme: dict, dtype: torch.dtype = torch.bfloat16, **changes
) -> dict[str, Tensor]:
    """Writes a tiny model of a family in `folder`, packed -> the numbers its tensors stand for, in `dtype`."""
    family = family_of(model_type)
    model = build(their_class_config(model_type, family, {**family.tiny[0], **changes}), family).to(dtype)
    model.save_pretrained(folder)
    path, stored, numbers = folder / "model.safetensors", {}, {}
    for name, tensor in load_file(path).items():
        packed = pack(name, tensor)
        stored |= {name: tensor} if packed is None else packed[0]
        numbers[name] = tensor if packed is None else packed[1].to(dtype)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config))
    return numbers


def is_projection(name: str, tensor: Tensor) -> bool:
    """Whether published files pack this tensor: matrices, but no table, head or router."""
    whole = any(part in name for part in ("embed", "lm_head", "norm", ".gate.", "router"))
    return tensor.dim() >= 2 and not whole and name.endswith(("_proj.weight", "_proj", "_proj_with_mqa.weight"))
