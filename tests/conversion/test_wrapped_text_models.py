"""Checkpoints that hold a vision tower around a text model: the text model comes out, the whole goes back."""

import json
from copy import deepcopy

import pytest
import torch
import transformers
from random_models import randomize
from safetensors.torch import load_file, save_file
from samples import every
from wrapped_models import PERSIMMON, WRAPPED

from conversion import convert, export_config, import_config, load
from conversion.families.qwen3_5_moe_text import TINY as SPARSE
from conversion.families.shared_common import tiny
from conversion.families.shared_experts import tiny_experts
from conversion.families.shared_linear import TINY_DELTA


@pytest.mark.parametrize("case", every(3, WRAPPED))
def test_text_of_a_wrapped_model(case, tmp_path):
    prefix, suffix, arguments = WRAPPED[case]
    config = getattr(transformers, prefix + "Config")(**arguments, attn_implementation="eager")
    theirs = getattr(transformers, prefix + suffix)._from_config(config).eval()
    randomize(theirs)
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs.save_pretrained(source)

    tokens = torch.randint(1, 90, (2, 13))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, load(source)(tokens).logits
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()

    convert(source, zoo, progress=False)
    convert(zoo, back, to=case.split(",")[0], progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert sorted(after) == sorted(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


TIES = [(case, top, text) for case in WRAPPED for top in (False, True) for text in (False, True)]


@pytest.mark.parametrize("flags", every(9, TIES), ids=str)
def test_the_head_is_tied_by_the_flag_that_their_class_reads(flags, tmp_path):
    case, top, text = flags
    prefix, suffix, arguments = WRAPPED[case]
    arguments = deepcopy(arguments) | {"tie_word_embeddings": top, "attn_implementation": "eager"}
    arguments["text_config"]["tie_word_embeddings"] = text
    theirs = getattr(transformers, prefix + suffix)._from_config(getattr(transformers, prefix + "Config")(**arguments))
    randomize(theirs)
    tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs.eval().save_pretrained(source)
    convert(source, zoo, progress=False)
    ours, tokens = load(zoo), torch.randint(1, 90, (2, 13))
    assert ours.config.tie_word_embeddings is tied
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    convert(zoo, back, to=case.split(",")[0], progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_a_head_untied_afterwards_is_said_where_their_class_reads_it(tmp_path):
    prefix, suffix, arguments = WRAPPED["gemma3"]
    theirs = getattr(transformers, prefix + suffix)._from_config(getattr(transformers, prefix + "Config")(**arguments))
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "source")
    raw = json.loads((tmp_path / "source" / "config.json").read_text())
    ours = import_config(raw)
    assert ours.tie_word_embeddings
    ours.tie_word_embeddings = False
    assert export_config(ours, "gemma3") == raw | {"tie_word_embeddings": False}


def test_an_old_fuyu_config_has_its_text_model_at_the_top():
    flat = {key: value for key, value in PERSIMMON.items() if key != "model_type"}
    theirs = transformers.FuyuConfig(**flat, rope_theta=25000.0).text_config
    ours = import_config(flat | {"model_type": "fuyu", "rope_theta": 25000.0})
    assert ours.rope_parameters == theirs.rope_parameters
    assert ours.hidden_size == theirs.hidden_size == 48


@pytest.mark.parametrize("name, sizes", [("Qwen3_5", tiny(**TINY_DELTA)), ("Qwen3_5Moe", tiny_experts(**SPARSE))])
def test_a_text_config_over_the_tensors_of_a_wrapped_model(name, sizes, tmp_path):
    """transformers' text class reads them so too; a vision tower beside them is nobody's, and comes back."""
    config = getattr(transformers, f"{name}TextConfig")(**sizes)
    theirs = getattr(transformers, f"{name}ForCausalLM")(config)
    randomize(theirs)
    plain, source, zoo, back = (tmp_path / folder for folder in ("plain", "source", "zoo", "back"))
    theirs.save_pretrained(plain)
    theirs.save_pretrained(source)
    wrapped = {
        f"model.language_model.{key.removeprefix('model.')}" if key.startswith("model.") else key: tensor
        for key, tensor in load_file(plain / "model.safetensors").items()
    }
    assert sum(key.startswith("model.language_model.layers.") for key in wrapped) > 20
    wrapped["model.visual.patch_embed.proj.weight"] = torch.randn(3, 5)
    save_file(wrapped, source / "model.safetensors", metadata={"format": "pt"})

    again = type(theirs).from_pretrained(source).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.state_dict().items())
    expected, found = (load(folder).state_dict() for folder in (plain, source))
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())

    convert(source, zoo, progress=False)
    convert(zoo, back, to=config.model_type, progress=False)
    after = load_file(back / "model.safetensors")
    assert sorted(after) == sorted(wrapped)
    assert all(torch.equal(after[key], tensor) for key, tensor in wrapped.items())
