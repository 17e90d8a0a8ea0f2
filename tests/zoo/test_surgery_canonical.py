"""One model in another family's form: factors, offsets, layouts, biases, a head of its own. The table of
test_surgery_exact.py asks every family whether the function stays; here is that the form is the one asked for."""

import pytest
import torch
from surgery_models import STORIES, family_config, logits, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import operate
from zoo.surgery.operation import TOLERANCE, SurgeryError

GRANITE = {
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.5,
    "logits_scaling": 8.0,
}
FORMS = {
    "factors": GRANITE,
    "offset": {"norm_unit_offset": True},
    "pairs side by side": {"rope_interleave": True},
    "biases": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True, "lm_head_bias": True},
    "head": {"tie_word_embeddings": False},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_and_back(form):
    model, text = stories()
    rows, wanted = text.to_measure(512), FORMS[form]
    new = operate(STORIES, None, wanted).model
    assert {name: getattr(new.config, name) for name in wanted} == wanted
    expected = logits(model, rows)
    assert (logits(new, rows) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    if form in ("biases", "head"):
        with pytest.raises(SurgeryError, match="would be lost"):
            operate(new, None, {name: not value for name, value in wanted.items()})
        return
    again = operate(new, None, {name: getattr(model.config, name) for name in wanted if name != "attention_multiplier"}
                    | ({"attention_multiplier": 8**-0.5} if form == "factors" else {})).model  # fmt: skip
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_all_forms_at_once_and_generation():
    model, text = stories()
    wanted = {name: value for fields in FORMS.values() for name, value in fields.items()}
    new = operate(STORIES, None, wanted).model
    start = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    rows = text.to_measure(512)[:1, :20]
    assert torch.equal(new.generate(rows, **start), model.generate(rows, **start))
    assert isinstance(new, ZooForCausalLM) and set(new.config.surgery["operations"][0]["fields"]) <= set(wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["gemma2", "gptj", "cohere", "qwen3", "gpt2"])
def test_forms_of_other_families(family):
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config)
    wanted = {"residual_multiplier": 0.5, "logits_scaling": 2.0 * config.logits_scaling}
    wanted |= {"rope_interleave": not config.rope_interleave} if config.position_embedding_type == "rope" else {}
    new, before = operate(model, None, wanted).model, logits(model, ids)
    assert (logits(new, ids) - before).abs().max() <= TOLERANCE * before.abs().max()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("qwen3", {"attention_multiplier": 0.5}, "qk_norm makes queries of one size"),
        ("gpt2", {"embedding_multiplier": 2.0}, "positions are added"),
        ("deepseek_v3", {"rope_interleave": False}, "layers of 'latent'"),
        ("llama", {"residual_multiplier": 0}, "more than 0"),
        ("llama", {"tie_word_embeddings": True}, "one would be lost"),
        ("qwen2", {"attention_bias": False}, "would be lost"),
    ],
)
def test_what_no_weight_can_take_is_refused(family, fields, says):
    model = random_model(family_config(family, 0))
    name, value = next(iter(fields.items()))
    if getattr(model.config, name) == value:
        model = random_model(family_config(family, 1))
    with pytest.raises(SurgeryError, match=says):
        operate(model, None, fields)
