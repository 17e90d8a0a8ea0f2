"""What layers of some kinds add to the loss of a language model in training."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from configuration_zoo import ZooConfig

from .attention_sparse_indexer import SharedIndices
from .train_indexer import is_learning
from .train_loss import share_of_batch
from .train_multi_token import MultiTokenLoss
from .train_router_loss import mask_of_targets, router_losses


class IndexerLoss:
    """indexer_loss_coef times the mean loss of the layers with an indexer, by the share of an accumulated batch's
    targets that this call has."""

    def __init__(self):
        self.asks = {"shared_indices": SharedIndices()}

    @staticmethod
    def is_due(model: PreTrainedModel, record: bool | None) -> bool:
        """Whether indexers are trained in this forward."""
        return is_learning(model)

    def add(
        self,
        loss: torch.Tensor,
        model: PreTrainedModel,
        outputs: MoeModelOutputWithPast,
        labels: torch.Tensor,
        **call: Any,
    ) -> tuple[torch.Tensor, dict]:
        """(`loss` with it, nothing more to return)."""
        found = self.asks["shared_indices"].mean_loss().to(loss.device)
        return loss + model.config.indexer_loss_coef * (found * share_of_batch(labels, call)), {}


class RouterLoss:
    """The load-balancing loss and the router z-loss."""

    asks = {"output_router_logits": True}

    @staticmethod
    def is_due(model: PreTrainedModel, record: bool | None) -> bool:
        """As `record` (output_router_logits) says; where that is None, in training if a coefficient is positive."""
        config = model.config
        if "sparse" not in config.mlp_layer_types:
            return False
        if record is not None:
            return record
        return model.training and (config.router_aux_loss_coef > 0 or config.router_z_loss_coef > 0)

    def add(
        self,
        loss: torch.Tensor,
        model: PreTrainedModel,
        outputs: MoeModelOutputWithPast,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **call: Any,
    ) -> tuple[torch.Tensor, dict]:
        """(`loss` with both, the balance loss by the name of its output).

        Raises ValueError where the logits were recorded without a gradient, as reentrant checkpointing does.
        """
        config, logits = model.config, outputs.router_logits
        wanted = config.router_aux_loss_coef > 0 or config.router_z_loss_coef > 0
        lost = loss.requires_grad and not any(layer.requires_grad for layer in logits)
        if wanted and lost and model.training and model.is_gradient_checkpointing:
            raise ValueError(
                f"router_aux_loss_coef={config.router_aux_loss_coef} and router_z_loss_coef={config.router_z_loss_coef}"
                " would train no router: gradient checkpointing needs use_reentrant=False, or both set to 0."
            )
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2 else None
        losses = router_losses(config, logits, mask, mask_of_targets(labels), num_items_in_batch)
        return loss + losses.total.to(loss.device), {"aux_loss": losses.aux_loss}


# By the field of the layers that have one.
ADDED_LOSSES = {"indexer_types": IndexerLoss, "num_mtp_layers": MultiTokenLoss, "num_experts": RouterLoss}


def losses_of(config: ZooConfig) -> tuple[type, ...] | None:
    """Those that a model of this config may have, None for none."""
    layers = config.per_layer_config if config.is_heterogeneous else [config]
    found = [added for field, added in ADDED_LOSSES.items() if any(getattr(layer, field) for layer in layers)]
    return tuple(found) or None


def due_losses(model: PreTrainedModel, record: bool | None) -> list:
    """Those that are due in a forward with labels; what each of them `asks` of the layers is passed to the model."""
    return [added() for added in model.added_losses if added.is_due(model, record)]
