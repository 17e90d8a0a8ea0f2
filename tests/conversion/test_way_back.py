"""Nothing a source held is lost in silence: towers and further layers come back after training, or somebody is told."""

import json
import os
import shutil

import pytest
import torch
from checkpoint_checks import assert_same_config, tensors_of
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file
from samples import only
from transformers import AutoModelForCausalLM, PreTrainedModel
from wrapped_models import WRAPPED, save_wrapped

from conversion import ConversionError, convert, family_of, load
from conversion.families.shared_common import tiny
from modeling_zoo import platform_saving

LLAMA4 = (
    "Llama4", "ForConditionalGeneration",
    {
        "text_config": tiny(intermediate_size_mlp=88, num_local_experts=4, num_experts_per_tok=1, moe_layers=[1]),
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 28, "patch_size": 14, "vision_output_dim": 20, "projector_input_dim": 20,
            "projector_output_dim": 20,
        },
        "image_token_index": 99, "boi_token_index": 97, "eoi_token_index": 98,
    },
)  # fmt: skip
MODELS = {name: WRAPPED[name] for name in ("gemma3", "gemma4", "mistral3", "qwen3_5")} | {"llama4": LLAMA4}
MTP = "deepseek_v3"
TEXTS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "llama4": "llama4_text", "mistral3": "mistral"}
TEXTS |= {"qwen3_5": "qwen3_5_text"}


def wrapped(name, folder):
    save_wrapped(MODELS[name], folder)
    if name == "qwen3_5":
        add(folder, {"mtp.fc.weight": torch.randn(48, 96), "mtp.norm.weight": torch.randn(48)})


def with_prediction_layer(folder):
    family = family_of(MTP)
    theirs = build(their_class_config(MTP, family, {**family.tiny[0], "num_nextn_predict_layers": 1}), family)
    theirs.save_pretrained(folder)
    layer = f"model.layers.{theirs.config.num_hidden_layers}."
    add(folder, {f"{layer}eh_proj.weight": torch.randn(48, 96), f"{layer}enorm.weight": torch.randn(48)})


def add(folder, tensors):
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


@pytest.fixture(params=only(("gemma3", MTP), [*MODELS, MTP]))
def case(request, tmp_path):
    """-> the family, with a checkpoint of it in `source` and the model taken out of it in `zoo`."""
    with_prediction_layer(tmp_path / "source") if request.param == MTP else wrapped(request.param, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    return request.param


def trained(folder, target):
    """A folder's model, its last norm changed, saved elsewhere."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(target)
    return target


def assert_all_but_the_norm(found, expected):
    tensors, others = tensors_of(found), tensors_of(expected)
    assert sorted(tensors) == sorted(others)
    assert len([name for name in tensors if not torch.equal(tensors[name], others[name])]) == 1
    assert_same_config(found, expected)


@pytest.fixture
def loaded(tmp_path):
    with_prediction_layer(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "zoo")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_many_processes_the_first_carries_it(loaded, rank, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    carry = platform_saving.SavedFolder.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda model, folder, *_: model.config.save_pretrained(folder)
    )
    carry(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "source" / "tensors.safetensors").is_file() == (rank == 0)


@pytest.mark.parametrize("meanwhile", ["linked by another process", "one folder by two names"])
def test_a_file_that_is_there_already_stays_whole(loaded, meanwhile, tmp_path, monkeypatch):
    again, kept, link = tmp_path / "again", tmp_path / "zoo" / "source", os.link
    tensors = load_file(kept / "tensors.safetensors")
    if meanwhile == "one folder by two names":
        (kept / "inner").mkdir()
        (kept / "tensors.safetensors").rename(kept / "inner" / "tensors.safetensors")
        (again / "source").mkdir(parents=True)
        (again / "source" / "inner").symlink_to(kept / "inner")
    else:

        def linked_twice(path, place):
            link(path, place)
            link(path, place)

        monkeypatch.setattr(os, "link", linked_twice)
    loaded.save_pretrained(again)
    inner = "inner" if meanwhile == "one folder by two names" else "."
    found = again / "source" / inner / "tensors.safetensors"
    assert all(torch.equal(load_file(found)[name], tensor) for name, tensor in tensors.items())


def test_training_carries_along_what_the_source_held(case, tmp_path):
    out = trained(trained(tmp_path / "zoo", tmp_path / "once"), tmp_path / "twice")
    shutil.rmtree(tmp_path / "zoo")
    convert(out, tmp_path / "back", to=case, progress=False)
    assert_all_but_the_norm(tmp_path / "back", tmp_path / "source")


def test_what_is_lost_is_named_and_found_in_the_source(case, tmp_path, zoo):
    out = trained(tmp_path / "zoo", tmp_path / "trained")
    shutil.rmtree(out / "source")
    held = json.loads((tmp_path / "zoo" / "source" / "manifest.json").read_text())["kept"]
    without = "--without-extras" if case == MTP else "--text-only"
    code, _, err = zoo("convert", out, tmp_path / "back", "--to", case)
    assert code == 1 and err.count("\n") == 1 and not (tmp_path / "back").exists()
    assert "has lost" in err and "--source FOLDER or owner/name" in err and without in err
    assert sum(int(word[1:]) for word in err.split() if word[:1] == "(" and word[1:].isdigit()) == len(held) > 0
    for source in ("source", "zoo"):
        arguments = ("convert", out, tmp_path / f"from-{source}", "--to", case, "--source", tmp_path / source)
        code, _, err = zoo(*arguments)
        assert (code, err) == (0, "")
        assert_all_but_the_norm(tmp_path / f"from-{source}", tmp_path / "source")


def test_a_model_never_stored_as_zoo_remembers_too(case, tmp_path):
    load(tmp_path / "source").save_pretrained(tmp_path / "straight")
    with pytest.raises(ConversionError, match="has lost .*tensor"):
        convert(tmp_path / "straight", tmp_path / "back", to=case, progress=False)
    convert(tmp_path / "straight", tmp_path / "back", to=case, source=tmp_path / "source", progress=False)
    found, expected = tensors_of(tmp_path / "back"), tensors_of(tmp_path / "source")
    assert sorted(found) == sorted(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_language_model_alone_is_a_whole_checkpoint(case, tmp_path):
    """With the rest still there and with the rest lost: transformers' own text class reads all of it."""
    shutil.copytree(tmp_path / "zoo", tmp_path / "lost", ignore=shutil.ignore_patterns("source"))
    tokens = torch.randint(1, 90, (2, 11))
    expected = load(tmp_path / "source")(tokens).logits
    for folder in ("zoo", "lost"):
        report = convert(tmp_path / folder, tmp_path / f"{folder}-out", to=case, text_only=True, progress=False)
        assert report.model_type == TEXTS.get(case, case) and (report.left_behind or folder == "lost")
        raw = json.loads((tmp_path / f"{folder}-out" / "config.json").read_text())
        assert not any(raw.get(key) for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "vision_config"))
        theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / f"{folder}-out", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            found = theirs(tokens).logits
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_another_checkpoint_is_not_the_source(tmp_path):
    wrapped("gemma3", tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    out = trained(tmp_path / "zoo", tmp_path / "trained")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "source", other)
    tensors = load_file(other / "model.safetensors")
    tower = [name for name in tensors if name.startswith("vision_tower")]
    save_file({name: tensors[name] for name in tensors if name != tower[0]}, other / "model.safetensors")
    with pytest.raises(ConversionError, match=rf"is not what this model came from: .*vision_tower \({len(tower)} t"):
        convert(out, tmp_path / "back", to="gemma3", source=other, progress=False)
    wrapped("mistral3", tmp_path / "mistral3")
    with pytest.raises(ConversionError, match="is a mistral3 checkpoint, this model came from gemma3"):
        convert(out, tmp_path / "back", to="gemma3", source=tmp_path / "mistral3", progress=False)
    with pytest.raises(ConversionError, match="are for converting back"):
        convert(tmp_path / "source", tmp_path / "back", source=other, progress=False)
    with pytest.raises(ConversionError, match="of use when converting back to gemma3, where the model is from"):
        convert(out, tmp_path / "back", to="gemma3_text", source=other, progress=False)


def test_another_family_is_told_what_stays_behind(tmp_path, zoo):
    wrapped("gemma3", tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    shutil.rmtree(tmp_path / "zoo" / "source")
    code, out, _ = zoo("convert", tmp_path / "zoo", tmp_path / "out", "--to", "gemma3_text")
    assert code == 0 and "left behind: " in out and "vision_tower" in out


def test_folders_without_a_record_are_not_trusted_to_be_whole(tmp_path):
    """What earlier versions converted, saved again by them."""
    wrapped("gemma3", tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    shutil.rmtree(tmp_path / "zoo" / "source")
    path = tmp_path / "zoo" / "config.json"
    raw = json.loads(path.read_text())
    del raw["source_extras"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ConversionError, match="has lost what a gemma3 holds beside its text model"):
        convert(tmp_path / "zoo", tmp_path / "back", to="gemma3", progress=False)
    convert(tmp_path / "zoo", tmp_path / "back", to="gemma3", source=tmp_path / "source", progress=False)


def test_the_record_names_the_repository(tmp_path):
    snapshot = tmp_path / "models--someone--vision" / "snapshots" / "0123"
    wrapped("gemma3", snapshot)
    convert(snapshot, tmp_path / "zoo", progress=False)
    said = json.loads((tmp_path / "zoo" / "config.json").read_text())["source_extras"]
    assert (said["repository"], said["revision"]) == ("someone/vision", "0123")
    assert str(tmp_path) not in json.dumps(said)
    shutil.rmtree(tmp_path / "zoo" / "source")
    with pytest.raises(ConversionError, match=r"has lost .* of someone/vision, .*--source"):
        convert(tmp_path / "zoo", tmp_path / "back", to="gemma3", progress=False)
