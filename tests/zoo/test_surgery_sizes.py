"""Depth, width of MLPs, number of experts: exact where they grow, as good as was measured where they shrink."""

import pytest
import torch
import transformers
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from zoo.surgery import operate, possible
from zoo.surgery.calibration import collect
from zoo.surgery.measurement import perplexity
from zoo.surgery.mlp_width import least_squares
from zoo.surgery.operation import TOLERANCE, Need, SurgeryError

DEPTH, WIDTH = "num_hidden_layers", "intermediate_size"


def test_silent_layers_change_nothing_and_leaving_them_out_gives_the_model_back():
    model, text = stories()
    rows = text.to_measure(512)
    more = operate(STORIES, None, {DEPTH: 7}).model
    assert more.config.num_hidden_layers == 7 and torch.equal(logits(more, rows), logits(model, rows))
    assert not torch.equal(logits(operate(STORIES, None, {DEPTH: 7}, method="repeat").model, rows), logits(more, rows))
    again = operate(more, None, {DEPTH: 5}, layers=[2, 6]).model  # copies stand behind layers 1 and 4
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "deepseek_v3", "qwen3_next", "gpt_neox", "cohere2"])
def test_what_a_layer_is_goes_with_it(family):
    """Norms behind branches, experts, recurrences, parallel blocks, types by layer."""
    model = random_model(family_config(family, 0))
    ids, config = tokens(model.config), model.config
    new = operate(model, None, {DEPTH: config.num_hidden_layers + 1}, layers=[1]).model
    assert torch.equal(logits(new, ids), logits(model, ids))
    order = [0, 1, 1, *range(2, config.num_hidden_layers)]
    for name in ("layer_types", "mlp_layer_types"):
        assert getattr(new.config, name) == [getattr(config, name)[layer] for layer in order]


@pytest.mark.long
def test_the_layer_that_costs_least_goes_and_llama_loads_what_is_left(tmp_path):
    """Each left out alone costs 82.3, 10.6, 5.42, 6.74, 7.11."""
    report = operate(STORIES, tmp_path / "four", {DEPTH: 4}, calibrate=TEXT, to="llama")
    assert report.operations[0].layers == [2]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    assert theirs.config.num_hidden_layers == 4
    assert perplexity(theirs, stories()[1].to_measure(3072)) <= 5.43


@pytest.mark.long
def test_layers_that_differ_in_numbers_keep_them():
    narrow = operate(STORIES, None, {WIDTH: 128}, layers=[1, 3], method="magnitude").model
    dropped = operate(narrow, None, {DEPTH: 4}, layers=[2]).model
    assert [layer.intermediate_size for layer in dropped.config.per_layer_config] == [172, 128, 128, 172]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("width", "most"), [(154, 3.14), (128, 4.6)])
def test_narrower_mlps_cost_what_was_measured(width, most):
    """128 of 172 by magnitude without least squares: 13.4."""
    new = operate(STORIES, None, {WIDTH: width}, calibrate=TEXT).model
    assert perplexity(new, stories()[1].to_measure(3072)) <= most


@pytest.mark.long
@pytest.mark.parametrize("family", ["starcoder2", "llama"])
def test_wider_mlps_give_the_same_and_learn(family):
    model = random_model(family_config(family, 0))
    before = logits(model, ids := tokens(model.config))
    new = operate(model, None, {WIDTH: model.config.intermediate_size + 16}).model
    assert (logits(new, ids) - before).abs().max() <= TOLERANCE * before.abs().max()
    new(ids, labels=ids).loss.backward()
    assert new.model.layers[0].mlp.down_proj.weight.grad[:, -1].abs().sum() > 0


def test_least_squares_are_those_of_the_states():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    states += states[:, :1]  # neurons that fire alike, so that what goes can be told from what stays
    down, kept = torch.randn(7, 12, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 3, 7, 8])
    found = least_squares(down, states.T @ states / 300, kept)
    expected = torch.linalg.lstsq(states[:, kept], states @ down.T).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_experts_that_give_nothing_go_first():
    """Each is scored as a loop over its tokens says; a silent one is never kept, and nothing is lost with it."""
    config = family_config("mixtral", 0)
    model = random_model(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[1] = -layer.mlp.gate.weight.mean(0) - 5 * layer.mlp.gate.weight[0]
            layer.mlp.experts.down_proj[1] = 0
    ids = tokens(config, 4, 24)
    routed = collect(model, [Need("mlp.experts", "routed")], [0], ids)[0, "mlp.experts"]
    gains = torch.zeros(2, config.num_experts, dtype=torch.float64)
    mlp, states = model.model.layers[0].mlp, []
    hook = mlp.register_forward_pre_hook(lambda module, args: states.append(args[0].flatten(0, 1)))
    logits(model, ids)
    hook.remove()
    with torch.no_grad():
        for x in states[0]:
            _, weights, chosen = mlp.gate(x[None])
            for weight, expert in zip(weights[0], chosen[0].tolist(), strict=True):
                gate, up = (mlp.experts.gate_up_proj[expert] @ x).chunk(2)
                gains[0, expert] += weight * (mlp.experts.down_proj[expert] @ (mlp.experts.act_fn(gate) * up)).norm()
                gains[1, expert] += 1
    torch.testing.assert_close(routed, gains / ids.numel(), rtol=1e-5, atol=1e-7)
    fewer = operate(model, None, {"num_experts": config.num_experts - 1}, calibrate=ids).model
    left = [index for index in range(config.num_experts) if index != 1]
    assert torch.equal(fewer.model.layers[0].mlp.gate.weight, model.model.layers[0].mlp.gate.weight[left])
    assert fewer.config.num_experts == config.num_experts - 1
    assert fewer.generate(ids[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)


@pytest.mark.parametrize(
    ("fields", "options", "says"),
    [
        ({DEPTH: 11}, {}, "at most one copy of each"),
        ({DEPTH: 0}, {}, "at least 1"),
        ({DEPTH: 3}, {"layers": [1]}, "layers names 1, but num_hidden_layers=3 of 5 asks for 2"),
        ({DEPTH: 4}, {"layers": "auto:9"}, "auto:n with n from 1 to 5"),
        ({WIDTH: 0}, {}, "at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, options, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, fields, **options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("family", "number", "says"),
    [("gemma4_text", 1, "num_kv_shared_layers"), ("zamba2", 0, "shared_block"), ("openai_gpt", 0, "post_norm")],
)
def test_layers_that_depend_on_others_are_refused(family, number, says):
    model = random_model(family_config(family, number))
    with pytest.raises(SurgeryError, match=says):
        operate(model, None, {DEPTH: model.config.num_hidden_layers + 1})


def test_more_experts_are_no_pruning():
    model = random_model(family_config("mixtral", 0))
    with pytest.raises(SurgeryError, match="experts are left out"):
        operate(model, None, {"num_experts": model.config.num_experts + 1})


@pytest.mark.long
@pytest.mark.parametrize(("family", "number"), [("gemma4_text", 0), ("hunyuan_v1_moe", 1)])
def test_layers_of_their_own_sizes_are_listed_and_refused_by_field(family, number):
    """What can be changed is listed all the same; what reads one number for all layers says so in one sentence."""
    config = family_config(family, number)
    assert possible(config)
    with pytest.raises(SurgeryError, match="of their own"):
        operate(random_model(config), None, {"hidden_size": 2 * config.hidden_size, "num_experts_per_tok": 1})


@pytest.mark.long
def test_leaving_out_a_layer_is_listed():
    assert any(row.fields == {DEPTH: 4} for row in possible(str(STORIES)))
