"""A.X K1 as it is published: a norm that dense layers have no use for, and a router without a selection bias."""

import json

import pytest
import torch
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conversion import convert, family_of, load
from conversion.errors import ConversionError

FAMILY = family_of("axk1")
SPARE = "model.layers.0.post_mlp_layernorm.weight"


@pytest.fixture
def published(tmp_path):
    """A folder as transformers reads it without a word, and the model that it makes of it."""
    model = build(their_class_config("axk1", FAMILY, FAMILY.tiny[0]))
    model.save_pretrained(tmp_path / "axk1")
    file = tmp_path / "axk1" / "model.safetensors"
    tensors = {name: x for name, x in load_file(file).items() if "e_score_correction_bias" not in name}
    assert SPARE not in tensors and SPARE.replace("0", "1") in tensors
    save_file(tensors | {SPARE: torch.randn(48)}, file, {"format": "pt"})
    config = tmp_path / "axk1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"topk_method": "none"}))
    return tmp_path / "axk1", AutoModelForCausalLM.from_pretrained(tmp_path / "axk1").eval()


def test_published_files_are_the_same_model_and_come_back(published, tmp_path):
    folder, theirs = published
    tokens = torch.randint(3, 101, (2, 9))
    ours = load(folder).eval()
    with torch.no_grad():
        wanted = theirs(tokens).logits
        assert (ours(tokens).logits - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert not ours.config.use_score_correction_bias
    convert(folder, tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "back", to="axk1")
    there, back = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["topk_method"] == "none"


def test_a_selection_bias_is_not_left_out_in_silence(published):
    folder, _ = published
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"model.layers.1.mlp.gate.e_score_correction_bias": torch.randn(10)}, file)
    with pytest.raises(ConversionError, match="e_score_correction_bias"):
        load(folder)
