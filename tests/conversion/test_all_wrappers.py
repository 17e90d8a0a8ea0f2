"""Every wrapper of transformers around a text model that zoo knows, built small from its default: text exact, all of it
back bit for bit, also after training; heads tied as transformers ties them."""

import json

import pytest
import torch
from checkpoint_checks import RELATIVE, assert_same_tensors, tensors_of
from samples import only
from tiny_wrappers import text_outputs, tiny_wrapper
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversion import convert, import_config, load
from conversion.engine.catalog import wrappers

QUIET = {"progress": False}
# Those with a file of their own.
WITH_A_FILE = [
    "cosmos3_edge", "cosmos3_omni", "fuyu", "gemma3", "gemma4", "llama4", "mistral3", "nemo_speechlm", "qwen3_5",
    "qwen3_5_moe",
]  # fmt: skip
# Its vision tower is of a library that the tests have not: test_wrappers.py puts tensors in its place.
OF_TIMM = ("gemma3n",)
CASES = sorted({*wrappers(), *WITH_A_FILE} - {*OF_TIMM})
# Chunked recurrences, in which both sides are as far from double precision: that is what zoo is compared with.
IN_DOUBLE = ("minicpmv4_6", "minicpmv4_7")
# One with other names, one of other experts, one whose text stands two levels down.
OFTEN = ("kimi_k25", "qwen3_vl_moe", "qwen2_5_omni")


def inputs():
    tokens = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    return [{"input_ids": tokens}, {"input_ids": tokens, "attention_mask": mask}]


# Counts blocks of keys from the first slot, padding too: that zoo counts from the first token is in the combinations.
COUNTS_PADDING = {"minimax_m3_vl", "minimax_m3_vl_text"}


def assert_equal_on_text(ours, theirs):
    for batch in inputs()[: 1 if theirs.config.model_type in COUNTS_PADDING else 2]:
        expected = text_outputs(theirs, **batch).float()
        with torch.no_grad():
            found = ours(**batch)
        found = found.logits if hasattr(found, "logits") else found.last_hidden_state
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        assert expected[real].std() > 1e-3
        assert (found - expected)[real].abs().max() <= RELATIVE * expected[real].abs().max()


def independent(tensors):
    """Each of them once, however often it is named."""
    return {tensor.data_ptr(): tensor for tensor in tensors.values()}.values()


def reloaded(theirs, folder):
    """A model of the same class and config with the weights of a folder; a class that reads speakers too does not."""
    read = PreTrainedModel.from_pretrained.__func__
    model, info = read(type(theirs), folder, config=theirs.config, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", only(OFTEN, CASES))
def test_a_wrapper_by_its_default(name, tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = tiny_wrapper(name)
    theirs.save_pretrained(source)
    assert convert(source, zoo, **QUIET).kept
    assert_equal_on_text(load(zoo).eval(), theirs.double() if name in IN_DOUBLE else theirs)
    raw = json.loads((source / "config.json").read_text())
    convert(zoo, back, to=raw["model_type"], **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert json.loads((back / "config.json").read_text()) == raw


@pytest.mark.parametrize("name", only(["ernie4_5_vl_moe"], CASES))
def test_a_wrapper_that_was_trained_gets_its_new_text_and_its_old_towers(name, tmp_path):
    source, zoo, tuned, back = (tmp_path / folder for folder in ("source", "zoo", "tuned", "back"))
    theirs = tiny_wrapper(name)
    theirs.save_pretrained(source)
    convert(source, zoo, **QUIET)
    ours = load(zoo).eval()
    with torch.no_grad():
        count = sum(tensor.mul_(1.03125).numel() for tensor in independent(ours.state_dict()))
    ours.save_pretrained(tuned)
    model_type = json.loads((source / "config.json").read_text())["model_type"]
    convert(tuned, back, to=model_type, **QUIET)
    before, after = tensors_of(source), tensors_of(back)
    assert before.keys() == after.keys()
    theirs = reloaded(theirs, back)
    assert_equal_on_text(ours, theirs.double() if name in IN_DOUBLE else theirs)
    assert sum((before[key] != after[key]).sum() for key in before) == count


@pytest.mark.parametrize("name", only(["kimi_k25"], CASES))
def test_heads_are_tied_as_transformers_ties_them(name):
    """By the flag beside the text model, by the one inside it, by either: as their class does."""
    for at_top, inside in ((True, False), (False, True), (True, True)):
        theirs = tiny_wrapper(name, text={"tie_word_embeddings": inside}, tie_word_embeddings=at_top)
        head = theirs.get_output_embeddings()
        if head is None:
            continue
        tied = head.weight is theirs.get_input_embeddings().weight
        assert import_config(json.loads(theirs.config.to_json_string())).tie_word_embeddings == tied, (at_top, inside)


# Those without a head, and those whose text model has no class that writes text by itself.
STAYS = {"colqwen2", "cosmos3_edge", "deepseek_ocr2", "step3p7"}


@pytest.mark.parametrize("name", only([], [name for name in CASES if name not in STAYS]))
def test_the_text_model_leaves_as_one_that_transformers_runs(name, tmp_path):
    source, zoo, alone = (tmp_path / folder for folder in ("source", "zoo", "alone"))
    tiny_wrapper(name).save_pretrained(source)
    convert(source, zoo, **QUIET)
    model_type = json.loads((source / "config.json").read_text())["model_type"]
    convert(zoo, alone, to=model_type, text_only=True, **QUIET)
    dtype = torch.float64 if name in IN_DOUBLE else torch.float32
    assert_equal_on_text(load(zoo).eval(), AutoModelForCausalLM.from_pretrained(alone, dtype=dtype).eval())
