"""Masks of numbers to add to scores, for the plain backend, without a copy from the host.

transformers' own builder for it copies a number from the CPU for every token: the host waits for the device, and no
graph of a device can be recorded.
"""

from typing import Any

import torch
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from configuration_zoo import ZooConfig

# The name by which transformers' builders find `additive_mask`.
ADDITIVE = "zoo_additive"


def additive_mask(
    *args: Any,
    q_length: int,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """`[B, 1, T, S]`: 0 where a query sees a key, the least number of `dtype` where not; None where one query sees all.

    Arguments as transformers' masks have them. A padding mask is not looked at, since that would wait for the device.
    """
    skip = allow_is_causal_skip and attention_mask is None and q_length == 1
    kwargs |= {"q_length": q_length, "attention_mask": attention_mask, "dtype": dtype}
    visible = sdpa_mask(*args, allow_is_causal_skip=skip, **kwargs)
    if visible is None:
        return None
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(visible.logical_not(), torch.finfo(dtype).min)


AttentionMaskInterface.register(ADDITIVE, additive_mask)


class AdditiveMaskConfig:
    """A config as transformers' mask builders see it, who read from it which masks to make."""

    _attn_implementation = ADDITIVE

    def __init__(self, config: ZooConfig):
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def mask_config(config: ZooConfig) -> ZooConfig | AdditiveMaskConfig:
    """The config to call transformers' mask builders with, for the backend that `config` names."""
    return AdditiveMaskConfig(config) if config._attn_implementation == "eager" else config
