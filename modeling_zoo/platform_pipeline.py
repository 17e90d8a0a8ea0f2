"""A model whose layers are spread over several processes: transformers' pipeline has `nn.Identity` in place of the
others.

A stage after the first one gets the residual stream `[B, T, D]` of the one before as `inputs_embeds`.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .platform_transformers import stage_of

# What a stage would need beside the residual stream: the tokens, keys or blocks of another stage, more streams than
# one, the embeddings beside the head.
UNCUT = (
    "hidden_size_per_layer_input", "num_kv_shared_layers", "num_mem_blocks", "hc_mult", "num_mtp_layers",
    "block_config.altup_num_inputs", "block_config.attn_res_block_size",
)  # fmt: skip


def is_elsewhere(layer: nn.Module) -> bool:
    """Whether another stage has this layer."""
    return isinstance(layer, nn.Identity)


def ties_of_layers(config: ZooConfig) -> list[str]:
    """The fields by which a model cannot be cut between layers."""
    values = ["attention_type"] if "value_residual" in config.attentions else []
    return [field for field in UNCUT if getattr(config, field)] + values


def refuse_uncut(config: ZooConfig) -> None:
    """Raises ValueError for a model with such a field."""
    for field in ties_of_layers(config):
        raise ValueError(
            f"pp_size cuts between layers, which {field}={getattr(config, field)} does not allow: "
            "use tp_size or fsdp_size."
        )


def count_elsewhere(cache: Cache, hidden_states: torch.Tensor, layers: nn.ModuleList) -> None:
    """Lengths and masks are asked of the first layers of a cache: those of another stage keep a number per token of
    `hidden_states` `[B, T, D]`."""
    if is_elsewhere(layers[0]) or is_elsewhere(layers[-1]):
        for layer, kept in zip(layers, cache.layers, strict=False):
            if is_elsewhere(layer) and hasattr(kept, "get_mask_sizes") and not hasattr(kept, "advance"):
                column = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
                kept.update(column, column)


class StagedModel:
    """Saving, where each process has the tensors of its own stage only."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """All stages have to call it; the whole model is written."""
        stage = stage_of(self, any(is_elsewhere(layer) for layer in self.base_model.layers))
        if stage is not None and "state_dict" not in kwargs:
            parts = [None] * stage.pp_size
            dist.all_gather_object(parts, self.state_dict(), group=stage.pp_group)
            kwargs["state_dict"] = {name: tensor for part in parts for name, tensor in part.items()}
        return super().save_pretrained(save_directory, *args, **kwargs)
