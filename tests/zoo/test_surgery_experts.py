"""Dense → experts: exact forms beside the trained model, the split one as good as was measured, refusals."""

import pytest
import torch
import transformers
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from zoo.surgery import Healing, operate
from zoo.surgery.calibration import collect
from zoo.surgery.experts_split import balanced_groups, router_of
from zoo.surgery.measurement import perplexity
from zoo.surgery.operation import TOLERANCE, Need, SurgeryError

EIGHT = {"num_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.long
def test_copies_are_a_mixtral_that_transformers_loads(tmp_path):
    model, text = stories()
    rows = text.to_measure(512)
    operate(STORIES, tmp_path / "mixtral", EIGHT, to="mixtral")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mixtral")
    assert type(theirs).__name__ == "MixtralForCausalLM"
    difference = (logits(theirs, rows) - logits(model, rows)).abs().max()
    assert difference <= TOLERANCE * logits(model, rows).abs().max()
    experts = theirs.state_dict()["model.layers.0.mlp.experts.down_proj"]
    assert torch.equal(experts[0], experts[7])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("width", [43, 48, 100])
def test_shards_make_whole_copies(width):
    """100 neurons to a shard: the second one is filled up with zeros."""
    model, text = stories()
    rows = text.to_measure(512)
    shards = -(-172 // width)
    fields = {"num_experts": 3 * shards, "num_experts_per_tok": 2 * shards, "moe_intermediate_size": width}
    new = operate(STORIES, None, fields, method="shards").model
    expected = logits(model, rows)
    assert (logits(new, rows) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    with torch.no_grad():
        chosen = new.model.layers[0].mlp.gate(torch.randn(64, 64))[2].sort(-1).values // shards
    assert (chosen.view(64, 2, shards) == chosen.view(64, 2, shards)[..., :1]).all()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("family", ["starcoder2", "apertus"])
@pytest.mark.parametrize("method", ["copies", "slices", "shards", "shared"])
def test_plain_mlps_biases_and_activations_that_learn(family, method):
    model = random_model(family_config(family, 0))
    width = -(-model.config.intermediate_size // 2)
    fields = EIGHT | ({"num_experts_per_tok": 8} if method == "slices" else {})
    fields |= {"moe_intermediate_size": width} if method == "shards" else {}
    before = logits(model, ids := tokens(model.config))
    after = logits(operate(model, None, fields, method=method).model, ids)
    assert (after - before).abs().max() <= TOLERANCE * before.abs().max()


def test_chosen_layers_alone_become_experts():
    new = operate(STORIES, None, EIGHT, method="shared", layers="1,3").model
    assert new.config.mlp_layer_types == ["dense", "sparse", "dense", "sparse", "dense"]
    rows = stories()[1].to_measure(512)
    assert torch.equal(logits(new, rows), logits(stories()[0], rows))


SPLIT = {
    # Experts, active, shared: perplexity at most of 2.70; random groups of 4 of 8 are at 16.9.
    (8, 8, 0): 2.71,
    (8, 6, 0): 4.5,
    (6, 4, 2): 4.5,
    (8, 4, 0): 14.5,
    (12, 4, 4): 11.4,
}


@pytest.mark.parametrize("sizes", [(8, 6, 0), *(pytest.param(sizes, marks=pytest.mark.long) for sizes in SPLIT)])
def test_split_experts_cost_what_was_measured(sizes):
    experts, active, shared = sizes
    fields = {"num_experts": experts, "num_experts_per_tok": active}
    fields |= {"n_shared_experts": shared} if shared else {}
    new = operate(STORIES, None, fields, method="split", calibrate=TEXT).model
    assert perplexity(new, stories()[1].to_measure(3072)) <= SPLIT[sizes]


@pytest.mark.long
def test_split_experts_heal_to_what_was_measured():
    fields = {"num_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2}
    how = Healing(150, layerwise=0)
    report = operate(STORIES, None, fields, method="split", calibrate=TEXT, heal=TEXT, healing=how)
    assert report.healed.perplexity <= 1.05 * 4.49


def test_the_router_is_the_ridge_regression_of_what_experts_give():
    """Against least squares on the states themselves."""
    model, text = stories()
    rows, place = text.to_learn()[:4], (2, "mlp")
    states = []
    mlp = model.model.layers[2].mlp
    hook = mlp.register_forward_pre_hook(lambda module, args: states.append(args[0].flatten(0, 1).double()))
    firing = collect(model, [Need("mlp", "firing")], [2], rows)[place]
    hook.remove()
    x = torch.cat(states)
    norms = mlp.down_proj.weight.detach().double().norm(dim=0)
    with torch.no_grad():
        gives = (mlp.act_fn(mlp.gate_proj(x.float())) * mlp.up_proj(x.float())).double().abs() * norms
    slots = list(torch.arange(172).chunk(4))
    ones = torch.cat((x, torch.ones(len(x), 1)), 1)
    wanted = torch.stack([gives[:, slot].sum(1) for slot in slots], 1)
    expected = torch.linalg.lstsq(ones, wanted).solution.T
    found = router_of(firing, slots, norms, 65)
    scale = (found * expected).sum() / expected.square().sum()
    assert (found - scale * expected).norm() <= 0.05 * found.norm()
    predicted = ones @ found.T
    assert predicted.std(0).mean() == pytest.approx(1e-3, rel=0.3)


def test_groups_are_balanced_and_hold_what_belongs_together():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 3, generator=generator).repeat_interleave(5, 1)
    states += 0.3 * torch.randn(400, 15, generator=generator)
    order = torch.randperm(15, generator=generator)
    states = states[:, order]
    groups = balanced_groups((states.T @ states).double(), 3)
    assert sorted(len(group) for group in groups) == [5, 5, 5]
    assert {frozenset((order[group] // 5).tolist()) for group in groups} == {
        frozenset({0}),
        frozenset({1}),
        frozenset({2}),
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("fields", "method", "says"),
    [
        ({"num_experts_per_tok": None}, None, "say how many experts"),
        ({"num_experts_per_tok": 9}, None, "must be 1 to num_experts=8"),
        ({"moe_intermediate_size": 86}, None, "--method shards"),
        ({"norm_topk_prob": False}, None, "do not sum to one"),
        ({"scoring_func": "sparsemixer"}, None, "take softmax"),
        ({"moe_intermediate_size": 43}, "shards", "must be multiples"),
        ({}, "slices", "every token visits all 8"),
        ({"moe_intermediate_size": 8}, "split", "do not hold an MLP of 172"),
        ({"scoring_func": "softmax"}, "split", "leave it out"),
        ({"n_shared_experts": 2}, "shared", "must be 1"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, method, says):
    wanted = {name: value for name, value in (EIGHT | fields).items() if value is not None}
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, wanted, method=method)
