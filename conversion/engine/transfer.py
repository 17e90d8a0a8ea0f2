"""Folder to folder, or folder to model: plan everything, then move one tensor at a time."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from description_zoo.card import write_card

from ..errors import ConversionError
from ..files.companions import copy_companions, keep_card, pin_tokenizer_class, restore_card, restore_tokenizer_config
from ..files.sidecar import FOLDER, STEM
from ..files.sources import read_config, resolve_source
from ..files.workspace import check_apart, new_folder
from ..files.writer import ShardWriter, copy_tensor, copy_tensors, parse_size
from ..formats import kept_quantized
from ..formats.fp8_block import Fp8Block
from ..formats.storage import main_dtype, storage_of, total_bytes
from ..layouts.known import write_tokenizer
from .incoming import read_incoming
from .outgoing import ExtrasOptions, read_outgoing
from .patterns import natural_key
from .quantizing import family_to_write
from .registry import OWN_TYPE, family_of, spoken, variant_of
from .streaming import Mover, Rows

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Report:
    """What a conversion did."""

    source: str
    target: Path
    model_type: str
    parameters: int
    files: list[str]
    kept: list[str] = field(default_factory=list)  # set aside for converting back
    dropped: list[str] = field(default_factory=list)  # recomputable buffers, set aside too
    left_behind: list[str] = field(default_factory=list)  # of the source, not in the target
    lacks_tokenizer: bool = False  # which the source has in a form that is not read
    read_as: str = ""  # the format of the source's weights, in words
    read_bytes: int = 0  # as they are stored there
    written_as: str = ""
    written_bytes: int = 0

    @staticmethod
    def listed(names: list[str]) -> str:
        """How many, and the first of them."""
        more = f", ... {names[-1]}" if len(names) > 3 else ""
        return f"{len(names)} tensor{'s' if len(names) > 1 else ''}, {', '.join(names[:3])}{more}"


def convert(
    model: str | Path,
    target: str | Path,
    to: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool = True,
    source: str | Path | None = None,
    text_only: bool = False,
    allow_pickle: bool = False,
    keep_quantized: bool = False,
    quantize: str | None = None,
) -> Report:
    """Writes `model` (a folder or a Hub id) into the folder `target`, as zoo or as the family `to`.

    What a checkpoint held that zoo does not use (a vision tower, layers that predict further tokens) goes back with the
    model; where the folder has lost it, from `source`, the checkpoint (a folder or a Hub id) it came from; or not at
    all, with `text_only`, which writes the language model alone. Pickled weights are opened with `allow_pickle` alone,
    for tensors and nothing else.

    The weights of a quantised checkpoint are decoded, into `dtype` or the one its config names. With `keep_quantized`
    its stored tensors are kept beside them and go back bit for bit, or encoded again where the weights have changed;
    with `dtype` plain weights go back.

    `quantize="fp8-block"` writes projections and experts in DeepSeek's FP8, with a scale for each block of 128 × 128,
    in the layout of the family `to`, by default the one the model comes from.

    Either `target` is complete afterwards, or ConversionError says in one sentence what is wrong and nothing changed.
    """
    folder, target = resolve_source(model, allow_pickle=allow_pickle), Path(target)
    check_apart(folder, target)
    raw = read_config(folder)
    options = {"dtype": parse_dtype(dtype), "max_bytes": parse_size(max_shard_size), "progress": progress}
    to = None if to == OWN_TYPE else to
    if quantize is not None:
        to = family_to_write(folder, raw, to, quantize)
    if to is not None:
        family_of(variant_of(to, raw.get("source_config")))
    if raw.get("model_type") != OWN_TYPE and (source is not None or text_only):
        raise ConversionError(f"{model} is no zoo folder: source= and text_only= are for converting back (to=).")
    if keep_quantized and (to is not None or raw.get("model_type") == OWN_TYPE):
        raise ConversionError("--keep-quantized (keep_quantized=) is for converting a quantised checkpoint into zoo.")
    if raw.get("model_type") == OWN_TYPE:
        if to is None:
            raise ConversionError(f"{model} is a zoo folder already: name the family to convert it to (to=).")
        with new_folder(target, overwrite) as new:
            report = _export(folder, raw, new, to, ExtrasOptions(source, text_only), quantize is not None, **options)
    elif to is None:
        with new_folder(target, overwrite) as new:
            report = _import(folder, raw, new, allow_pickle=allow_pickle, keep_quantized=keep_quantized, **options)
    else:
        # Through zoo, beside the target: nothing but zoo knows both families.
        with new_folder(target, overwrite) as new, tempfile.TemporaryDirectory(dir=new) as between:
            between = Path(between)
            _import(folder, raw, between, allow_pickle=allow_pickle, **options)
            report = _export(between, read_config(between), new, to, quantize=quantize is not None, **options)
    report.source, report.target = str(model), target
    read = storage_of(folder, raw)
    report.read_as, report.read_bytes = read["stored_as"], read["stored_bytes"]
    return report


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "bfloat16", "torch.bfloat16" or the dtype itself; raises ConversionError for one no model computes in."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is None or found in FLOATING:
        return found
    raise ConversionError(
        f"dtype={str(dtype).removeprefix('torch.')!r} is not a floating dtype that models are converted to: write "
        "bfloat16, float16, float32 or float64."
    )


def _import(
    folder: Path,
    raw: dict,
    new: Path,
    dtype,
    max_bytes: int,
    progress: bool,
    allow_pickle: bool = False,
    keep_quantized: bool = False,
) -> Report:
    incoming = read_incoming(folder, raw, dtype, allow_pickle, keep_quantized)
    outputs, manifest = incoming.outputs(), incoming.manifest
    writer = ShardWriter(new, outputs, max_bytes)
    Mover(incoming.plan, incoming.reader, writer, incoming.expected.stored).run(progress)
    writer.finish()
    has_tokenizer = write_tokenizer(folder, new)
    copy_companions(folder, new)
    keep_card(folder, new)
    manifest.tokenizer_class = pin_tokenizer_class(folder, new)
    if incoming.quantized is not None:
        manifest.quantized = kept_quantized.write(incoming.quantized, new, max_bytes)
    manifest.write(new)
    if incoming.plan.aside:
        aside = {name: incoming.reader.checkpoint.headers[name] for name in incoming.plan.aside}
        copy_tensors(aside, incoming.reader.checkpoint, new / FOLDER, max_bytes, STEM)
    incoming.config.save_pretrained(new)
    write_card(new, incoming.config, manifest)
    report = Report("", new, OWN_TYPE, incoming.expected.parameters, writer.files, manifest.kept, manifest.dropped)
    report.lacks_tokenizer = not has_tokenizer
    report.written_as, report.written_bytes = main_dtype(outputs), total_bytes(outputs)
    return report


def _export(
    folder: Path,
    raw: dict,
    new: Path,
    to: str,
    wanted: ExtrasOptions | None = None,
    quantize: bool = False,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
    progress: bool,
) -> Report:
    outgoing = read_outgoing(folder, raw, to, dtype, wanted, quantize)
    outputs = outgoing.stored()
    writer = ShardWriter(new, {name: outputs[name] for name in sorted(outputs, key=natural_key)}, max_bytes)

    packed, extras, completed = outgoing.packed_names(), outgoing.extras, outgoing.completed()

    def store(name: str, tensor: Tensor) -> None:
        if name in completed:
            tensor = completed[name].into(extras.checkpoint.read(name), tensor)
        for stored_name, stored in outgoing.as_stored(name, tensor):
            writer.write(stored_name, stored)

    def restore(name: str, rows: Rows, at_once: int) -> bool:
        kept = outgoing.packed
        if name in completed:
            return False
        if isinstance(kept, Fp8Block):
            for part, first, tensor in kept.in_parts(name, rows, outgoing.plan.outputs[name].shape, at_once):
                writer.write_part(part, first, tensor)
            return True
        if not kept.stands_for(name, rows, at_once):
            return False
        for part in kept.found.tensors[name].names:
            copy_tensor(writer, kept.checkpoint, part)
        return True

    whole = frozenset({*packed, *completed})
    Mover(outgoing.plan, outgoing.reader, writer, whole=whole, store=store, restore=restore).run(progress)
    for name, make in outgoing.buffers.items():
        store(name, make())
    for name in extras.names:
        if name in completed:
            continue
        if name in packed:
            store(name, extras.checkpoint.read(name))
        else:
            copy_tensor(writer, extras.checkpoint, name)
    if outgoing.packed is not None:
        for name, tensor in outgoing.packed.unused():
            writer.write(name, tensor)
        outgoing.raw = outgoing.packed.say(outgoing.raw, new)
    writer.finish()
    copy_companions(folder, new)
    restore_card(folder, new)
    restore_tokenizer_config(folder, new, outgoing.extras.manifest.tokenizer_class)
    (new / "config.json").write_text(json.dumps(outgoing.raw, indent=2) + "\n", encoding="utf-8")
    report = Report("", new, spoken(outgoing.to), outgoing.parameters, writer.files, left_behind=outgoing.left_behind)
    report.written_as = outgoing.packed.method if outgoing.packed else main_dtype(outputs)
    report.written_bytes = total_bytes(outputs)
    return report
