"""Layers that predict further tokens are parts of the model: in and out bit for bit, with the drafts of transformers'
own classes."""

import json

import pytest
import torch
import transformers
from checkpoint_checks import assert_same_config, tensors_of
from random_models import randomize, their_class_config
from safetensors.torch import save_file
from samples import only
from transformers import AutoModelForCausalLM
from transformers.generation import CandidateGenerator, candidate_generator
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from conversion import ConversionError, convert, family_of
from conversion.engine.config_bridge import import_config
from conversion.engine.prediction import arrangement_of
from modeling_zoo import ZooConfig, ZooForCausalLM
from modeling_zoo.platform_drafts import MultiTokenDrafts

BEHIND_THE_LAST = [
    "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hy_v3", "bailing_hybrid",
]  # fmt: skip
APART = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "exaone_moe", "mellum"]
FAMILIES = BEHIND_THE_LAST + APART


def make(to, depth, **changes):
    """A zoo model like the family's first small one, with prediction layers as the family has them."""
    family = family_of(to)
    fields = import_config(json.loads(their_class_config(to, family, family.tiny[0]).to_json_string())).to_dict()
    config = ZooConfig.from_dict(
        {name: fields[name] for name in fields if name not in ("source_config", "zoo_version")}
    )
    arrangement = arrangement_of(family.rules_for(config))
    assert arrangement.behind == (to in BEHIND_THE_LAST)
    config = ZooConfig.from_dict({**config.to_dict(), **arrangement.fields(config, depth), **changes})
    torch.manual_seed(0)
    model = ZooForCausalLM(config).eval()
    randomize(model)
    return model


def there_and_back(model, to, folder):
    model.save_pretrained(folder / "own")
    convert(folder / "own", folder / "theirs", to=to, progress=False)
    convert(folder / "theirs", folder / "zoo", progress=False)
    return folder / "theirs"


def assert_same_files(one, other):
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("to", only(["deepseek_v3", "glm4_moe", "qwen3_next", "bailing_hybrid"], FAMILIES))
def test_out_and_in_and_out_again(to, depth, tmp_path):
    if (to, depth) == ("mellum", 2):
        pytest.skip("its class has one at most")
    model = make(to, depth)
    theirs = there_and_back(model, to, tmp_path)
    names, raw = tensors_of(theirs), json.loads((theirs / "config.json").read_text())
    layers = model.config.num_hidden_layers
    block = f"mtp.layers.{depth - 1}." if to in APART else f"model.layers.{layers + depth - 1}."
    assert f"{block}input_layernorm.weight" in names
    assert ("mtp.fc.weight" if to in APART else f"{block}eh_proj.weight") in names
    assert depth in [raw.get(key) for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers")]
    assert_same_files(tmp_path / "own", tmp_path / "zoo")
    assert not (tmp_path / "zoo" / "source" / "tensors.safetensors").exists()
    convert(tmp_path / "zoo", tmp_path / "again", to=to, progress=False)
    assert_same_files(theirs, tmp_path / "again")
    assert_same_config(theirs, tmp_path / "again")


GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "use_mtp": True}


@pytest.mark.skipif(
    not hasattr(candidate_generator, "MTPCandidateGenerator"), reason="this transformers has no drafts by such layers"
)
@pytest.mark.parametrize(("to", "depth"), [("deepseek_v3", 1), ("deepseek_v3", 3), ("glm4_moe", 2), ("mellum", 1)])
def test_drafts_are_those_of_transformers(to, depth, tmp_path, monkeypatch):
    """Token by token, whatever becomes of them; its classes find such layers by their number in the largest model."""
    folder = there_and_back(make(to, depth), to, tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo").eval()
    layers = ours.config.num_hidden_layers
    known = [rf"model\.layers\.{number}\." for number in range(layers, layers + depth)]
    if to not in APART:
        their_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[to])
        monkeypatch.setattr(their_class, "_keys_to_ignore_on_load_unexpected", known)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt, rounds = torch.randint(1, 101, (1, 6)), {}
    for kind, model in ((candidate_generator.MTPCandidateGenerator, theirs), (MultiTokenDrafts, ours)):
        found = rounds[kind] = []

        def noted(self, input_ids, made=kind.get_candidates, found=found, **kwargs):
            candidates, logits = made(self, input_ids, **kwargs)
            found.append((candidates, logits))
            return candidates, logits

        monkeypatch.setattr(kind, "get_candidates", noted)
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            found.append((model.generate(prompt, **GREEDY), None))
    (*their_rounds, their_text), (*our_rounds, our_text) = rounds.values()
    assert torch.equal(our_text[0], their_text[0])
    assert len(our_rounds) == len(their_rounds) > 3
    for (ours, our_logits), (others, their_logits) in zip(our_rounds, their_rounds, strict=True):
        # Theirs drafts beyond the longest text as well.
        assert torch.equal(ours, others[:, : ours.shape[1]])
        if our_logits is not None:
            torch.testing.assert_close(our_logits, their_logits[:, : our_logits.shape[1]], rtol=1e-4, atol=1e-4)


def add(folder, tensors):
    save_file(tensors_of(folder) | tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_copies_of_embedding_and_head_are_set_aside_and_come_back(tmp_path):
    theirs = there_and_back(make("deepseek_v3", 1), "deepseek_v3", tmp_path)
    tensors = tensors_of(theirs)
    copies = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
    add(theirs, {f"model.layers.3.{copy}": tensors[name].clone() for copy, name in copies.items()})
    convert(theirs, tmp_path / "with", progress=False)
    assert_same_files(tmp_path / "own", tmp_path / "with")
    convert(tmp_path / "with", tmp_path / "again", to="deepseek_v3", progress=False)
    assert_same_files(theirs, tmp_path / "again")


@pytest.mark.parametrize("left_out", ["eh_proj.weight", "self_attn.o_proj.weight", "shared_head.norm.weight"])
def test_a_layer_that_lacks_something_is_set_aside_as_a_whole(left_out, tmp_path):
    theirs = there_and_back(make("deepseek_v3", 1), "deepseek_v3", tmp_path)
    tensors = {name: tensor for name, tensor in tensors_of(theirs).items() if name != f"model.layers.3.{left_out}"}
    save_file(tensors, theirs / "model.safetensors", metadata={"format": "pt"})
    convert(theirs, tmp_path / "aside", progress=False)
    assert not any(name.startswith("mtp.") for name in tensors_of(tmp_path / "aside"))
    convert(tmp_path / "aside", tmp_path / "again", to="deepseek_v3", progress=False)
    assert_same_files(theirs, tmp_path / "again")
    assert_same_config(theirs, tmp_path / "again")


@torch.no_grad()
def test_training_them_or_leaving_them_out_goes_back(tmp_path):
    theirs = there_and_back(make("glm4_moe", 1), "glm4_moe", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo")
    model.mtp.layers[0].mlp.gate.weight.mul_(2)
    model.save_pretrained(tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "back", to="glm4_moe", progress=False)
    before, after = tensors_of(theirs), tensors_of(tmp_path / "back")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and changed == ["model.layers.3.mlp.gate.weight"]
    assert_same_config(theirs, tmp_path / "back")
    without = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo", num_mtp_layers=0, mtp=None)
    without.save_pretrained(tmp_path / "less")
    convert(tmp_path / "less", tmp_path / "plain", to="glm4_moe", progress=False)
    assert not any(name.startswith("model.layers.3.") for name in tensors_of(tmp_path / "plain"))
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    ("to", "changes"),
    [
        ("llama", {}),
        ("deepseek_v3", {"mtp": {"projection": "one_for_all"}}),
        ("deepseek_v3", {"mtp": {"hidden_states_first": True}}),
        ("qwen3_next", {"mtp": {"layer_type": "linear_attention", "projection": "one_for_all"}}),
    ],
)
def test_another_arrangement_is_refused(to, changes, tmp_path):
    model = make("qwen3_next" if to == "qwen3_next" else "deepseek_v3", 1, **changes)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(ConversionError, match="cannot express .*mtp|cannot express .*num_mtp_layers"):
        convert(tmp_path / "own", tmp_path / "theirs", to=to, progress=False)


def test_what_drafts_is_of_transformers_own_kind():
    assert issubclass(MultiTokenDrafts, CandidateGenerator)
