"""Norms put where there were none: the weights are the least squares, and cost what was measured."""

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import operate
from zoo.surgery.measurement import perplexity
from zoo.surgery.operation import SurgeryError

NORM, SCOPE, WEIGHT, BLOCK = "qk_norm", "qk_norm_config.scope", "qk_norm_config.weight", "block_type"


def outputs(model, name, ids):
    """What a module gives for all tokens, `[tokens, n]`."""
    found = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    output = found[0][0] if isinstance(found[0], tuple) else found[0]
    return output.flatten(0, -2).double()


def error(y, weight, width, eps):
    """Σ |y - w ŷ|², ŷ over `width` channels; weights `[n]` or for each head."""
    heads = y.unflatten(-1, (-1, width))
    normed = heads * (heads.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (heads - weight.double() * normed).square().sum().item()


def is_least(y, weight, width, eps):
    least, generator = error(y, weight, width, eps), torch.Generator().manual_seed(0)
    noise = [torch.randn(weight.shape, generator=generator) * 0.01 for _ in range(20)]
    return all(error(y, weight + one, width, eps) > least for one in noise)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("fields", [{}, {WEIGHT: "per_head"}, {SCOPE: "full"}])
def test_weights_of_queries_and_keys_are_least_squares(fields, offset):
    config = family_config("qwen2", 0)
    model = random_model(type(config)(**{**config.to_dict(), "norm_unit_offset": offset}))
    config, ids = model.config, tokens(model.config, rows=4, length=24)
    new = operate(model, None, {NORM: "rms_norm", **fields}, calibrate=ids).model
    for norm, name in (("q_norm", "q_proj"), ("k_norm", "k_proj")):
        y = outputs(model, f"model.layers.1.self_attn.{name}", ids)
        weight = getattr(new.model.layers[1].self_attn, norm).weight.detach() + float(offset)
        width = y.shape[-1] if SCOPE in fields else config.head_dim
        assert is_least(y, weight, width, config.norm_eps)
    steps = new.generate(ids[:1, :9], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert steps.shape == (1, 13)


@pytest.mark.parametrize(("family", "layers"), [("llama", None), ("llama", [1]), ("qwen3_moe", None)])
def test_weights_behind_the_branches_are_least_squares(family, layers):
    model = random_model(family_config(family, 0))
    config, ids = model.config, tokens(model.config, rows=4, length=24)
    report = operate(model, None, {BLOCK: "sandwich_norm"}, layers=layers, calibrate=ids)
    new = report.model
    count = config.num_hidden_layers if layers is None else 1
    assert new.config.block_types.count("sandwich_norm") == count and report.operations[0].exactness == "approximate"
    for slot, name in (("attn_output_norm", "self_attn"), ("mlp_output_norm", "mlp")):
        y = outputs(model, f"model.layers.1.{name}", ids)
        weight = getattr(new.model.layers[1], slot).weight.detach()
        assert is_least(y, weight, config.hidden_size, config.norm_eps)


@pytest.mark.parametrize(
    ("fields", "most"),
    [({SCOPE: "full"}, 3.20), ({WEIGHT: "per_head"}, 4.20), ({}, 1.05 * 5.57), ({BLOCK: "sandwich_norm"}, 3.20)],
)
def test_the_trained_model_loses_what_was_measured(tmp_path, fields, most):
    """Of 2.70, untrained; written, and read again."""
    wanted = fields if BLOCK in fields else {NORM: "rms_norm", **fields}
    operate(STORIES, tmp_path / "new", wanted, calibrate=TEXT)
    new = ZooForCausalLM.from_pretrained(tmp_path / "new")
    assert perplexity(new, stories()[1].to_measure(3072)) <= most


@pytest.mark.parametrize(
    ("family", "fields", "layers", "says"),
    [
        ("llama", {NORM: "rms_norm", WEIGHT: "none"}, None, "no weight that could be fitted"),
        ("llama", {NORM: "rms_norm"}, [0], "leave out --layers"),
        ("llama", {NORM: "layer_norm"}, None, "cannot be reached from None"),
        ("qwen3", {NORM: "layer_norm"}, None, "cannot be reached from 'rms_norm'"),
        ("gpt2", {BLOCK: "sandwich_norm"}, None, "not RMS norms with weights"),
        ("olmo2", {BLOCK: "sandwich_norm"}, None, "no layer of this model"),
    ],
)
def test_what_cannot_be_done_is_refused(family, fields, layers, says):
    with pytest.raises(SurgeryError, match=says):
        operate(random_model(family_config(family, 0)), None, fields, layers=layers)
