"""Tensors from file to file in parts: the same bytes as each step gives at once, and how much memory that takes."""

import errno
import os

import pytest
import torch
from checkpoint_checks import tensors_of
from packed_checkpoints import packed_checkpoint
from packs import gpt_oss_experts, in_blocks
from random_models import build, their_class_config
from samples import only
from storage_formats import FP8, MXFP4, SCHEMES, SIZES, packed

from conversion import ConversionError, convert, family_of
from conversion.engine import streaming
from conversion.engine.incoming import read_incoming
from conversion.files import bytes as file_bytes
from conversion.files.checkpoint import Checkpoint
from conversion.files.sources import read_config
from conversion.formats.schemes import decoded

QUIET = {"progress": False}
# Names alone, stacks of experts, transposed and interleaved stacks, fused projections, groups, transposed matrices.
FAMILIES = (
    "llama",
    "mixtral",
    "gpt_oss",
    "llama4_text",
    "phi3",
    "dbrx",
    "granitemoe",
    "nemotron_h",
    "gpt2",
    "gpt_neox",
)


def published(folder, model_type):
    family = family_of(model_type)
    model = build(their_class_config(model_type, family, family.tiny[0]), family)
    model.bfloat16().save_pretrained(folder)
    return folder


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape, name
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other[name])]
        assert torch.equal(*as_bytes), name


def at_once(folder, dtype=None):
    """What every step of the import gives of whole tensors."""
    incoming = read_incoming(folder, read_config(folder), dtype)
    steps = (step.run(incoming.reader.read) for step in incoming.plan.steps)
    return {incoming.expected.stored(name): tensor for step in steps for name, tensor in step}


@pytest.mark.parametrize("model_type", only(("mixtral", "gpt_oss"), FAMILIES))
def test_parts_are_what_a_step_gives_at_once(model_type, tmp_path, monkeypatch):
    """Of numbers that divide no tensor, and of numbers that are cast."""
    published(tmp_path / "theirs", model_type)
    for part, dtype in ((334, None), (2600, torch.float32)):
        monkeypatch.setattr(streaming, "PART", part)
        convert(tmp_path / "theirs", tmp_path / "zoo", dtype=dtype, overwrite=True, **QUIET)
        same(tensors_of(tmp_path / "zoo"), at_once(tmp_path / "theirs", dtype))
        if dtype is None:
            convert(tmp_path / "zoo", tmp_path / "back", to=model_type, **QUIET)
            same(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "theirs"))


@pytest.mark.parametrize("part", [5000, 100_000])
def test_packed_tensors_are_decoded_in_parts(part, tmp_path, monkeypatch):
    packed_checkpoint(tmp_path / "fp8", "llama", in_blocks(torch.float32), FP8, num_hidden_layers=1, **SIZES)
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    packed_checkpoint(tmp_path / "mxfp4", "gpt_oss", gpt_oss_experts, MXFP4, **sizes)
    expected = {name: at_once(tmp_path / name) for name in ("fp8", "mxfp4")}
    monkeypatch.setattr(streaming, "PART", part)
    for name, tensors in expected.items():
        convert(tmp_path / name, tmp_path / "zoo", overwrite=True, **QUIET)
        same(tensors_of(tmp_path / "zoo"), tensors)


@pytest.mark.parametrize("name", only(("4 bits, shifted", "awq"), SCHEMES))
def test_some_rows_are_those_of_the_whole(name, tmp_path):
    """Of every format but BitNet's, whose fields are quarters of the rows."""
    packed(name, tmp_path / "packed")
    checkpoint = decoded(Checkpoint(tmp_path / "packed"), read_config(tmp_path / "packed"))
    for weight in checkpoint.found.tensors:
        whole, unit = checkpoint.read(weight), checkpoint.unit(weight)
        assert bool(unit) is not name.startswith("bitnet")
        for start in range(0, len(whole), unit or len(whole)):
            stop = min(start + (unit or len(whole)), len(whole))
            assert torch.equal(checkpoint.read_rows(weight, start, stop), whole[start:stop]), (weight, start)
        middle = whole.numel() // 3
        assert torch.equal(checkpoint.read_numbers(weight, middle, middle + 5), whole.flatten()[middle : middle + 5])


def test_a_system_that_copies_nothing_itself(tmp_path, monkeypatch):
    def cannot(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    published(tmp_path / "theirs", "llama")
    monkeypatch.setattr(os, "copy_file_range", cannot)
    monkeypatch.setattr(file_bytes, "_AT_ONCE", 1000)
    convert(tmp_path / "theirs", tmp_path / "zoo", **QUIET)
    same(tensors_of(tmp_path / "zoo"), at_once(tmp_path / "theirs"))


def test_holes_stay_holes_and_what_is_between_them_is_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        for place in (0, 2**22 + 17, 2**23 - 5):
            file.seek(place)
            file.write(b"number")
        file.truncate(2**24)
    with open(target, "wb") as file:
        file.truncate(2**24 + 100)
    with open(source, "rb", buffering=0) as one, open(target, "r+b", buffering=0) as other:
        file_bytes.copy_bytes(one, 3, other, 100, 2**24 - 3)
    assert target.read_bytes() == bytes(100) + source.read_bytes()[3:] + bytes(3)
    assert target.stat().st_blocks <= source.stat().st_blocks + 32


def test_a_source_that_is_cut_off_meanwhile(tmp_path):
    published(tmp_path / "theirs", "llama")
    incoming = read_incoming(tmp_path / "theirs", read_config(tmp_path / "theirs"))
    path = tmp_path / "theirs/model.safetensors"
    os.truncate(path, path.stat().st_size - 10_000)
    writer = streaming.ShardWriter(tmp_path, incoming.outputs(), 10**9, "out")
    with pytest.raises(ConversionError, match="model.safetensors ended too early: it was changed while being read"):
        streaming.Mover(incoming.plan, incoming.reader, writer).run(False)
