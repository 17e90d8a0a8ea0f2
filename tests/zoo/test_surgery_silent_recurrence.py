"""A recurrence beside attention that says nothing yet: the same bits, and it learns."""

import json

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from configuration_zoo.vocabulary import RECURRENCES
from modeling_zoo import ZooForCausalLM
from zoo.surgery import Healing, operate
from zoo.surgery.measurement import perplexity
from zoo.surgery.operation import SurgeryError
from zoo.surgery.silent_recurrence import SilentRecurrence, silent_mixer

TYPES, KIND = "layer_types", "linear_attention_type"
HYBRID = {TYPES: "hybrid", KIND: "gated_delta_net"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", RECURRENCES)
def test_every_recurrence_is_silent_in_the_layer_it_is_put_into(kind):
    model = random_model(family_config("llama", 0))
    before = logits(model, ids := tokens(model.config))
    sizes = {"linear_value_head_dim": 16, "linear_num_value_heads": 6} if kind == "mamba2" else {}
    new = operate(model, None, {TYPES: "hybrid", KIND: kind, **sizes}, layers=[1]).model
    assert new.config.layer_types == ["full_attention", "hybrid", "full_attention"]
    assert torch.equal(logits(new, ids), before)
    greedy = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(new.generate(ids, **greedy), model.generate(ids, **greedy))
    # What writes learns at once; what is read as soon as something is written.
    mixer = new.model.layers[1].linear_attn.requires_grad_(True)
    new(ids, labels=ids).loss.backward()
    assert mixer.o_proj.weight.grad.abs().sum() > 0
    torch.nn.init.normal_(mixer.o_proj.weight)
    assert not torch.allclose(logits(new, ids), before, rtol=1e-3)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["gemma2", "olmo3", "qwen3_next", "gpt2", "cohere", "granite", "falcon_h1"])
def test_other_layers_norms_factors_and_tables_stay(family):
    """Windows, tables of rotation by type, norms behind both, parallel branches, recurrences that are there already."""
    config = family_config(family, 1 if family == "olmo3" else 0)
    model, operation = random_model(config), SilentRecurrence()
    before = logits(model, ids := tokens(config))
    examples = operation.examples(config)
    assert bool(examples) == (family != "falcon_h1")  # which has nothing but hybrid layers
    for example in examples:
        new = operate(model, None, example.fields).model
        assert torch.equal(logits(new, ids), before)
        words = [new.config.layer_types[layer] for layer in operation.layers(config, example.fields)]
        assert words and set(words) == {example.fields[TYPES]}


@pytest.mark.parametrize("residual", ["same", "depth"])
def test_what_does_not_write_starts_as_a_new_model_does(residual):
    """Measured on a model that is drawn as a whole; another seed draws others, the same seed the same."""
    config = family_config("llama", 0)
    config.initializer = {**config.initializer, "type": "fan_in", "residual_type": residual}
    model = random_model(config)
    new = operate(model, None, HYBRID).model
    torch.manual_seed(0)
    fresh = ZooForCausalLM._from_config(new.config, dtype=torch.float32)
    for layer in range(config.num_hidden_layers):
        mixer, drawn = new.model.layers[layer].linear_attn, fresh.model.layers[layer].linear_attn
        for name, tensor in drawn.named_parameters():
            own = mixer.get_parameter(name)
            if name == "o_proj.weight":
                assert not own.any()
            elif tensor.numel() > 400:
                assert own.std().item() == pytest.approx(tensor.std().item(), rel=0.2), name
            assert own.dtype == tensor.dtype and own.isfinite().all()
    weight = new.model.layers[1].linear_attn.q_proj.weight
    assert weight.std().item() == pytest.approx(config.hidden_size**-0.5, rel=0.1)
    same, other = (operate(model, None, HYBRID, seed=seed).model.model.layers[1].linear_attn for seed in (0, 1))
    assert torch.equal(same.q_proj.weight, weight) and not torch.equal(other.q_proj.weight, weight)
    assert not torch.equal(new.model.layers[0].linear_attn.q_proj.weight, weight)


def test_the_trained_model_keeps_its_words_and_its_attention(zoo, tmp_path):
    code, out, error = zoo(
        "surgery", STORIES, tmp_path / "new", "--set", "layer_types=hybrid", "--set", "linear_attention_type=mamba",
        "--layers", "1,3", "--json",
    )  # fmt: skip
    assert code == 0, error
    (done,) = json.loads(out)["operations"]
    assert done["exactness"] == "bits" and done["layers"] == [1, 3]
    model, text = stories()
    new, rows = ZooForCausalLM.from_pretrained(tmp_path / "new"), text.to_measure(512)
    assert torch.equal(logits(new, rows), logits(model, rows))
    for name, tensor in model.model.layers[1].self_attn.state_dict().items():
        assert torch.equal(new.model.layers[1].self_attn.state_dict()[name], tensor)
    code, out, error = zoo("surgery", STORIES)
    assert code == 0 and any("hybrid" in line and "bits" in line for line in out.splitlines()), out


@pytest.mark.long
def test_it_learns_and_healing_begins_from_nothing_lost():
    model, text = stories()
    report = operate(STORIES, None, HYBRID, layers=[1], heal=TEXT, healing=Healing(12, layerwise=0, train="changed"))
    assert report.after.perplexity == report.before.perplexity
    assert report.healed.perplexity <= 1.001 * perplexity(model, text.to_measure(3072))


def test_a_mixer_is_drawn_without_touching_the_random_state():
    from conversion.engine.zoo_side import empty_model
    from zoo.surgery.operating import changed_config

    config = family_config("llama", 0)
    new = changed_config(config, HYBRID | {TYPES: ["hybrid"] * config.num_hidden_layers})
    state = torch.get_rng_state()
    assert silent_mixer(empty_model(new), new, 0, 3)["q_proj.weight"].any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("llama", {TYPES: "hybrid", KIND: "mamba3"}, "'mamba3' is none of"),
        ("llama", {TYPES: "hybrid", KIND: "mamba2"}, "set linear_num_value_heads and linear_value_head_dim"),
        ("llama", {TYPES: "hybrid_sliding"}, "no layer of this model"),
        ("llama", {TYPES: ["hybrid_sliding", "full_attention", "full_attention"]}, "cannot be reached"),
        ("llama", {TYPES: ["hybrid"]}, "cannot be reached"),
        ("qwen3_next", {TYPES: "hybrid", KIND: "mamba2"}, "has layers of 'gated_delta_net'"),
        ("qwen3_next", {TYPES: "hybrid", "linear_num_key_heads": 1}, "linear_num_key_heads is one for all"),
        ("deepseek_v3", HYBRID, "num_mtp_layers|no layer of this model"),
        ("gpt_oss", HYBRID | {"linear_attn_config.decay": "no"}, "decay"),
        ("mimo_v2_flash", {TYPES: "hybrid_sliding"}, "attention_sinks='sliding_attention' would not name"),
    ],
)
def test_what_cannot_be_done_is_refused(family, fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(random_model(family_config(family, 0)), None, fields)
