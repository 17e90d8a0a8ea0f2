"""Models without a language head come in and go out as what they are: classifiers, readers of answers, bodies alone."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import transformers
from checkpoint_checks import LEAKS_PADDING, RELATIVE, assert_same_config, assert_same_tensors, batch, tensors_of
from random_models import randomize, their_class_config
from safetensors.torch import load_file, save_file
from samples import only
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import modeling_zoo
from conversion import ConversionError, convert, family_of, known_families, load
from conversion.engine.registry import file_name
from description_zoo.heads import BODY, CAUSAL, HEADS

# Whose own class, read before head and logits, has fewer digits in float32 than the tolerance: theirs in float64.
LOSES_DIGITS = {"recurrent_gemma", "qwen3_next"}
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
LABELLED = [head for head in HEADS if head not in (CAUSAL, BODY)]


def class_name(name, head):
    """Transformers' class of this kind for a family, by the name alone: looking at all of them takes long."""
    return {file_name(key): HEADS[head].class_for(key) for key in HEADS[head].classes}.get(name)


def their_class(name, head):
    return getattr(transformers, class_name(name, head))


def cases():
    for head in HEADS:
        for name in known_families() if head != CAUSAL else ():
            family = family_of(name)
            if family.tiny and not family.section and not family.oracle and class_name(name, head):
                yield name, head


CASES = list(cases())
FIRST = [("llama", head) for head in HEADS if head != CAUSAL] + [("gpt2", head) for head in LABELLED]
FIRST += [("gpt_neox", "ZooForTokenClassification"), ("opt", BODY), ("qwen3", "ZooForQuestionAnswering")]


def build(name, head, **changes):
    family = family_of(name)
    labels = {} if head == "ZooForQuestionAnswering" else {"num_labels": 3}
    changes = {"pad_token_id": 0} | labels | changes if head in LABELLED else changes
    config = their_class_config(name, family, {**family.tiny[0], **changes})
    model = their_class(name, head)._from_config(config).eval()
    randomize(model)
    return model


def assert_same_outputs(ours, theirs, name=""):
    inputs = batch(theirs.config.vocab_size, padding=0 if (name, 0) in LEAKS_PADDING else 4)
    if name in LOSES_DIGITS:
        theirs = deepcopy(theirs).double()
        if name == "qwen3_next":
            # Products in groups know no float64.
            theirs.set_experts_implementation("eager")
    with torch.no_grad():
        found, expected = ours(**inputs), theirs(**inputs)
    names = [name for name in OUTPUTS if name in expected]
    assert names
    for name in names:
        one, other = found[name], expected[name]
        if one.ndim > 2 or name.endswith("_logits"):
            one, other = (tensor[inputs["attention_mask"].bool()] for tensor in (one, other))
        assert other.std() > 1e-3
        assert (one - other).abs().max() <= RELATIVE * other.abs().max(), name


@pytest.mark.parametrize("case", only(FIRST, CASES), ids="-".join)
def test_in_and_back(case, tmp_path):
    name, head = case
    theirs = build(name, head)
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs.save_pretrained(source)
    convert(source, zoo, progress=False)
    assert json.loads((zoo / "config.json").read_text())["architectures"] == [head]
    ours, info = getattr(modeling_zoo, head).from_pretrained(zoo, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_outputs(ours, theirs, name)
    straight = load(source)
    assert type(straight) is type(ours)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(straight.state_dict()[key], tensor), key
    ours.save_pretrained(tmp_path / "again")
    for folder in (zoo, tmp_path / "again"):
        convert(folder, back, to=name, overwrite=True, progress=False)
        assert_same_tensors(tensors_of(back), tensors_of(source))
        assert_same_config(back, source)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_reward_model_trained_from_a_language_model_goes_out_as_one(name, tmp_path):
    family = family_of(name)
    theirs = AutoModelForCausalLM.from_config(their_class_config(name, family, {**family.tiny[0], "pad_token_id": 0}))
    theirs.save_pretrained(tmp_path / "language")
    convert(tmp_path / "language", tmp_path / "zoo", progress=False)
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "zoo", num_labels=1).eval()
    randomize(reward)
    reward.save_pretrained(tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "out", to=name, progress=False)
    out, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(out) is their_class(name, "ZooForSequenceClassification") and out.config.num_labels == 1
    assert_same_outputs(reward, out.eval())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("said", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_the_body_of_an_embedding_model(said, tied, tmp_path):
    """Its names begin with no `model.`, and its config.json may name the language model it was taken from."""
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = build("qwen3", BODY, tie_word_embeddings=tied)
    theirs.save_pretrained(source)
    raw = json.loads((source / "config.json").read_text()) | {"architectures": [said]}
    (source / "config.json").write_text(json.dumps(raw))
    convert(source, zoo, progress=False)
    assert_same_outputs(AutoModel.from_pretrained(zoo), theirs)
    convert(zoo, back, to="qwen3", progress=False)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)


def test_a_body_with_the_names_of_a_whole_model(tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = build("qwen3", BODY)
    theirs.save_pretrained(source)
    long = {f"model.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(long, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, zoo, progress=False)
    assert_same_outputs(load(source), theirs)
    convert(zoo, back, to="qwen3", progress=False)
    assert_same_tensors(tensors_of(back), long)
    # The same without a word that there is no head is a language model that has lost it.
    raw = json.loads((source / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConversionError, match="1 tensor is missing from the checkpoint: 'lm_head.weight'"):
        load(source)


def test_a_tied_checkpoint_may_store_the_head_alone(tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = build("llama", CAUSAL, tie_word_embeddings=True)
    theirs.save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_same_outputs(load(source), AutoModelForCausalLM.from_pretrained(source))
    convert(source, zoo, progress=False)
    convert(zoo, back, to="llama", progress=False)
    assert_same_tensors(tensors_of(back), tensors)
    convert(source, tmp_path / "narrow", dtype="bfloat16", progress=False)
    narrow = tensors_of(tmp_path / "narrow")["model.embed_tokens.weight"]
    assert torch.equal(narrow, tensors["lm_head.weight"].bfloat16())


def test_a_class_of_its_own_is_refused_by_name(tmp_path):
    theirs = build("qwen2", "ZooForSequenceClassification")
    theirs.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Qwen2ForProcessRewardModel"]}))
    with pytest.raises(ConversionError, match=r"names the class Qwen2ForProcessRewardModel \(architectures\)"):
        convert(tmp_path / "source", tmp_path / "zoo", progress=False)


def test_a_family_without_such_a_class_says_so(tmp_path):
    theirs = build("llama", "ZooForSequenceClassification")
    theirs.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    with pytest.raises(ConversionError, match="cwm cannot express this model: transformers has no ForSequenceClassif"):
        convert(tmp_path / "zoo", tmp_path / "out", to="cwm", progress=False)


LOADING = """
import sys, torch, transformers
auto = getattr(transformers, sys.argv[1])
model, info = auto.from_pretrained(sys.argv[2], trust_remote_code=True, output_loading_info=True)
assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]), info
out = model(torch.arange(1, 14)[None])
torch.save(next(out[name] for name in ("logits", "start_logits", "last_hidden_state") if name in out), sys.argv[3])
"""


@pytest.mark.parametrize("head", only(LABELLED[:1], [*LABELLED, BODY]))
def test_the_folder_loads_without_the_package(head, tmp_path):
    theirs = build("llama", head)
    theirs.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    command = [sys.executable, "-c", LOADING, HEADS[head].auto, tmp_path / "zoo", tmp_path / "out.pt"]
    subprocess.run(command, cwd=tmp_path, check=True, env={"PATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")})
    with torch.no_grad():
        out = theirs(torch.arange(1, 14)[None])
    expected = next(out[name] for name in OUTPUTS if name in out)
    assert (torch.load(tmp_path / "out.pt") - expected).abs().max() <= RELATIVE * expected.abs().max()


def test_inspect_counts_what_the_file_has(zoo, tmp_path):
    for name, head, changes in (
        ("gpt_neox", "ZooForSequenceClassification", {}),
        ("qwen3", BODY, {}),
        ("llama", CAUSAL, {"tie_word_embeddings": True}),
    ):
        theirs = build(name, head, **changes)
        theirs.save_pretrained(tmp_path / name)
        for target in (tmp_path / name, tmp_path / name / "config.json"):
            code, out, _ = zoo("inspect", target, "--json")
            report = json.loads(out)
            assert (code, report["class"], report["parameters"]) == (0, head, theirs.num_parameters())
        code, out, _ = zoo("inspect", tmp_path / name)
        assert code == 0 and head in out


def test_commands_take_a_classifier_for_what_it_is(zoo, tmp_path):
    source, target = tmp_path / "source", tmp_path / "zoo"
    build("llama", "ZooForSequenceClassification").save_pretrained(source)
    assert zoo("convert", source, target)[0] == 0
    code, out, err = zoo("verify", source, target)
    assert code == 0, err
    assert "LlamaForSequenceClassification" in out and "ZooForSequenceClassification" in out


@pytest.mark.parametrize("head", [CAUSAL, BODY])
def test_tokens_that_see_what_follows_do_so_here(head, tmp_path):
    """`is_causal` in config.json, as embedding models made of decoders have it."""
    theirs = build("qwen3", head, is_causal=False)
    theirs.save_pretrained(tmp_path / "source")
    assert_same_outputs(load(tmp_path / "source"), theirs)
    assert_same_outputs(load(tmp_path / "source"), type(theirs).from_pretrained(tmp_path / "source"))
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    convert(tmp_path / "zoo", tmp_path / "back", to="qwen3", progress=False)
    assert_same_config(tmp_path / "back", tmp_path / "source")
    ours = getattr(modeling_zoo, head).from_pretrained(tmp_path / "zoo")
    ours.config.source_config = None
    ours.save_pretrained(tmp_path / "nowhere")
    convert(tmp_path / "nowhere", tmp_path / "out", to="qwen3", progress=False)
    assert_same_outputs(ours, type(theirs).from_pretrained(tmp_path / "out"))


def test_the_card_says_how_a_classifier_is_loaded(tmp_path):
    build("llama", "ZooForTokenClassification").save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    card = (tmp_path / "zoo" / "README.md").read_text()
    for text in (
        "pipeline_tag: token-classification",
        "AutoModelForTokenClassification.from_pretrained",
        '"TOKEN_CLS"',
    ):
        assert text in card
    assert "AutoModelForCausalLM" not in card and "vllm" not in card
