"""What one layer of a forward leaves for later ones, and what need not be computed in those."""

import torch
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .ops_attention_bands import mask_rows


class SharedKeyValues:
    """Keys and values `[B, K, S, d]` that layers of one forward pass on to later ones, by layer.

    Made for each forward: a window's cache holds fewer keys than the first queries of a prompt see, so they cannot
    be read back from there.
    """

    def __init__(self):
        self.states = {}

    def put(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.states[layer_idx] = key, value, torch.is_grad_enabled()

    def of(self, layer_idx: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What layer `layer_idx` left; raises ValueError where it has not run, or ran without the gradient that is
        wanted now."""
        if layer_idx not in self.states:
            raise ValueError(
                f"Layer {layer_idx} has not left its keys and values: run it before the layers that share them."
            )
        key, value, recorded = self.states[layer_idx]
        if torch.is_grad_enabled() and not recorded:
            raise ValueError(
                "Keys and values pass from layer to layer (num_kv_shared_layers, attention_type 'value_residual'), so "
                "gradient checkpointing needs use_reentrant=False."
            )
        return key.to(device), value.to(device)


class FinishedBlocks:
    """Sums `[B, T, D]` of finished blocks of layers, by the layer behind each.

    Made for each forward and handed to every layer: one that is recomputed for its gradient finds what was there.
    """

    def __init__(self):
        self.sums = {}

    def put(self, layer_idx: int, total: torch.Tensor) -> None:
        self.sums[layer_idx] = total, torch.is_grad_enabled()

    def before(self, layer_idx: int, current: torch.Tensor) -> list[torch.Tensor]:
        """What layers before `layer_idx` left, of the tokens of `current` `[B, T, D]`, which are the last ones; raises
        ValueError where one ran without the gradient that is wanted now."""
        found = [self.sums[index] for index in sorted(self.sums) if index < layer_idx]
        if torch.is_grad_enabled() and not all(recorded for _, recorded in found):
            raise ValueError(
                "block_type 'attention_residual' passes sums of blocks from layer to layer, so gradient checkpointing "
                "needs use_reentrant=False."
            )
        length = current.shape[1]
        return [total[:, total.shape[1] - length :].to(current.device) for total, _ in found]


class Shortcuts:
    """What the experts of a layer give to the next one, by layer.

    Made for each forward and handed to every layer, so that a layer recomputed for its gradient finds it again.
    """

    def __init__(self):
        self.outputs = {}

    def put(self, layer_idx: int, output: torch.Tensor) -> None:
        self.outputs[layer_idx] = output, torch.is_grad_enabled()

    def take(self, layer_idx: int) -> torch.Tensor | None:
        """What layer `layer_idx` left `[B, T, D]`, None if nothing; raises ValueError where it ran without the gradient
        that is wanted now."""
        if layer_idx not in self.outputs:
            return None
        output, recorded = self.outputs[layer_idx]
        if not torch.is_grad_enabled():
            # It is asked for again only for a gradient.
            self.outputs[layer_idx] = None, False
        elif not recorded:
            raise ValueError(
                "block_type 'shortcut' passes what experts give from layer to layer, so gradient checkpointing needs "
                "use_reentrant=False."
            )
        return output


# What a caller may ask for that holds every query.
RECORDS = ("output_hidden_states", "output_attentions", "output_router_logits")


class LastQuery:
    """What need not be computed where later layers read the keys of earlier ones: all queries but the last, from the
    first such layer on, where one logit is wanted and no record of the others. What those layers compute is not cached.
    """

    def __init__(self, config: ZooConfig):
        self.config = config

    def first_layer(
        self, logits_to_keep: int | torch.Tensor, masks: dict, past_key_values: Cache | None, kwargs: dict
    ) -> int | None:
        """The first layer that does with the last query alone, None where none does.

        A mask that is not there says causal, which over a cache of fixed size would show keys that are not there yet.
        """
        wanted = isinstance(logits_to_keep, int) and logits_to_keep == 1
        if not wanted or torch.is_grad_enabled():
            return None
        if self.config._attn_implementation not in ("sdpa", "eager"):
            return None
        recorded = any(kwargs.get(name, getattr(self.config, name, False)) for name in RECORDS)
        fixed = getattr(past_key_values, "is_compileable", False)
        if recorded or (fixed and any(mask is None for mask in masks.values())):
            return None
        return self.config.first_sharing_layer

    @staticmethod
    def of(
        hidden_states: torch.Tensor,
        rows: torch.Tensor | None,
        rotations: dict,
        position_ids: torch.Tensor,
        masks: dict,
        biases: dict,
    ) -> tuple:
        """Residual stream `[B, T, ...]`, rows per layer, rotations, positions, masks and biases of the last query
        alone."""
        length, device = hidden_states.shape[1], hidden_states.device
        last = slice(length - 1, length)

        def of_mask(mask):
            return mask if mask is None or getattr(mask, "ndim", 4) == 2 else mask_rows(mask, last, None, device)

        return (
            hidden_states[:, last],
            None if rows is None else rows[:, last],
            {name: tuple(table[:, last] for table in tables[:2]) for name, tables in rotations.items()},
            position_ids[:, last],
            {name: of_mask(mask) for name, mask in masks.items()},
            {name: bias[..., -1:, :] for name, bias in biases.items()},
        )


LAST_QUERY = {"num_kv_shared_layers": LastQuery}
