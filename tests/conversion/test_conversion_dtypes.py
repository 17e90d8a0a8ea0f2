"""Conversion into another dtype narrows what transformers' own class narrows, and nothing that it keeps."""

import json

import pytest
import torch
import transformers
from checkpoint_checks import assert_same_tensors, tensors_of
from random_models import build, is_here, their_class_config
from transformers import AutoModelForCausalLM

from conversion import convert, family_of, known_families, load
from modeling_zoo import ZooForCausalLM

# Three of those that `keeps_float32` finds: a bias of the router, its weights, a recurrence's decay.
FIRST = ("deepseek_v3", "ernie4_5_moe", "olmo_hybrid")


def keeps_float32(name):
    """Whether transformers' class of a family keeps any tensor in float32 when it loads in half precision."""
    family = family_of(name)
    if not family.tiny or not is_here(name):
        return False
    config = their_class_config(name, family, family.tiny[0])
    with torch.device("meta"):
        model = build(config, family, torch.bfloat16)
        made = type(model)._from_config(config, dtype=torch.bfloat16).state_dict().values()
    marks = [getattr(model, mark) for mark in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    return any(marks) or any(tensor.dtype == torch.float32 for tensor in made)


@pytest.mark.parametrize("name", FIRST)
def test_what_transformers_keeps_in_float32_stays_so_on_every_path(name, tmp_path):
    check(name, torch.bfloat16, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_family_that_keeps_something_in_float32(dtype, tmp_path):
    wide = [name for name in known_families() if keeps_float32(name)]
    assert {name for name in FIRST if is_here(name)} <= set(wide)
    for name in wide:
        check(name, dtype, tmp_path / name)


def check(name, dtype, tmp_path):
    """Converted on the way in, on the way out and straight into a model: as transformers loads and saves it."""
    family = family_of(name)
    theirs = build(their_class_config(name, family, family.tiny[0]), family)
    source, saved = tmp_path / "source", tmp_path / "saved"
    theirs.save_pretrained(source)
    oracle = getattr(transformers, family.oracle) if family.oracle else AutoModelForCausalLM
    oracle.from_pretrained(source, dtype=dtype).save_pretrained(saved)

    convert(source, tmp_path / "narrow", dtype=dtype, progress=False)
    convert(source, tmp_path / "wide", progress=False)
    # What zoo does not use comes back as it was.
    kept = json.loads((tmp_path / "wide" / "source" / "manifest.json").read_text())["kept"]
    expected = {name: tensor for name, tensor in tensors_of(saved).items() if name not in kept}
    for zoo in ("narrow", "wide"):
        convert(tmp_path / zoo, tmp_path / f"{zoo}-back", to=name, dtype=dtype, progress=False)
        found = tensors_of(tmp_path / f"{zoo}-back")
        assert_same_tensors({name: tensor for name, tensor in found.items() if name not in kept}, expected)

    straight = load(source, dtype=dtype).state_dict()
    for name, tensor in ZooForCausalLM.from_pretrained(tmp_path / "wide", dtype=dtype).state_dict().items():
        assert straight[name].dtype == tensor.dtype and torch.equal(straight[name], tensor), name
