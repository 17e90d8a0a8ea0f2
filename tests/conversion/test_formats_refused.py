"""Damaged checkpoints of every storage format: refused in one sentence that names what is wrong, nothing written."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import only
from storage_formats import SCHEMES, packed

from conversion import ConversionError, convert
from conversion.files.checkpoint import Checkpoint
from conversion.formats.schemes import formats, scheme_of

QUIET = {"progress": False}
OFTEN = ("fp8", "4 bits, shifted")
# What a weight can do without where the scheme does not ask for it.
OPTIONAL = ("g_idx", "_weight_zero_point")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """name of a format -> folder, made once."""
    made = {}

    def made_once(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("packed") / "packed"
            packed(name, made[name])
        return made[name]

    return made_once


def parts_of(folder):
    """A weight of the checkpoint and the names of its stored parts."""
    raw, stored = json.loads((folder / "config.json").read_text()), Checkpoint(folder)
    scheme = scheme_of(raw, folder)
    found = formats()[scheme["quant_method"]].find(stored, scheme).tensors
    name = min(found, key=lambda name: ("down_proj" not in name, name))
    return name, found[name].names


def damaged(folder, target, change):
    """A copy of a folder whose tensors and scheme `change` has changed."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file({key: t.contiguous() for key, t in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))


def refused(folder, target, *words):
    """The one sentence in which a conversion is refused, which has all `words`."""
    with pytest.raises(ConversionError) as error:
        convert(folder, target, **QUIET)
    said = str(error.value)
    assert "\n" not in said and said.endswith(".") and len(said) < 500, said
    assert all(word in said for word in words), said
    assert not target.exists()
    assert not [path for path in target.parent.iterdir() if target.name in path.name], "something is left over"
    return said


@pytest.mark.parametrize("name", only(OFTEN, SCHEMES))
def test_a_part_that_is_missing_is_named(name, checkpoint, tmp_path):
    """A weight without its scale, a scale without its weight, and whatever else belongs to it."""
    weight, parts = parts_of(checkpoint(name))
    for part in parts:
        if part.endswith(OPTIONAL):
            continue
        damaged(checkpoint(name), tmp_path / "damaged", lambda tensors, scheme, part=part: tensors.pop(part))
        said = refused(tmp_path / "damaged", tmp_path / "zoo")
        assert part in said or weight.removesuffix("weight") in said, (part, said)


def cut(tensor, dim):
    return tensor.narrow(dim, 0, tensor.shape[dim] - 1)


def longer(tensor, dim):
    return torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)


@pytest.mark.parametrize("name", only(OFTEN, SCHEMES))
def test_a_part_of_another_shape_is_named(name, checkpoint, tmp_path):
    weight, parts = parts_of(checkpoint(name))
    tensors = load_file(checkpoint(name) / "model.safetensors")
    for part in parts:
        sides = [dim for dim, side in enumerate(tensors[part].shape) if side > 1]
        for dim in sides:
            for change in (cut, longer):
                other = change(tensors[part], dim)
                damaged(checkpoint(name), tmp_path / "damaged", lambda t, _, p=part, o=other: t.update({p: o}))
                said = refused(tmp_path / "damaged", tmp_path / "zoo")
                assert part in said or weight.removesuffix("weight") in said, (part, dim, said)


WRONG_SCHEMES = {
    "an unknown method": {"quant_method": "vptq"},
    "a method that is no word": {"quant_method": 4},
    "bits": {"bits": 5, "w_bit": 5},
    "bits in words": {"bits": "four", "w_bit": "four"},
    "blocks in words": {"weight_block_size": "128 x 128"},
    "blocks of nothing": {"weight_block_size": [0, 0]},
    "another size of block": {"weight_block_size": [64, 64]},
    "another size of group": {"group_size": 24},
    "groups in words": {"group_size": "all"},
    "no groups": {"config_groups": {}},
    "groups that are a list": {"config_groups": ["Linear"]},
    "a group that is a word": {"config_groups": {"group_0": "Linear"}},
    "targets that are numbers": {"config_groups": {"group_0": {"targets": [1], "weights": {"num_bits": 4}}}},
    "a target that is no pattern": {"config_groups": {"group_0": {"targets": ["re:("], "weights": {"num_bits": 4}}}},
    "weights that are a list": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": [4]}}},
    "another version": {"version": "gemv", "checkpoint_format": "marlin"},
    "modules that are a number": {"modules_to_not_convert": 3},
    "sparse": {"sparsity_config": {"format": "sparse-24"}},
    "sparse in a word": {"sparsity_config": "sparse-24"},
}


@pytest.mark.parametrize("name", only(OFTEN, SCHEMES))
def test_a_wrong_scheme_is_refused_or_of_no_concern(name, checkpoint, tmp_path):
    """Each change is refused in a sentence, or the format does not read it, and the same numbers come out."""
    convert(checkpoint(name), tmp_path / "right", **QUIET)
    right = load_file(tmp_path / "right" / "model.safetensors")
    for fault, change in WRONG_SCHEMES.items():
        damaged(checkpoint(name), tmp_path / "damaged", lambda _, scheme, c=change: scheme.update(deepcopy(c)))
        try:
            convert(tmp_path / "damaged", tmp_path / "zoo", **QUIET)
        except ConversionError:
            refused(tmp_path / "damaged", tmp_path / "zoo")
            continue
        assert fault not in ("an unknown method", "a method that is no word")
        read = load_file(tmp_path / "zoo" / "model.safetensors")
        assert all(torch.equal(tensor, read[key]) for key, tensor in right.items()), fault
        shutil.rmtree(tmp_path / "zoo")


@pytest.mark.parametrize("name", only(OFTEN, SCHEMES))
def test_the_command_line_says_it_and_inspects_the_rest(name, checkpoint, tmp_path, zoo):
    """`zoo inspect` says the format and the bytes in the files; `zoo convert` refuses in one line on stderr."""
    folder = checkpoint(name)
    size = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
    code, out, err = zoo("inspect", folder, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "") and report["stored_bytes"] == size
    assert report["stored_as"].startswith(SCHEMES[name][2]["quant_method"])
    code, out, err = zoo("inspect", folder)
    assert (code, err) == (0, "") and f"stored as   {report['stored_as']}, " in out
    _, parts = parts_of(folder)
    damaged(folder, tmp_path / "damaged", lambda tensors, scheme: tensors.pop(parts[0]))
    code, out, err = zoo("convert", tmp_path / "damaged", tmp_path / "zoo")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "Traceback" not in err, err
    assert not (tmp_path / "zoo").exists()
