"""Sparse layers inside a model: recorded logits, losses, implementations, dtypes, compiled graphs."""

import pytest
import torch
from random_experts import randomize, zoo_config
from torch.nn.functional import cross_entropy

from modeling_zoo.mlp_sparse import SparseMLP
from modeling_zoo.modeling_zoo import ZooForCausalLM
from modeling_zoo.train_router_loss import load_balancing_loss, mask_of_targets, router_z_loss

VOCABULARY, DEPTH = 32, 4
MIXED = {"num_hidden_layers": DEPTH, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"], "intermediate_size": 64}
KINDS = {
    "softmax": {"n_shared_experts": 1},
    "biased_groups": {
        **{"scoring_func": "sigmoid", "use_score_correction_bias": True, "n_group": 4, "topk_group": 2},
        "precision.router": "float32_linear",
    },
    "after_topk_biases": {
        "router.score_after_topk": True,
        "router.bias": True,
        "expert_bias": True,
        "swiglu_limit": 1.0,
    },
    "identity": {"zero_expert_num": 5, "scoring_func": "softmax", "norm_topk_prob": False},
    "weight_on_input": {"router.weight_on_input": True, "scoring_func": "sigmoid", "router.score_after_topk": True},
    "plain_latent": {"gated_mlp": False, "hidden_act": "relu2", "moe_latent_size": 16},
    "sparsemixer": {"scoring_func": "sparsemixer", "router.sparsemixer_jitter_eps": 0.3},
}


def model_of(implementation="eager", **flags):
    return randomize(ZooForCausalLM(zoo_config(implementation, **(MIXED | flags)))).eval()


def batch():
    """Tokens `[2, 9]`, the first row padded on the left."""
    ids = torch.randint(VOCABULARY, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask


@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_router_logits_are_recorded_for_each_sparse_layer(flags):
    model, (ids, mask) = model_of(**flags), batch()
    seen = []
    for index in (1, 3):
        model.model.layers[index].mlp.gate.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    outputs = model(ids, attention_mask=mask, output_router_logits=True)
    assert len(outputs.router_logits) == 2
    assert all(torch.equal(found, wanted) for found, wanted in zip(outputs.router_logits, seen, strict=True))
    assert model(ids, attention_mask=mask).router_logits is None


def test_the_losses_are_added_to_that_of_the_language_model():
    flags = {"router_aux_loss_coef": 0.4, "router_z_loss_coef": 0.03, "output_router_logits": True}
    model, (ids, mask) = model_of(**flags), batch()
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model(ids, attention_mask=mask, labels=labels)
    language = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    balance = load_balancing_loss(outputs.router_logits, 3, mask)
    z_loss = router_z_loss(outputs.router_logits, mask_of_targets(labels))
    torch.testing.assert_close(outputs.aux_loss, balance)
    torch.testing.assert_close(outputs.loss, language + 0.4 * balance + 0.03 * z_loss)
    assert model(ids, attention_mask=mask).loss is None


@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_every_parameter_trains(flags):
    model, (ids, mask) = model_of(**flags).train(), batch()
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_the_implementation_is_chosen_on_the_model(flags):
    model, (ids, mask) = model_of("eager", **flags), batch()
    wanted = model(ids, attention_mask=mask).logits
    for implementation in ("batched_mm", "grouped_mm"):
        model.set_experts_implementation(implementation)
        assert model.model.layers[1].mlp.experts.config._experts_implementation == implementation
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_saving_and_loading_changes_nothing(flags, tmp_path):
    model, (ids, mask) = model_of(**flags), batch()
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    assert again.config.to_dict().items() >= {"num_experts": 12, "mlp_layer_types": MIXED["mlp_layer_types"]}.items()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    # Tensors of a mapped file are not aligned, which on some processors changes the order of sums.
    again.load_state_dict({name: tensor.clone() for name, tensor in again.state_dict().items()}, assign=True)
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


def test_what_steers_the_router_stays_float32_in_a_bfloat16_model(tmp_path):
    flags = KINDS["biased_groups"] | {"precision.router": "float32_weight"}
    model = model_of(**flags)
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {name for name, tensor in again.state_dict().items() if tensor.dtype == torch.float32}
    gates = [f"model.layers.{index}.mlp.gate." for index in (1, 3)]
    assert kept == {gate + name for gate in gates for name in ("weight", "e_score_correction_bias")}
    for name in kept:
        assert torch.equal(again.state_dict()[name], model.state_dict()[name])


def test_a_fresh_model_is_initialised_everywhere():
    flags = MIXED | KINDS["biased_groups"] | {"n_shared_experts": 1, "initializer_range": 0.01}
    model = ZooForCausalLM(zoo_config(**flags))
    layer = model.model.layers[1].mlp
    for tensor in (
        layer.gate.weight,
        layer.experts.gate_up_proj,
        layer.experts.down_proj,
        layer.shared_experts.up_proj.weight,
    ):
        assert tensor.std().item() == pytest.approx(0.01, rel=0.15)
    assert not layer.gate.e_score_correction_bias.any()


@pytest.mark.long
@pytest.mark.parametrize("flags", KINDS.values(), ids=KINDS)
def test_a_sparse_layer_is_one_graph(flags):
    torch.compiler.reset()
    layer = randomize(SparseMLP(zoo_config("grouped_mm", **flags))).eval()
    hidden_states = torch.randn(2, 7, 40)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden_states), layer(hidden_states), rtol=1e-5, atol=1e-5)
