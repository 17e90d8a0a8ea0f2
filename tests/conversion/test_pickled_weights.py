"""Weights that are pickles: opened where it is allowed, for tensors and nothing else."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from checkpoint_checks import assert_same_tensors, tensors_of
from places import STORIES
from safetensors.torch import load_file

from conversion import ConversionError, convert, load
from conversion.files import pickles

QUIET = {"progress": False}
ALLOWED = QUIET | {"allow_pickle": True}


class Trap:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def whole(tensors, folder, **options):
    torch.save(tensors, folder / "pytorch_model.bin", **options)


def in_shards(tensors, folder):
    names, weight_map = list(tensors), {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        torch.save({name: tensors[name] for name in names[number::3]}, folder / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def of_a_trainer(tensors, folder):
    whole({f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, folder)


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """A folder whose weights are written by `write(tensors, folder)`."""
    monkeypatch.chdir(tmp_path)

    def build(write):
        folder = tmp_path / "source"
        shutil.copytree(STORIES, folder)
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        weights.unlink()
        write(tensors, folder)
        return folder

    return build


@pytest.mark.parametrize(
    "write", [whole, in_shards, of_a_trainer, partial(whole, _use_new_zipfile_serialization=False)]
)
@pytest.mark.parametrize("remap", [1, 2**29])
def test_pickles_become_the_tensors_of_the_safetensors(write, remap, pickled, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_REMAP", remap)
    folder = pickled(write)
    convert(folder, tmp_path / "zoo", **ALLOWED)
    convert(STORIES, tmp_path / "same", **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "zoo"), tensors_of(tmp_path / "same"))
    assert not list((tmp_path / "zoo").glob("*.bin*"))
    assert_same_tensors(load(folder, allow_pickle=True).state_dict(), load(STORIES).state_dict())


@pytest.mark.parametrize("write", [whole, in_shards])
def test_without_permission_nothing_is_opened(write, pickled, tmp_path, monkeypatch):
    folder = pickled(write)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ConversionError, match="--allow-pickle"):
        convert(folder, tmp_path / "zoo", **QUIET)
    with pytest.raises(ConversionError, match="allow_pickle=True"):
        load(folder)
    assert not (tmp_path / "zoo").exists()


def test_safetensors_are_preferred(pickled, tmp_path):
    folder = pickled(whole)
    shutil.copy(STORIES / "model.safetensors", folder)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    convert(folder, tmp_path / "zoo", **ALLOWED)


def trapped(tensors, folder):
    whole(tensors | {"model.norm.weight": Trap()}, folder)


def trapped_long_ago(tensors, folder):
    whole(tensors | {"model.norm.weight": Trap()}, folder, _use_new_zipfile_serialization=False)


def cut_off(tensors, folder):
    whole(tensors, folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])


def empty(tensors, folder):
    (folder / "pytorch_model.bin").write_bytes(b"")


def a_list(tensors, folder):
    whole(list(tensors.values()), folder)


def a_number(tensors, folder):
    whole(tensors | {"step": 3}, folder)


def sparse(tensors, folder):
    whole(tensors | {"model.norm.weight": tensors["model.norm.weight"].to_sparse()}, folder)


def shard_missing(tensors, folder):
    in_shards(tensors, folder)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()


def led_out(tensors, folder):
    whole(tensors, folder.parent)
    (folder / "pytorch_model.bin").symlink_to(folder.parent / "pytorch_model.bin")


WRONG = [
    (trapped, "asks for posix.mkdir to be run"),
    (trapped_long_ago, "asks for posix.mkdir to be run"),
    (cut_off, "pytorch_model.bin cannot be read as pickled tensors"),
    (empty, "pytorch_model.bin cannot be read as pickled tensors"),
    (a_list, "holds list, expected tensors by name"),
    (a_number, "holds 'step', which is int"),
    (sparse, "holds 'model.norm.weight', which is Tensor"),
    (shard_missing, "'pytorch_model-00002-of-00003.bin', which is not in the folder: a shard is missing"),
    (led_out, "leads out of the folder"),
]


@pytest.mark.parametrize(("write", "said"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_no_pickle_of_tensors_is_refused_in_one_sentence(write, said, pickled, tmp_path):
    folder = pickled(write)
    with pytest.raises(ConversionError, match=said) as refusal:
        convert(folder, tmp_path / "zoo", **ALLOWED)
    assert "\n" not in str(refusal.value) and "weights_only" not in str(refusal.value)
    assert not (tmp_path / "zoo").exists() and not (tmp_path / "pwned").exists()


def test_the_command_line(pickled, tmp_path, capsys):
    from zoo.cli.main import app
    from zoo.cli.main import run as run_app

    folder = pickled(in_shards)
    assert run_app(app, "zoo", ["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert (report["stored_as"], report["stored_bytes"]) == ("pickle", stored)
    assert run_app(app, "zoo", ["convert", str(folder), str(tmp_path / "zoo")]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert run_app(app, "zoo", ["convert", str(folder), str(tmp_path / "zoo"), "--allow-pickle"]) == 0
