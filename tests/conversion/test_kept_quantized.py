"""Stored tensors of quantised checkpoints, kept: they go back bit for bit, changed weights encoded again."""

import json
import shutil

import pytest
import torch
from checkpoint_checks import batch
from encoders import encoded
from safetensors.torch import load_file, save_file
from samples import only
from storage_formats import SCHEMES, packed
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, load
from conversion.engine import streaming

QUIET = {"progress": False}
OFTEN = ("fp8", "fp8, exponents", "mxfp4", "modelopt", "gptq", "5 bits, shifted", "int, rows")


def same_files(one, other, plain=None):
    """Both have the same tensors to the bit; those that are not packed in the second as `plain`, if given."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if plain is not None and tensor.dtype in (torch.bfloat16, torch.float16) and second[name].dtype == plain:
            tensor = tensor.to(plain)
        assert tensor.dtype == second[name].dtype and tensor.shape == second[name].shape, name
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, second[name])]
        assert torch.equal(*as_bytes), name


def scheme_in(folder):
    return json.loads((folder / "config.json").read_text()).get("quantization_config")


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch):
    """What is compared with its stored tensors is compared some rows at a time."""
    monkeypatch.setattr(streaming, "PART", 5000)


@pytest.mark.parametrize("name", only(OFTEN, SCHEMES))
def test_untouched_weights_go_back_bit_for_bit(name, tmp_path):
    model_type = packed(name, tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "zoo", keep_quantized=True, **QUIET)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo")
    inputs = batch(model.config.vocab_size)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, load(tmp_path / "packed")(**inputs).logits)
    # Saved again, in another dtype too, the weights are still what the stored tensors stand for.
    model.float().save_pretrained(tmp_path / "saved")
    for folder, plain in (("zoo", None), ("saved", torch.float32)):
        convert(tmp_path / folder, tmp_path / f"{folder}-back", to=model_type, **QUIET)
        same_files(tmp_path / "packed", tmp_path / f"{folder}-back", plain)
        assert scheme_in(tmp_path / f"{folder}-back") == scheme_in(tmp_path / "packed")
    convert(tmp_path / "zoo", tmp_path / "plain", to=model_type, dtype="bfloat16", **QUIET)
    assert scheme_in(tmp_path / "plain") is None


def changed(model_type, tmp_path):
    """A zoo folder with one matrix of another size of numbers, and its name there."""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo")
    name = "model.layers.0.mlp.down_proj.weight"
    if name not in dict(model.named_parameters()):
        name = "model.layers.0.mlp.experts.down_proj"
    weight = model.get_parameter(name)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    model.save_pretrained(tmp_path / "tuned")
    return name


# A model saved by transformers keeps a router's biases in float32: what is compared below is what stays as it was.
@pytest.mark.parametrize("name", only(OFTEN, [name for name in SCHEMES if name != "fp8, experts"]))
def test_changed_weights_are_encoded_again(name, tmp_path):
    model_type = packed(name, tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "zoo", keep_quantized=True, **QUIET)
    parameter = changed(model_type, tmp_path)
    convert(tmp_path / "tuned", tmp_path / "back", to=model_type, **QUIET)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("packed", "back"))
    assert {key: (t.dtype, t.shape) for key, t in before.items()} == {k: (t.dtype, t.shape) for k, t in after.items()}
    as_bytes = [{key: t.reshape(-1).view(torch.uint8) for key, t in side.items()} for side in (before, after)]
    differing = [key for key in before if not torch.equal(as_bytes[0][key], as_bytes[1][key])]
    assert differing and all("layers.0.mlp" in key and "down_proj" in key for key in differing)
    weight = load(tmp_path / "tuned").get_parameter(parameter).detach()
    parts = encoded(name, parameter, weight, before)
    assert set(differing) <= set(parts), "something is not judged"
    for key, tensor in parts.items():
        assert torch.equal(after[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key
    # What was encoded is what is stored from now on.
    convert(tmp_path / "back", tmp_path / "again", keep_quantized=True, **QUIET)
    convert(tmp_path / "again", tmp_path / "same", to=model_type, **QUIET)
    same_files(tmp_path / "back", tmp_path / "same")


def test_what_was_kept_and_is_gone_is_named(tmp_path):
    packed("fp8", tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "zoo", keep_quantized=True, **QUIET)
    shutil.rmtree(tmp_path / "zoo" / "source")
    with pytest.raises(ConversionError, match=r"lost the stored tensors of its source \(fp8\).*--source .*--dtype"):
        convert(tmp_path / "zoo", tmp_path / "back", to="llama", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", source=tmp_path / "packed", **QUIET)
    same_files(tmp_path / "packed", tmp_path / "back")
    convert(tmp_path / "zoo", tmp_path / "plain", to="llama", dtype="bfloat16", **QUIET)


DAMAGED = {
    "a place that is not there": ({"places": {"nowhere": {"quantization_config": {}}}}, "'nowhere', which config.json"),
    "keys of something else": ({"places": {"": {"model_type": "gpt2"}}}, "describes wrongly"),
    "places that are a list": ({"places": {"": [1]}}, "describes wrongly"),
    "no place": ({"places": {}}, "describes wrongly"),
    "an unknown scheme": ({"scheme": {"quant_method": "vptq"}}, "describes wrongly"),
    "a dtype of integers": ({"dtype": "int8"}, "describes wrongly"),
    "a file elsewhere": ({"files": {"../config.json": {}}}, "describes wrongly"),
    "more tensors than there are": ({"tensors": 1000}, "of the 1000 stored tensors that it kept"),
}


def test_a_damaged_record_of_what_was_kept_is_refused(tmp_path):
    packed("fp8, rows", tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "zoo", keep_quantized=True, **QUIET)
    path = tmp_path / "zoo" / "source" / "manifest.json"
    manifest = json.loads(path.read_text())
    for change, match in DAMAGED.values():
        path.write_text(json.dumps(manifest | {"quantized": manifest["quantized"] | change}))
        with pytest.raises(ConversionError, match=match):
            convert(tmp_path / "zoo", tmp_path / "back", to="mistral", **QUIET)
        assert not (tmp_path / "back").exists()
    path.write_text(json.dumps(manifest))
    stored = load_file(path.parent / "quantized.safetensors")
    whole = {name: tensor for name, tensor in stored.items() if "q_proj" not in name}
    save_file(whole, path.parent / "quantized.safetensors")
    with pytest.raises(ConversionError, match=f"{len(whole)} of the {len(stored)} stored tensors"):
        convert(tmp_path / "zoo", tmp_path / "back", to="mistral", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to="mistral", dtype="bfloat16", **QUIET)
    assert scheme_in(tmp_path / "back") is None


def test_weights_that_are_plain_or_not_finite_are_refused(tmp_path, zoo):
    packed("fp8, rows", tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "plain", to="mistral", **QUIET)
    code, out, err = zoo("convert", tmp_path / "plain", tmp_path / "zoo", "--keep-quantized")
    assert (code, out) == (1, "") and "are not quantised: leave out --keep-quantized" in err
    code, out, err = zoo("convert", tmp_path / "packed", tmp_path / "other", "--to", "llama", "--keep-quantized")
    assert (code, out) == (1, "") and "--keep-quantized" in err
    code, _, err = zoo("convert", tmp_path / "packed", tmp_path / "zoo", "--keep-quantized")
    assert (code, err) == (0, "")
    tensors = load_file(tmp_path / "zoo" / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(tensors, tmp_path / "zoo" / "model.safetensors", metadata={"format": "pt"})
    code, out, err = zoo("convert", tmp_path / "zoo", tmp_path / "back", "--to", "mistral")
    assert (code, out) == (1, "") and "down_proj.weight' cannot be stored" in err and "not finite" in err
