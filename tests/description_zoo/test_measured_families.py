"""What is said of a model is what it has and does: every family's tiny model, run."""

import pytest
import torch
from tiny_models import every_family, tiny_config, tiny_model
from transformers import DynamicCache

from description_zoo.measure import cache_totals, expert_parameters, measure
from modeling_zoo.mlp_experts import Experts


def held(part):
    """Bytes of the numbers in a cache, wherever they are in it; numbers of tokens are no floats."""
    if isinstance(part, torch.Tensor):
        return part.nbytes if part.is_floating_point() else 0
    if isinstance(part, (list, tuple, dict)):
        return sum(map(held, part.values() if isinstance(part, dict) else part))
    return held(vars(part)) if hasattr(part, "update") or hasattr(part, "lazy_initialization") else 0


@torch.no_grad()
@pytest.mark.parametrize("variant", every_family(), ids=lambda v: f"{v[0]}-{v[1]}")
def test_cache_and_active_parameters_are_those_of_a_run(variant):
    config = tiny_config(variant)
    model, report = tiny_model(config), measure(config)
    assert report["parameters"] == model.num_parameters()

    tokens = torch.randint(1, config.vocab_size, (2, 21))
    for length in (3, 21):
        # transformers' own layers, which hold what they must and no more.
        cache = DynamicCache(config=config)
        model(tokens[:, :length], past_key_values=cache, use_cache=True)
        assert cache_totals(report, length, batch=2)["bytes"] == held(cache.layers), length

    ran = active_parameters(model, tokens[:1, :1], report)
    assert report["least_active_parameters"] <= ran <= report["active_parameters"]
    assert report["least_active_parameters"] == report["active_parameters"] or config.zero_expert_num


def active_parameters(model, token, report):
    """All but the experts that one token did not go to, by what each set of experts was called with."""
    idle = []

    def count(experts, args, kwargs):
        chosen = next(one for one in (*args, *kwargs.values()) if not one.is_floating_point())
        used = {expert for expert in chosen.flatten().tolist() if expert < experts.num_experts}
        idle.append((experts, experts.num_experts - len(used)))

    handles = [
        module.register_forward_pre_hook(count, with_kwargs=True)
        for module in model.model.modules()
        if isinstance(module, Experts)
    ]
    model(token, use_cache=False)
    for handle in handles:
        handle.remove()
    called = {id(experts) for experts, _ in idle}
    spared = sum(expert_parameters(experts) * unused for experts, unused in idle)
    silent = [module for module in model.model.modules() if isinstance(module, Experts) and id(module) not in called]
    spared += sum(expert_parameters(experts) * experts.num_experts for experts in silent)
    return model.num_parameters() - report["prediction_parameters"] - spared
