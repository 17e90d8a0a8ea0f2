"""Published architectures: their parameter counts, and tiny versions that run."""

import pytest
import torch
from published_presets import MODELS, config_of, text
from random_models import randomize
from transformers import T5Config, T5ForConditionalGeneration

from configuration_zoo import ZooConfig
from configuration_zoo.presets import PRESETS, PUBLISHED, presets
from description_zoo.architecture import architecture
from modeling_zoo import ZooForCausalLM


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name, entry in PRESETS.items() if entry.parameters])
def test_parameter_count_is_the_published_one(name):
    with torch.device("meta"):
        model = ZooForCausalLM(ZooConfig.preset(name))
    assert abs(count(model) / PRESETS[name].parameters - 1) < 0.01


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PRESETS)
def test_tiny_version_runs_and_generates(name):
    model = ZooForCausalLM(ZooConfig.preset(name, tiny=True))
    randomize(model)
    model.eval()
    tokens = torch.randint(1, 101, (2, 9))
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        sequence = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert torch.equal(sequence[:, -1], model(sequence[:, :-1]).logits[:, -1].argmax(-1))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source(name):
    assert PRESETS[name].source and (PRESETS[name].parameters or PRESETS[name].note)


def test_t5_decoder_has_the_parameters_of_t5_without_cross_attention():
    config = T5Config(d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=24, num_decoder_layers=24)
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    config.tie_word_embeddings, config.vocab_size = False, 32128
    with torch.device("meta"):
        theirs = T5ForConditionalGeneration(config)
        ours = ZooForCausalLM(ZooConfig.preset("t5-v1.1-xl-decoder"))
    decoder = sum(
        parameter.numel()
        for name, parameter in theirs.named_parameters(remove_duplicate=False)
        if name.startswith(("decoder.", "lm_head")) and ".layer.1." not in name
    )
    assert count(ours) == decoder


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="palm-540b"):
        ZooConfig.preset("palm-540")


# -- from public files ----------------------------------------------------------------------------------------------


def test_the_file_is_what_the_converter_makes_of_the_published_configs():
    assert PUBLISHED.read_text(encoding="utf-8") == text(), "python tests/support/published_presets.py writes it"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_is_a_preset(name):
    """The same model as the converter's, with the parameters its makers give, and cut to fewer layers."""
    config, theirs = ZooConfig.preset(name), config_of(name)
    assert architecture(config) == architecture(theirs)
    if (published := presets()[name].parameters) is not None:
        with torch.device("meta"):
            assert abs(count(ZooForCausalLM(config)) / published - 1) < 0.01
    short = ZooConfig.preset(name, num_hidden_layers=4)
    assert len(short.layer_types) == 4 and short.layer_types == config.layer_types[:4]


def test_a_published_model_has_no_tiny_version():
    with pytest.raises(ValueError, match="preset 'deepseek-v3' has no tiny version"):
        ZooConfig.preset("deepseek-v3", tiny=True)
