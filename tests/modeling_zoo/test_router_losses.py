"""Losses and rules that keep experts evenly used, against loops over numbers."""

import pytest
import references_experts as slow
import torch
from random_experts import D, E, randomize, zoo_config
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from modeling_zoo.mlp_sparse import SparseMLP
from modeling_zoo.train_router_loss import (
    CorrectionBiasBalancer,
    load_balancing_loss,
    mask_of_targets,
    router_losses,
    router_z_loss,
    updated_correction_bias,
)

BATCH, LENGTH = 3, 7
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 0, 1, 1]])


def logits_of(layers=3, dtype=torch.float32):
    return tuple((2 * torch.randn(BATCH * LENGTH, E)).to(dtype).requires_grad_() for _ in range(layers))


def rows(logits):
    return [layer.double().tolist() for layer in logits]


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "padded"])
def test_balance_loss_by_hand_and_as_in_transformers(top_k, mask):
    logits = logits_of()
    found = load_balancing_loss(logits, top_k, mask)
    counted = [1] * (BATCH * LENGTH) if mask is None else mask.flatten().tolist()
    assert found.item() == pytest.approx(slow.balance_loss(rows(logits), top_k, counted), rel=2e-6)
    theirs = load_balancing_loss_func(logits, E, top_k, mask)
    torch.testing.assert_close(found, theirs, rtol=2e-6, atol=0)
    gradients = [torch.autograd.grad(loss, logits) for loss in (found, theirs)]
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-8)


def test_balance_loss_of_even_use_is_the_number_of_experts_per_token():
    """One token per pair of experts, each probability 1 / 2: f = k / E, P = 1 / E."""
    logits = torch.full((E // 2, E), -1e4)
    for token in range(E // 2):
        logits[token, 2 * token : 2 * token + 2] = 0.0
    assert load_balancing_loss((logits, logits), 2).item() == pytest.approx(2.0)
    collapsed = torch.zeros(E // 2, E)
    collapsed[:, :2] = 1e4
    assert load_balancing_loss((collapsed,), 2).item() == pytest.approx(E)


def test_balance_loss_with_another_number_of_experts_per_token_in_a_layer():
    logits = logits_of(2)
    found = load_balancing_loss(logits, [1, 4])
    chosen = torch.zeros(E)
    for layer, top_k in zip(logits, (1, 4), strict=True):
        for row in layer.tolist():
            for expert in slow.best(row, top_k):
                chosen[expert] += 1 / (2 * BATCH * LENGTH)
    probability = torch.cat(logits).softmax(-1).mean(0)
    torch.testing.assert_close(found, E * (chosen * probability).sum())
    with pytest.raises(ValueError, match="zip"):
        load_balancing_loss(logits, [1, 4, 2])


@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "padded"])
def test_z_loss_by_hand_and_as_in_transformers(mask):
    logits = logits_of()
    counted = [1] * (BATCH * LENGTH) if mask is None else mask.flatten().tolist()
    found = router_z_loss(logits, mask)
    assert found.item() == pytest.approx(slow.z_loss(rows(logits), counted), rel=2e-6)
    if mask is None:
        theirs = router_z_loss_func(torch.stack(logits).view(-1, LENGTH, E))
        torch.testing.assert_close(found, theirs, rtol=2e-6, atol=0)


@pytest.mark.parametrize("loss", [lambda logits, mask: load_balancing_loss(logits, 2, mask), router_z_loss])
def test_padding_does_not_count_and_gets_no_gradient(loss):
    logits = logits_of()
    value = loss(logits, MASK)
    for gradient in torch.autograd.grad(value, logits):
        padded = gradient[MASK.flatten() == 0]
        assert torch.equal(padded, torch.zeros_like(padded)) and gradient.abs().sum() > 0
    others = tuple(torch.where(MASK.flatten()[:, None] == 1, layer, 9 * torch.randn_like(layer)) for layer in logits)
    torch.testing.assert_close(loss(others, MASK), value)
    torch.testing.assert_close(loss(tuple(x[MASK.flatten() == 1] for x in logits), None), value)


def test_losses_of_bfloat16_logits_are_computed_in_float32():
    logits = logits_of(dtype=torch.bfloat16)
    counted = [1] * (BATCH * LENGTH)
    assert load_balancing_loss(logits, 2).item() == pytest.approx(slow.balance_loss(rows(logits), 2, counted), rel=2e-6)
    assert router_z_loss(logits).item() == pytest.approx(slow.z_loss(rows(logits), counted), rel=2e-6)


def test_a_batch_of_padding_has_a_loss():
    nothing = torch.zeros(BATCH, LENGTH)
    assert load_balancing_loss(logits_of(), 2, nothing) == 0 and router_z_loss(logits_of(), nothing) == 0


def test_a_mask_of_other_tokens_is_refused():
    with pytest.raises(ValueError, match="The mask has 24 tokens but the router saw 21"):
        router_z_loss(logits_of(), torch.ones(3, 8))


# -- what the language model adds to its loss ----------------------------------------------------------------------


def test_targets_are_the_positions_before_a_label():
    labels = torch.tensor([[-100, 4, 5, -100], [7, -100, -100, 3]])
    assert mask_of_targets(labels).tolist() == [[True, True, False, False], [False, False, True, False]]


def test_both_losses_with_their_coefficients():
    config = zoo_config(router_aux_loss_coef=0.3, router_z_loss_coef=0.02, num_experts_per_tok=2)
    logits = logits_of()
    losses = router_losses(config, logits, MASK)
    torch.testing.assert_close(losses.aux_loss, load_balancing_loss(logits, 2, MASK))
    torch.testing.assert_close(losses.z_loss, router_z_loss(logits, MASK))
    torch.testing.assert_close(losses.total, 0.3 * losses.aux_loss + 0.02 * losses.z_loss)


def test_layers_may_choose_different_numbers_of_experts():
    config = zoo_config(
        **{"num_hidden_layers": 3, "num_experts_per_tok": 2, "router_aux_loss_coef": 1.0},
        **{"mlp_layer_types": ["sparse", "dense", "sparse"], "per_layer_config": {2: {"num_experts_per_tok": 4}}},
    )
    logits = logits_of(2)
    torch.testing.assert_close(router_losses(config, logits).aux_loss, load_balancing_loss(logits, [2, 4]))


def test_micro_batches_add_up_to_the_batch():
    """With num_items_in_batch the z-loss of the parts is the z-loss of the whole, however uneven they are."""
    config = zoo_config(router_z_loss_coef=1.0)
    logits = logits_of(2)
    labels = torch.randint(9, (BATCH, LENGTH)).masked_fill(MASK == 0, -100)
    targets = mask_of_targets(labels)
    whole = router_losses(config, logits, MASK, targets).total
    parts = 0.0
    for index in range(BATCH):
        here = slice(index * LENGTH, (index + 1) * LENGTH)
        micro = tuple(layer[here] for layer in logits)
        parts += router_losses(config, micro, MASK[index], targets[index], num_items_in_batch=targets.sum()).total
    torch.testing.assert_close(parts, whole)


# -- balance by bias -----------------------------------------------------------------------------------------------


def test_the_bias_moves_by_the_rate_towards_the_mean():
    bias = torch.tensor([0.5, -0.5, 0.0, 0.25])
    found = updated_correction_bias(bias, torch.tensor([9, 1, 5, 5]), rate=0.01)
    torch.testing.assert_close(found, torch.tensor([0.49, -0.49, 0.0, 0.25]))


class TwoLayers(nn.Module):
    """Two sparse layers called as a model is."""

    def __init__(self, **flags):
        super().__init__()
        config = zoo_config(scoring_func="sigmoid", use_score_correction_bias=True, num_experts_per_tok=2, **flags)
        self.layers = nn.ModuleList([SparseMLP(config, index) for index in range(2)])

    def forward(self, hidden_states, attention_mask=None):
        for layer in self.layers:
            hidden_states = hidden_states + layer(hidden_states)
        return hidden_states


def choices(model, hidden_states):
    """Every layer's chosen experts, `[2][B · T, k]`."""
    seen = []
    hooks = [layer.gate.register_forward_hook(lambda m, a, output: seen.append(output[2])) for layer in model.layers]
    with torch.no_grad():
        model(hidden_states)
    for hook in hooks:
        hook.remove()
    return seen


def test_a_step_counts_what_training_chose_and_skips_padding():
    model = randomize(TwoLayers()).train()
    before = [layer.gate.e_score_correction_bias.clone() for layer in model.layers]
    batches = [torch.randn(BATCH, LENGTH, D) for _ in range(2)]
    chosen = [choices(model, batch) for batch in batches]
    balancer = CorrectionBiasBalancer(model, rate=0.05)
    for batch in batches:
        model(batch, attention_mask=MASK)
    with torch.no_grad():
        model.eval()(torch.randn(20 * BATCH, LENGTH, D))
    balancer.step()
    for index, layer in enumerate(model.layers):
        load = [0] * E
        for batch in range(2):
            for row, counts in zip(chosen[batch][index].tolist(), MASK.flatten().tolist(), strict=True):
                for expert in row:
                    load[expert] += counts
        mean = sum(load) / E
        moved = [0.05 * ((mean > count) - (mean < count)) for count in load]
        torch.testing.assert_close(layer.gate.e_score_correction_bias - before[index], torch.tensor(moved))


def test_a_step_without_tokens_changes_nothing_and_removed_hooks_count_nothing():
    model = randomize(TwoLayers()).train()
    balancer = CorrectionBiasBalancer(model)
    model(torch.randn(BATCH, LENGTH, D))
    balancer.step()
    before = [layer.gate.e_score_correction_bias.clone() for layer in model.layers]
    balancer.step()
    balancer.remove()
    model(torch.randn(BATCH, LENGTH, D))
    balancer.step()
    for layer, bias in zip(model.layers, before, strict=True):
        assert torch.equal(layer.gate.e_score_correction_bias, bias)


def test_steps_even_out_a_collapsed_router():
    router = randomize(SparseMLP(zoo_config(scoring_func="sigmoid", use_score_correction_bias=True)).gate).train()
    with torch.no_grad():
        router.e_score_correction_bias.zero_()
        router.weight[:3].add_(0.1)
        router.weight[3:].sub_(0.1)
    tokens = torch.randn(400, D) + 0.5

    def unevenness():
        load = torch.bincount(router(tokens)[2].flatten(), minlength=E).float()
        return (load.max() / load.mean()).item()

    start = unevenness()
    for rate in (0.02, 0.005):
        balancer = CorrectionBiasBalancer(router, rate)
        for _ in range(60):
            router(tokens)
            balancer.step()
        balancer.remove()
    assert start > 3 and unevenness() < 1.2


def test_counts_are_summed_over_processes(monkeypatch):
    model = randomize(TwoLayers()).train()
    balancer = CorrectionBiasBalancer(model, rate=1.0)
    elsewhere = torch.arange(E).float() * 1000
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda load: load.add_(elsewhere))
    before = model.layers[0].gate.e_score_correction_bias.clone()
    model(torch.randn(BATCH, LENGTH, D))
    balancer.step()
    moved = model.layers[0].gate.e_score_correction_bias - before
    torch.testing.assert_close(moved, torch.tensor([1.0] * (E // 2) + [-1.0] * (E // 2)))


def test_a_model_without_correction_biases_is_refused():
    with pytest.raises(ValueError, match="use_score_correction_bias=True"):
        CorrectionBiasBalancer(SparseMLP(zoo_config()))
