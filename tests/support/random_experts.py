"""Sparse layers of zoo's own with every tensor random, and their sizes."""

import re

import torch

from configuration_zoo import ZooConfig

# All sizes differ, and differ doubled: a transposed or swapped tensor cannot pass.
D, E, K, WIDTH, SHARED = 40, 12, 3, 24, 56


def zoo_config(implementation="eager", **flags):
    defaults = {"num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": WIDTH}
    shape = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
    return ZooConfig(**(shape | defaults | flags), experts_implementation=implementation)


def randomize(module):
    """Every tensor random; correction biases large enough to change the choice, and exact in bfloat16."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            fresh = torch.randn_like(tensor)
            if re.search(r"correction_bias|expert_bias", name):
                tensor.copy_((0.3 * fresh).bfloat16())
            elif re.search(r"scale$|norm\.weight", name):
                tensor.copy_(1 + 0.2 * fresh)
            else:
                tensor.copy_(fresh * (0.5 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5))
    return module
