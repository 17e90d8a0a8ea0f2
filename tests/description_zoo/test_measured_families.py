"""What is said of a model is what it has and does: every family's tiny model, run."""

import pytest
import torch
from tiny_models import every_family, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from description_zoo.flops import flops
from description_zoo.measure import cache_totals, empty_model, expert_parameters, measure
from description_zoo.training_memory import LiveBytes, step, training_memory
from modeling_zoo import ZooForCausalLM
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


# -- operations -----------------------------------------------------------------------------------------------------

WIDE = {"sliding_window": 4096, "attention_chunk_size": 4096, "index_topk": 4096}


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def on_meta(config):
    """A model whose every product is one that the counter knows; the plain form of sparse attention reads all keys."""
    plain = "sdpa" if "indexed_attention" in config.layer_types else "eager"
    options = {"attn_implementation": plain, "experts_implementation": "batched_mm"}
    with torch.device("meta"):
        return ZooForCausalLM._from_config(config, **options).eval()


def tokens_of(length):
    return torch.ones(1, length, dtype=torch.long, device="meta")


@torch.no_grad()
@pytest.mark.parametrize("variant", every_family(), ids=lambda v: f"{v[0]}-{v[1]}")
def test_operations_are_those_that_torch_counts(variant):
    config = tiny_config(variant)
    # One token behind 20 others, more than any window.
    model, cache = on_meta(config), DynamicCache(config=config)
    model(tokens_of(20), past_key_values=cache, use_cache=True)
    step = counted(lambda: model(tokens_of(1), past_key_values=cache, use_cache=True))
    said = flops(empty_model(config), 21)
    assert said["decode"] == step

    # A prompt in chunks that are full, and in windows that hide nothing.
    for layer in [config, *config.per_layer_config]:
        for field, wide in WIDE.items():
            if getattr(layer, field, None) is not None:
                setattr(layer, field, wide)
    if config.is_heterogeneous and any(field in config.per_layer_attributes for field in WIDE):
        return
    length = 512 if any(config.recurrent_mixers) else 24
    prompt = counted(lambda: on_meta(config)(tokens_of(length), use_cache=False))
    assert flops(empty_model(config), length)["prompt"] * length == prompt


@pytest.mark.parametrize("variant", every_family([("llama", 0), ("deepseek_v3", 0)]), ids=lambda v: f"{v[0]}-{v[1]}")
def test_training_costs_three_forwards(variant):
    config = tiny_config(variant)
    if any(config.recurrent_mixers) or config.num_mtp_layers:
        pytest.skip("chunks are solved otherwise backwards; further layers are not counted")
    length = min(
        [12, *(getattr(one, field) for one in config.per_layer_config for field in WIDE if getattr(one, field))]
    )
    tokens, model = tokens_of(length), on_meta(config).train()
    found = counted(lambda: model(tokens, labels=tokens, use_cache=False).loss.backward())
    assert flops(empty_model(config), length)["train"] * length == found


# -- memory of training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", every_family([("llama", 0), ("gemma4_text", 0)]), ids=lambda v: f"{v[0]}-{v[1]}")
def test_training_takes_the_memory_that_is_said(variant):
    """A step on a CPU: parameters, their gradients, AdamW's moments, and all that lives between forward and end."""
    config = tiny_config(variant)
    said = training_memory(config, 48, batch=2)
    for name, checkpointing in (("", False), ("_checkpointed", True)):
        model, live = tiny_model(config).train(), LiveBytes()
        step(model, 48, 2, checkpointing, live)
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.step()
        moments = sum(one.nbytes for state in optimizer.state.values() for one in state.values() if one.ndim)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
        assert (said["weights"], said["gradients"], said["optimizer"]) == (weights, gradients, moments)
        assert said[f"total{name}"] == pytest.approx(weights + gradients + moments + live.peak, rel=0.1)
