"""Kimi K3's wrapper, which transformers has no class for, around the slow reference of its text model."""

import json

import torch
from checkpoint_checks import assert_same_tensors, tensors_of
from random_models import build, their_class_config
from safetensors.torch import save_file
from test_wrappers import assert_converts_and_comes_back, rewritten

from conversion import convert
from conversion.engine.registry import family_of


def saved(source):
    family = family_of("kimi_k3_text")
    theirs = build(their_class_config("kimi_k3_text", family, family.tiny[0]), family)
    theirs.save_pretrained(source)
    return theirs, json.loads((source / "config.json").read_text()) | {"model_type": "kimi_linear"}


def test_a_wrapper_converts_and_comes_back(tmp_path):
    theirs, part = saved(tmp_path / "source")
    raw = {"model_type": "kimi_k3", "text_config": part, "vision_config": {"vt_hidden_size": 24}}
    rewritten(tmp_path / "source", raw, "language_model.{}".format)
    others = {
        "vision_tower.patch_embed.proj.weight": torch.randn(24, 3, 2, 2),
        "mm_projector.proj.0.bias": torch.ones(7),
    }
    save_file(tensors_of(tmp_path / "source") | others, tmp_path / "source" / "model.safetensors")
    assert_converts_and_comes_back(theirs, tmp_path / "source", tmp_path)


def test_a_text_model_alone_is_no_kimi_linear(tmp_path):
    _, part = saved(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    (tmp_path / "source" / "config.json").write_text(json.dumps(part))
    convert(tmp_path / "source", tmp_path / "again", progress=False)
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "zoo"))
