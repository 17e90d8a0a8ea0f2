"""zoo merge: methods against slow references, models of several families, mergekit's file, refusals."""

import json
import math
import shutil
from copy import deepcopy
from itertools import permutations

import pytest
import torch
import yaml
from surgery_models import STORIES, family_config, logits, random_model, stories, tokens

from zoo.surgery import merge, operate
from zoo.surgery.assignment import best_assignment
from zoo.surgery.merge_heads import layers_without_order
from zoo.surgery.merge_methods import METHODS, Part, Settings
from zoo.surgery.merge_plan import value_at
from zoo.surgery.operation import SurgeryError

S = str(STORIES)
# The same function in another family's form.
FORM = {"residual_multiplier": 0.22, "rope_interleave": True, "norm_unit_offset": True, "logits_scaling": 4.0}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A model near the bundled one, and the same in another family's form."""
    folder = tmp_path_factory.mktemp("models")
    model = operate(STORIES, None, {"tie_word_embeddings": False}).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.config.surgery = None
    model.save_pretrained(folder / "near")
    for file in STORIES.iterdir():
        if file.name.startswith("token"):
            shutil.copy(file, folder / "near")
    operate(folder / "near", folder / "other", FORM)
    return model, str(folder / "near"), str(folder / "other")


def linear_reference(tensors, base, weights, densities):
    return sum(w * x for w, x in zip(weights, tensors, strict=True)) / sum(weights)


def task_reference(tensors, base, weights, densities):
    return base + 0.7 * sum(w * (x - base) for w, x in zip(weights, tensors, strict=True))


def ties_reference(tensors, base, weights, densities):
    """Number by number, as the paper says it."""
    deltas = []
    for x, density in zip(tensors, densities, strict=True):
        delta = [a - b for a, b in zip(x.tolist(), base.tolist(), strict=True)]
        kept = sorted(range(len(delta)), key=lambda index: -abs(delta[index]))[: int(density * len(delta))]
        deltas.append([value if index in kept else 0.0 for index, value in enumerate(delta)])
    merged = []
    for index, start in enumerate(base.tolist()):
        values = [(w, delta[index]) for w, delta in zip(weights, deltas, strict=True)]
        sign = 1 if sum(w * value for w, value in values) >= 0 else -1
        agree = [(w, value) for w, value in values if value * sign > 0]
        merged.append(start + (0.7 * sum(w * v for w, v in agree) / sum(w for w, _ in agree) if agree else 0.0))
    return torch.tensor(merged)


REFERENCES = {"linear": linear_reference, "task_arithmetic": task_reference, "ties": ties_reference}


@pytest.mark.parametrize("method", REFERENCES)
def test_methods_are_those_of_the_papers(method):
    generator = torch.Generator().manual_seed(1)
    base, *tensors = (torch.randn(40, generator=generator) for _ in range(4))
    weights, densities = [0.5, 0.3, 0.9], [0.5, 0.25, 1.0]
    parts = [Part(*values) for values in zip(tensors, weights, densities, strict=True)]
    found = METHODS[method].function(parts, base, Settings(scaling=0.7))
    torch.testing.assert_close(found, REFERENCES[method](tensors, base, weights, densities))


def test_slerp_goes_along_the_arc():
    """Equal angles for equal steps, and lengths between those of the ends."""
    generator = torch.Generator().manual_seed(1)
    base, other = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    base, other = base / base.norm(), other / other.norm()
    points = [METHODS["slerp"].function([Part(other)], base, Settings(t=t)) for t in (0, 0.25, 0.5, 0.75, 1)]
    angles = [math.acos((a * b).sum()) for a, b in zip(points, points[1:], strict=False)]
    assert all(angle == pytest.approx(angles[0], rel=1e-3) for angle in angles)
    assert all(point.norm() == pytest.approx(1, rel=1e-5) for point in points)
    torch.testing.assert_close(points[0], base)
    torch.testing.assert_close(points[-1], other)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dropped_numbers_are_made_up_for(method):
    """The mean over many draws is the whole difference; each draw is zero or 1 / density of it."""
    base, other = torch.zeros(4000), torch.ones(4000)
    settings = Settings(generator=torch.Generator().manual_seed(0))
    found = METHODS[method].function([Part(other, 1.0, 0.25)], base, settings)
    assert set(found.tolist()) == {0.0, 4.0} and found.mean() == pytest.approx(1, abs=0.1)


def test_parameters_follow_layers_and_names():
    assert (
        value_at([0, 1, 0.5], "x", 0.25) == 0.5 and value_at([0, 1, 0.5], "x", 1.0) == 0.5 and value_at(3, "x", 0) == 3
    )
    by_name = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "input_layernorm", "value": 2}, {"value": 7}]
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.attn_norm.weight", "lm_head.weight")
    assert [value_at(by_name, name, 0.5) for name in names] == [0.5, 2, 7]


def test_another_form_of_a_model_merges_as_the_model(others):
    """Averaged as stored it would be noise; here it is what it was, to the rounding of its factors."""
    model, near, other = others
    plan = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in (near, other)],
    }
    report = merge(plan)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(report.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert "layout of rotary pairs" in report.operations[0].name


def test_tied_and_untied_merge_as_untied(others):
    model, near, _ = others
    plan = {"merge_method": "linear", "models": [{"model": S, "parameters": {"weight": 0.75}},
                                                {"model": near, "parameters": {"weight": 0.25}}]}  # fmt: skip
    merged = merge(plan).model
    assert not merged.config.tie_word_embeddings
    bundled = stories()[0].state_dict()
    for name in ("lm_head.weight", "model.layers.3.mlp.up_proj.weight"):
        expected = 0.75 * bundled[name] + 0.25 * model.state_dict()[name]
        torch.testing.assert_close(merged.state_dict()[name], expected)


def test_a_file_of_mergekit_from_the_command_line(others, zoo, tmp_path):
    """slerp with a curve over the layers, a filter, a dtype; card and tokenizer are in the folder."""
    model, near, _ = others
    plan = {
        "merge_method": "slerp",
        "base_model": near,
        "slices": [{"sources": [{"model": near, "layer_range": [0, 5]}, {"model": S, "layer_range": [0, 5]}]}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]},
        "dtype": "float32",
        "tokenizer_source": "base",
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    code, out, error = zoo("merge", tmp_path / "plan.yaml", tmp_path / "merged", "--json")
    assert code == 0, error
    assert json.loads(out)["operations"][-1]["name"] == "merge"
    merged = type(model).from_pretrained(tmp_path / "merged").state_dict()
    first, last = "model.layers.0.self_attn.q_proj.weight", "model.layers.4.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[first], model.state_dict()[first])
    torch.testing.assert_close(merged[last], stories()[0].state_dict()[last])
    assert (tmp_path / "merged/tokenizer.json").is_file() and "merge" in (tmp_path / "merged/README.md").read_text()
    code, _, error = zoo("merge", tmp_path / "plan.yaml", tmp_path / "merged")
    assert code == 1 and error.count("\n") == 1


def test_passthrough_stacks_layers(tmp_path):
    plan = {"merge_method": "passthrough", "slices": [{"sources": [{"model": S, "layer_range": [first, last]}]}
                                                      for first, last in ((0, 3), (1, 5))]}  # fmt: skip
    merged = merge(plan).model
    assert merged.config.num_hidden_layers == 7
    for new, old in enumerate((0, 1, 2, 1, 2, 3, 4)):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(merged.state_dict()[name.format(new)], stories()[0].state_dict()[name.format(old)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", ["hidden", "cheap_embed", "random"])
def test_experts_of_models(others, mode):
    """Two experts that are one model's MLP give that model; the router sends each prompt to its expert."""
    model, near, _ = others
    prompts = (["Once upon a time there was a dog"], ["They lived happily"])
    experts = [
        {"source_model": name, "positive_prompts": prompt} for name, prompt in zip((near, S), prompts, strict=True)
    ]
    merged = merge({"base_model": near, "gate_mode": mode, "experts": experts, "experts_per_token": 1}).model
    mlp, bundled = merged.model.layers[1].mlp, stories()[0].model.layers[1].mlp
    wanted = torch.cat((bundled.gate_proj.weight, bundled.up_proj.weight))
    assert torch.equal(mlp.experts.gate_up_proj[1], wanted) and mlp.gate.weight.shape == (2, 64)
    assert not torch.equal(mlp.gate.weight[0], mlp.gate.weight[1])
    same = [{"source_model": near, "positive_prompts": prompt} for prompt in prompts]
    twice = merge({"base_model": near, "gate_mode": mode, "experts": same}).model
    rows = tokens(model.config)
    torch.testing.assert_close(logits(twice, rows), logits(model, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"merge_method": "karcher", "models": [{"model": S}]}, "none of"),
        ({"merge_method": "linear"}, "either models or slices"),
        ({"merge_method": "linear", "models": [{"model": S}], "weigths": 1}, "'weigths', which means nothing"),
        ({"merge_method": "linear", "models": [{"model": S, "parameters": {"density": 1}}]}, "'density'"),
        ({"merge_method": "slerp", "models": [{"model": S}]}, "base_model is missing"),
        ({"merge_method": "slerp", "base_model": S, "models": [{"model": S}]}, "takes 1 model beside the base"),
        ({"merge_method": "linear", "models": [{"model": S}], "tokenizer_source": "union"}, "union"),
        (
            {"merge_method": "passthrough", "slices": [{"sources": [{"model": S, "layer_range": [0, 9]}]}]},
            "its 5 layers",
        ),
        (
            {"merge_method": "passthrough", "slices": [{"sources": [{"model": S, "layer_range": [3, 1]}]}]},
            "last left out",
        ),
        ({"base_model": S, "experts": [{"source_model": S, "positive_prompts": ["a"]}]}, "two models at least"),
        ({"base_model": S, "experts": [{"source_model": S}, {"source_model": S}]}, "positive_prompts are missing"),
        ({"base_model": S, "experts": [], "gate_mode": "best"}, "none of"),
    ],
)
def test_what_cannot_be_merged_is_refused(plan, says):
    with pytest.raises(SurgeryError, match=says):
        merge(plan)


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_hidden_layers": 4}, "name slices"), ({"attention_type": "latent", "qk_rope_head_dim": 8}, "attention_type"),
     ({"num_experts": 2, "num_experts_per_tok": 1}, "has num_experts=None, the first model 2")],
)  # fmt: skip
def test_a_flag_that_no_exact_operation_reaches_is_named(tmp_path, changes, says):
    operate(STORIES, tmp_path / "other", changes, layers=[1] if "num_hidden_layers" in changes else None)
    with pytest.raises(SurgeryError, match=says):
        merge({"merge_method": "linear", "models": [{"model": str(tmp_path / "other"), "parameters": {"weight": 1}},
                                                    {"model": S, "parameters": {"weight": 1}}]})  # fmt: skip


@pytest.mark.long
def test_grouped_and_latent_attention_merge_as_latent(tmp_path):
    """The full rank is exact, so the halves are of one model."""
    operate(STORIES, tmp_path / "latent", {"attention_type": "latent"})
    halves = [{"model": name, "parameters": {"weight": 1}} for name in (str(tmp_path / "latent"), S)]
    merged = merge({"merge_method": "linear", "models": halves}).model
    rows = tokens(merged.config)
    torch.testing.assert_close(logits(merged, rows), logits(stories()[0], rows), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_other_vocabularies_are_refused(tmp_path):
    random_model(family_config("llama", 0)).save_pretrained(tmp_path / "small")
    with pytest.raises(SurgeryError, match="vocab_size differs"):
        merge({"merge_method": "linear", "models": [{"model": S}, {"model": str(tmp_path / "small")}]})


def test_a_pairing_has_the_largest_sum():
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        count = seed % 5 + 1
        drawn = torch.randn(count, count, generator=generator)
        scores = drawn if seed % 3 else drawn.round()
        found = best_assignment(scores)
        best = max(sum(scores[row, one[row]].item() for row in range(count)) for one in permutations(range(count)))
        assert sorted(found) == list(range(count))
        assert sum(scores[row, found[row]].item() for row in range(count)) == pytest.approx(best)
    with pytest.raises(ValueError, match=r"\(2, 3\) must be square"):
        best_assignment(torch.zeros(2, 3))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "number"), [("llama", 0), ("qwen2", 0), ("gpt2", 0), ("qwen3", 0), ("phi", 0)])
@torch.no_grad()
def test_heads_in_another_order_merge_as_in_one(family, number, tmp_path):
    model = random_model(family_config(family, number))
    near, config = deepcopy(model), model.config
    generator = torch.Generator().manual_seed(number)
    for parameter in near.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    other = deepcopy(near)
    groups = config.num_key_value_heads
    heads = torch.arange(config.num_attention_heads).view(groups, -1)
    for layer in other.model.layers:
        order = heads[torch.randperm(groups, generator=generator)]
        order = torch.stack([one[torch.randperm(len(one), generator=generator)] for one in order])
        attention = layer.self_attn
        of_groups = order[:, 0] // len(order[0])
        for name, places in (("q", order.flatten()), ("k", of_groups), ("v", of_groups)):
            projection = getattr(attention, f"{name}_proj")
            for parameter in projection.parameters():
                parameter.copy_(parameter.unflatten(0, (len(places), -1))[places].flatten(0, 1))
        weight = attention.o_proj.weight
        weight.copy_(weight.unflatten(1, (order.numel(), -1))[:, order.flatten()].flatten(1))
    ids = tokens(config)
    assert (logits(other, ids) - logits(near, ids)).abs().max() <= 2e-5 * logits(near, ids).abs().max()
    for name, one in (("a", model), ("near", near), ("other", other)):
        one.save_pretrained(tmp_path / name)

    def half(name):
        models = [{"model": str(tmp_path / one), "parameters": {"weight": 0.5}} for one in ("a", name)]
        return merge({"merge_method": "linear", "models": models})

    found, wanted = half("other"), half("near")
    assert "heads in the order of the first model" in found.operations[0].name
    assert not any("heads" in done.name for done in wanted.operations)
    for name, tensor in wanted.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_heads_with_an_order_of_their_own_stay():
    for family in ("bloom", "gpt_oss", "qwen3_next"):
        config = family_config(family, 0)
        mixers = config.attention_mixers
        assert len(layers_without_order(config)) == 0 and "grouped_query" in mixers
