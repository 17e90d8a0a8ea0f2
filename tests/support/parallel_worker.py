"""One rank of test_parallel.py: loads a folder split as asked and writes what it computes."""

import sys

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig
from transformers.utils import logging

from modeling_zoo import ZooForCausalLM

PLANS = {
    "tensor": lambda: {"tp_plan": "auto"},
    "expert": lambda: {"distributed_config": DistributedConfig(tp_size=2, ep_size=2)},
}


def whole_tensor(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cached_numbers(cache):
    """How many numbers each layer of a cache holds."""
    kept = ("keys", "values", "conv_states", "recurrent_states")
    parts = [[getattr(layer, name, None) for name in kept] for layer in cache.layers]
    parts = [[part for some in layer for part in (some if isinstance(some, list) else [some])] for layer in parts]
    return [sum(part.numel() for part in layer if isinstance(part, torch.Tensor)) for layer in parts]


def main(folder, plan):
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = ZooForCausalLM.from_pretrained(folder, **PLANS[plan]()).eval()
    tokens = torch.load(f"{folder}/tokens.pt")
    with torch.no_grad():
        outputs = model(tokens, use_cache=True)
        logits = outputs.logits
    # Layers that predict further tokens learn in training alone.
    model.train(model.config.num_mtp_layers > 0)(tokens, labels=tokens).loss.backward()
    model.eval()
    gradients = {name: whole_tensor(parameter.grad) for name, parameter in model.named_parameters()}
    sequence = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    whole = sum(parameter.numel() for parameter in model.parameters())
    held = sum(
        (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()
        for parameter in model.parameters()
    )
    model.save_pretrained(f"{folder}/saved")
    if dist.get_rank() == 0:
        found = {"logits": logits, "sequence": sequence, "whole": whole, "held": held, "gradients": gradients}
        found["cached"] = cached_numbers(outputs.past_key_values)
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
