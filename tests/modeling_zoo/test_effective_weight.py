"""The matrix a layer really applies: adapters, quantisation, another forward on latent attention's up-projection."""

import pytest
import torch
from random_models import randomize
from transformers import DynamicCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ops_attention_latent

SIZES = {
    "vocab_size": 31, "hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6,
    "attention_type": "latent", "q_lora_rank": 28, "qk_nope_head_dim": 12, "qk_rope_head_dim": 10, "v_head_dim": 14,
    # Small against the length, so that finding the matrix behind an adapter pays.
    "kv_lora_rank": 4,
}  # fmt: skip


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def make():
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**SIZES, attn_implementation="sdpa")).eval()
    randomize(model)
    return model


def inputs():
    return torch.randint(0, 31, (2, 13), generator=torch.Generator().manual_seed(3))


def reads_once(model):
    """Whether a decoded token of `model` is absorbed, and its logits."""
    ran = []
    plain = ops_attention_latent.absorbed

    def counted(*args):
        ran.append(args)
        return plain(*args)

    ops_attention_latent.absorbed = counted
    tokens = inputs()
    try:
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            model(input_ids=tokens[:, :-1], past_key_values=cache)
            return len(ran), model(input_ids=tokens[:, -1:], past_key_values=cache).logits[:, -1], len(ran)
    finally:
        ops_attention_latent.absorbed = plain


def whole(model):
    with torch.no_grad():
        return model(input_ids=inputs(), use_cache=False).logits[:, -1]


def adapted(**options):
    from peft import LoraConfig, get_peft_model

    model = make()
    settings = LoraConfig(r=3, lora_alpha=9, target_modules=["kv_b_proj"], **options)
    adapter = get_peft_model(model, settings).eval()
    torch.manual_seed(1)
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapter


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_an_adapter_on_the_up_projection_counts(options):
    adapter = adapted(**options)
    before, found, after = reads_once(adapter)
    assert (before, after) == (0, 2)
    expected = whole(adapter)
    assert relative_error(found, expected) < 4e-6
    with adapter.disable_adapter():
        without = whole(adapter)
        assert relative_error(reads_once(adapter)[1], without) < 4e-6
    assert relative_error(without, expected) > 1e-2
    merged = adapter.merge_and_unload()
    assert relative_error(reads_once(merged)[1], expected) < 1e-5


def test_an_adapter_with_a_bias_or_a_hook_is_expanded():
    """Neither is a matrix that could be read off: the layer itself has to run on every latent."""
    adapter = adapted(bias="lora_only", lora_bias=True)
    assert reads_once(adapter)[::2] == (0, 0)
    assert relative_error(reads_once(adapter)[1], whole(adapter)) < 4e-6
    model = make()
    for layer in model.model.layers:
        layer.self_attn.kv_b_proj.register_forward_hook(lambda module, args, output: output * 1.5)
    assert reads_once(model)[::2] == (0, 0)
    assert relative_error(reads_once(model)[1], whole(model)) < 4e-6


class RoundedLinear(torch.nn.Linear):
    """A quantised layer in miniature: what it applies is not what `weight` says."""

    def forward(self, x):
        return torch.nn.functional.linear(x, (self.weight * 4).round() / 4)


def replaced_forward(linear):
    plain = linear.forward
    linear.forward = lambda x: plain(x) * 0.5


@pytest.mark.parametrize("kind", ["quantised", "replaced"])
def test_a_layer_that_applies_something_else_is_asked_for_its_matrix(kind):
    model = make()
    for layer in model.model.layers:
        linear = layer.self_attn.kv_b_proj
        if kind == "quantised":
            linear.__class__ = RoundedLinear
        else:
            replaced_forward(linear)
    before, found, after = reads_once(model)
    assert (before, after) == (0, 2)
    assert relative_error(found, whole(model)) < 4e-6


def test_adapters_train_on_a_latent_model():
    adapter = adapted().train()
    tokens = inputs()
    adapter(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [parameter.grad for name, parameter in adapter.named_parameters() if "lora_" in name]
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients)
