"""Experts → dense: one MLP where every token visits all experts alike, and a sentence where it does not."""

import json

import pytest
import torch
from surgery_models import STORIES, family_config, logits, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import operate
from zoo.surgery.operation import TOLERANCE, SurgeryError

DENSE = {"num_experts": None}


def near(new, old):
    return (new - old).abs().max() <= TOLERANCE * old.abs().max()


def all_active(family, number=0, alike=True, **fields):
    """A family's model with every parameter random, whose tokens visit all experts; `alike`: with the same weight."""
    config = family_config(family, number)
    values = {**config.to_dict(), "num_experts_per_tok": config.num_experts, **fields}
    model = random_model(type(config)(**values))
    if alike:
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith(("mlp.gate.weight", "mlp.gate.bias")):
                    tensor.copy_(tensor[:1].expand_as(tensor))
    return model


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("mixtral", {}),
        ("qwen3_moe", {"routed_scaling_factor": 1.7}),
        ("qwen2_moe", {"shared_expert_gate": False}),
        ("mixtral", {"n_shared_experts": 1, "shared_expert_intermediate_size": 24}),
        ("mixtral", {"expert_bias": True}),
        ("olmoe", {}),
        ("mixtral", {"num_experts": 1, "num_experts_per_tok": 1}),
        ("mixtral", {"scoring_func": "sigmoid", "norm_topk_prob": True}),
        ("mixtral", {"router": {"per_expert_scale": True}}),
    ],
)
def test_experts_that_all_count_alike_are_one_mlp(family, fields):
    """One expert needs no router that says nothing: its weight is one."""
    model = all_active(family, alike=fields.get("num_experts") != 1, **fields)
    before = logits(model, ids := tokens(model.config))
    report = operate(model, None, DENSE)
    new = report.model
    assert report.operations[0].exactness == "arithmetic" and near(logits(new, ids), before)
    assert new.config.num_experts is None and set(new.config.mlp_layer_types) == {"dense"}
    assert not any("experts" in name for name in new.state_dict())
    greedy = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(new.generate(ids, **greedy), model.generate(ids, **greedy))


def test_dense_layers_beside_the_experts_keep_their_width():
    config = family_config("mixtral", 0)
    kinds = ["dense", *["sparse"] * (config.num_hidden_layers - 1)]
    model = all_active("mixtral", mlp_layer_types=kinds, intermediate_size=20)
    new = operate(model, None, DENSE).model
    assert near(logits(new, ids := tokens(model.config)), logits(model, ids))
    widths = [layer.mlp.up_proj.weight.shape[0] for layer in new.model.layers]
    assert widths == [20, *[config.num_experts * model.config.moe_intermediate_size] * (len(kinds) - 1)]


def test_slices_of_the_trained_model_are_joined_again(zoo, tmp_path):
    operate(STORIES, tmp_path / "slices", {"num_experts": 4, "num_experts_per_tok": 4}, method="slices")
    code, out, error = zoo("surgery", tmp_path / "slices", tmp_path / "dense", "--set", "num_experts=null", "--json")
    assert code == 0, error
    assert [done["exactness"] for done in json.loads(out)["operations"]] == ["arithmetic"]
    model, text = stories()
    new, rows = ZooForCausalLM.from_pretrained(tmp_path / "dense"), text.to_measure(512)
    assert near(logits(new, rows), logits(model, rows))
    code, out, error = zoo("surgery", tmp_path / "slices")
    assert code == 0 and "num_experts=null" in out, out


def test_a_router_that_tells_tokens_apart_leaves_nothing_behind(tmp_path):
    model = all_active("mixtral", alike=False)
    with pytest.raises(SurgeryError, match="layer 0: the router weighs its .* by the token.*num_experts=1 first"):
        operate(model, tmp_path / "new", DENSE)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_experts_per_tok": 1}, "num_experts_per_tok=1 of .*Set num_experts=1 first"),
        ({"swiglu_limit": 7.0}, "swiglu_limit=7.0 has no place"),
        ({"scoring_func": "sigmoid", "norm_topk_prob": False, "router": {}}, "without norm_topk_prob"),
        ({"router": {"weight_on_input": True}}, "router.weight_on_input=True has no place"),
    ],
)
def test_what_no_dense_mlp_does_is_refused(fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(all_active("mixtral", **fields), None, DENSE)
