"""The new folder: tensors as they are made, config, code, tokenizer, licence, card. Complete or not there."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion import convert
from conversion.engine.registry import OWN_TYPE
from conversion.files.companions import copy_companions, pin_tokenizer_class
from conversion.files.workspace import check_apart, check_free, new_folder
from conversion.files.writer import ShardWriter, nbytes, parse_size
from conversion.layouts.known import write_tokenizer

from .card import write_surgery_card
from .report import Report
from .tensors import Tensors
from .tokenizer_trimming import write_trimmed


@dataclass
class Place:
    """Where the new model goes: a folder, as zoo or as the family `to`, in files of at most so many bytes."""

    target: Path
    max_shard_size: int | str = "5GB"
    overwrite: bool = False
    to: str | None = None


def check_place(target: Path, source: Path | None, overwrite: bool) -> None:
    """Raises ConversionError for a target that must not be written, before anything is computed for it."""
    if source is not None:
        check_apart(source, target)
    check_free(target, overwrite)


def write_folder(place: Place, state: Any, report: Report) -> Report:
    """Writes what `state` holds; raises ConversionError where the target cannot be written, or `to` has no place for
    such a model."""
    source, max_bytes = state.source.folder, parse_size(place.max_shard_size)
    check_place(place.target, source, place.overwrite)
    state.config.surgery = report.record()
    if place.to in (None, OWN_TYPE):
        with new_folder(place.target, place.overwrite) as new:
            report.files = write_model(new, state, report, max_bytes)
    else:
        beside = place.target.absolute().parent
        beside = next(folder for folder in (beside, *beside.parents) if folder.is_dir())
        with tempfile.TemporaryDirectory(dir=beside, prefix=".zoo-surgery-") as between:
            write_model(Path(between), state, report, max_bytes)
            done = convert(between, place.target, place.to, None, max_bytes, place.overwrite, state.progress)
        report.files = done.files
    report.target = place.target
    return report


def write_model(folder: Path, state: Any, report: Report, max_bytes: int) -> list[str]:
    """A zoo folder; → the names of its files of tensors."""
    files = write_tensors(folder, state.tensors, max_bytes, state.progress)
    write_beside(folder, state.config, state.source.folder, report)
    if getattr(state, "kept_tokens", None) is not None:
        write_trimmed(folder, state.kept_tokens)
    return files


def write_tensors(folder: Path, tensors: Tensors, max_bytes: int, progress: bool) -> list[str]:
    """One tensor at a time into safetensors; → the files' names."""
    writer = ShardWriter(folder, tensors.headers, max_bytes)
    total = sum(nbytes(tensor) for tensor in tensors.headers.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="Writing", disable=not progress) as bar:
        for name, header in tensors.headers.items():
            tensor: Tensor = tensors.read(name)
            writer.write(name, tensor)
            bar.update(nbytes(header))
    writer.finish()
    return writer.files


def write_beside(folder: Path, config: ZooConfig, source: Path | None, report: Report) -> None:
    """Config and code, the source's tokenizer and licences, the card."""
    if source is not None:
        write_tokenizer(source, folder)
        copy_companions(source, folder)
        pin_tokenizer_class(source, folder)
    config.save_pretrained(folder)
    write_surgery_card(folder, config, source, report)
