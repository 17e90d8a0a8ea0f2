"""Folder to folder, or folder to model: plan everything, then move one tensor at a time."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from transformers import GenerationConfig

from modeling_zoo import ZooForCausalLM

from .card import write_card
from .checkpoint import read_json
from .companions import copy_companions, keep_card, pin_tokenizer_class, restore_card, restore_tokenizer_config
from .errors import ConversionError
from .incoming import read_incoming
from .outgoing import read_outgoing
from .patterns import natural_key
from .plan import Plan
from .registry import OWN_TYPE, family_of
from .sidecar import FOLDER, STEM
from .sources import resolve_source
from .workspace import check_apart, new_folder
from .writer import ShardWriter, nbytes, parse_size

Write = Callable[[str, Tensor], None]
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Report:
    """What a conversion did."""

    source: str
    target: Path
    model_type: str
    parameters: int
    files: list[str]
    kept: list[str] = field(default_factory=list)  # set aside for the way back
    dropped: list[str] = field(default_factory=list)  # recomputable buffers, set aside too
    left_behind: list[str] = field(default_factory=list)  # another family's tensors, not in the target


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Writes `source` (a folder or a Hub id) into the folder `target`, as zoo or as the family `to`.

    Either `target` is complete afterwards, or ConversionError says in one sentence what is wrong and nothing changed.
    """
    folder, target = resolve_source(source), Path(target)
    check_apart(folder, target)
    raw = read_config(folder)
    options = {"dtype": parse_dtype(dtype), "max_bytes": parse_size(max_shard_size), "progress": progress}
    to = None if to == OWN_TYPE else to
    if to is not None:
        family_of(to)
    if raw.get("model_type") == OWN_TYPE:
        if to is None:
            raise ConversionError(f"{source} is a zoo folder already: say which family it shall become (to=).")
        with new_folder(target, overwrite) as new:
            report = _export(folder, raw, new, to, **options)
    elif to is None:
        with new_folder(target, overwrite) as new:
            report = _import(folder, raw, new, **options)
    else:
        # Through zoo, beside the target: nothing but zoo knows both families.
        with new_folder(target, overwrite) as new, tempfile.TemporaryDirectory(dir=new) as between:
            _import(folder, raw, Path(between), **options)
            report = _export(Path(between), read_config(Path(between)), new, to, **options)
    report.source, report.target = str(source), target
    return report


def load(source: str | Path, dtype: str | torch.dtype | None = None) -> ZooForCausalLM:
    """A ZooForCausalLM straight from a foreign folder or Hub id (or a zoo folder), every tensor accounted for."""
    folder = resolve_source(source)
    raw, dtype = read_config(folder), parse_dtype(dtype)
    if raw.get("model_type") == OWN_TYPE:
        return ZooForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    incoming = read_incoming(folder, raw, dtype)
    tensors: dict[str, Tensor] = {}
    _move(incoming.plan, incoming.reader.read, tensors.__setitem__, progress=False)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    model, info = ZooForCausalLM.from_pretrained(
        None,
        config=incoming.config,
        state_dict=tensors,
        dtype=incoming.config.dtype or _main_dtype(tensors),
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise ConversionError(f"loading {source} into ZooForCausalLM gave {problem}: {list(info[problem])[:5]}.")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def read_config(folder: Path) -> dict:
    """config.json of a folder."""
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder} has no config.json: it is not a model folder.")
    return read_json(folder / "config.json")


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "bfloat16", "torch.bfloat16" or the dtype itself; raises ConversionError for one no model computes in."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is None or found in FLOATING:
        return found
    raise ConversionError(
        f"dtype={str(dtype).removeprefix('torch.')!r} is not a floating dtype that models are converted to: write "
        "bfloat16, float16, float32 or float64."
    )


def _import(folder: Path, raw: dict, new: Path, dtype, max_bytes: int, progress: bool) -> Report:
    incoming = read_incoming(folder, raw, dtype)
    outputs, manifest = incoming.outputs(), incoming.manifest
    writer = ShardWriter(new, outputs, max_bytes)
    _move(incoming.plan, incoming.reader.read, writer.write, progress)
    writer.finish()
    copy_companions(folder, new)
    keep_card(folder, new)
    manifest.tokenizer_class = pin_tokenizer_class(folder, new)
    manifest.write(new)
    if incoming.plan.aside:
        aside = {name: incoming.reader.checkpoint.headers[name] for name in incoming.plan.aside}
        _copy_tensors(aside, incoming.reader.checkpoint.read, new / FOLDER, max_bytes, STEM)
    incoming.config.architectures = [ZooForCausalLM.__name__]
    incoming.config.save_pretrained(new)
    parameters = sum(tensor.numel() for tensor in outputs.values())
    write_card(new, incoming.config, manifest, parameters)
    return Report("", new, OWN_TYPE, parameters, writer.files, manifest.kept, manifest.dropped)


def _export(folder: Path, raw: dict, new: Path, to: str, dtype, max_bytes: int, progress: bool) -> Report:
    outgoing = read_outgoing(folder, raw, to, dtype)
    outputs = outgoing.outputs()
    outputs = {name: outputs[name] for name in sorted(outputs, key=natural_key)}
    writer = ShardWriter(new, outputs, max_bytes)
    _move(outgoing.plan, outgoing.reader.read, writer.write, progress)
    for name, tensor in outgoing.further():
        writer.write(name, tensor)
    writer.finish()
    copy_companions(folder, new)
    restore_card(folder, new)
    restore_tokenizer_config(folder, new, outgoing.tokenizer_class)
    (new / "config.json").write_text(json.dumps(outgoing.raw, indent=2) + "\n", encoding="utf-8")
    parameters = sum(tensor.numel() for tensor in outputs.values())
    return Report("", new, to, parameters, writer.files, left_behind=outgoing.left_behind)


def _move(plan: Plan, read: Callable[[str], Tensor], write: Write, progress: bool) -> None:
    total = sum(nbytes(tensor) for tensor in plan.outputs.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=not progress) as bar:
        for step in plan.steps:
            for name, tensor in step.run(read):
                write(name, tensor)
                bar.update(nbytes(tensor))


def _copy_tensors(tensors: dict[str, Tensor], read: Callable, folder: Path, max_bytes: int, stem: str) -> None:
    writer = ShardWriter(folder, tensors, max_bytes, stem)
    for name in tensors:
        writer.write(name, read(name))
    writer.finish()


def _main_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype of most floating numbers, for a config that does not say."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get)
