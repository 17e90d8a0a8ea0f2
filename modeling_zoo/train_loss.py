"""The loss of predicting the next token, from all logits at once or from a chunk of them at a time.

    loss = Σ over target tokens of (cross entropy + output_z_loss_coef · log² Z) / their number

That number is `num_items_in_batch` where the caller counts the targets of a whole accumulated batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from configuration_zoo import ZooConfig

from .embeddings import shape_logits
from .ops_effective_weight import has_hooks

IGNORED = -100


def logits_and_loss(
    model: PreTrainedModel,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    logits_to_keep: int | torch.Tensor,
    chunk_size: int | None,
    kwargs: dict,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Hidden states `[B, T, D]` → logits (`[B, T or kept, V]`, or None under a chunked loss that keeps none), loss.

    `kwargs` are those of the call: `num_items_in_batch`, `shift_labels` and `ignore_index` count. Raises ValueError for
    a chunked loss on a model with a loss function of the caller's own, and for one with logits over FSDP2.
    """
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    if not chunk_size or not model.training:
        logits = shape_logits(model.lm_head(hidden_states[:, keep, :]), model.config)
        return logits, whole_loss(model, logits, labels, kwargs)
    if model.loss_function is not ForCausalLMLoss:
        raise ValueError(
            f"loss_chunk_size={chunk_size} computes the loss itself and would not call the loss_function that this "
            "model was given: leave one of them out."
        )
    everything = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if not everything and gathered_by_fsdp(model.lm_head):
        raise ValueError(
            f"loss_chunk_size={chunk_size} with logits_to_keep={logits_to_keep} calls the head twice, which one that "
            "FSDP2 shards does not allow: leave logits_to_keep out."
        )
    logits = None if everything else shape_logits(model.lm_head(hidden_states[:, keep, :]), model.config)
    return logits, chunked_loss(model.lm_head, hidden_states, labels, model.config, chunk_size, kwargs)


def next_tokens(labels: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, int]:
    """Labels `[B, T]` → (the target of each position `[B, T]`, the id that marks none)."""
    ignored = kwargs.get("ignore_index", IGNORED)
    if kwargs.get("shift_labels") is not None:
        return kwargs["shift_labels"], ignored
    return F.pad(labels, (0, 1), value=ignored)[..., 1:], ignored


def count_targets(targets: torch.Tensor, ignored: int, kwargs: dict) -> int | torch.Tensor:
    """What the sum is divided by: the targets of the accumulated batch, else those of this call."""
    total = kwargs.get("num_items_in_batch")
    total = (targets != ignored).sum() if total is None else total
    return total.to(targets.device) if isinstance(total, torch.Tensor) else total


def share_of_batch(labels: torch.Tensor, kwargs: dict) -> float | torch.Tensor:
    """The share of the accumulated batch's targets that is in this call; 1 where the caller does not count them."""
    if kwargs.get("num_items_in_batch") is None:
        return 1.0
    targets, ignored = next_tokens(labels, kwargs)
    return (targets != ignored).sum() / count_targets(targets, ignored, kwargs)


def whole_loss(model: PreTrainedModel, logits: torch.Tensor, labels: torch.Tensor, kwargs: dict) -> torch.Tensor:
    """transformers' loss, and the z-loss in training, from logits `[B, T, V]`."""
    loss = model.loss_function(logits=logits, labels=labels, vocab_size=model.config.vocab_size, **kwargs)
    if not (model.training and model.config.output_z_loss_coef):
        return loss
    targets, ignored = next_tokens(labels, kwargs)
    targets = targets.to(logits.device)
    squares = log_normalizer_squares(logits.float(), targets != ignored)
    return loss + model.config.output_z_loss_coef * squares / count_targets(targets, ignored, kwargs)


def log_normalizer_squares(logits: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Σ over counted tokens of log² Σ_v exp(logit_v), logits `[..., V]` (PaLM, Chowdhery et al. 2022, §5)."""
    return (logits.logsumexp(dim=-1).square() * counted).sum()


def chunked_loss(
    head: torch.nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    config: ZooConfig,
    chunk_size: int,
    kwargs: dict,
) -> torch.Tensor:
    """The same loss from hidden states `[B, T, D]`, `chunk_size` target tokens at a time.

    The gradient is taken chunk by chunk in the forward pass, so that no logits outlive their chunk. Where the head is
    more than its own parameters (sharded weights, hooks), each chunk is computed again in the backward pass instead.
    FSDP2 gathers a head around each call of it, and ranks have different numbers of chunks: there all chunks are one
    call. Raises ValueError for a head that tensor parallelism splits besides.
    """
    targets, ignored = next_tokens(labels, kwargs)
    targets = targets.reshape(-1).to(hidden_states.device)
    counted = targets != ignored
    number = count_targets(targets, ignored, kwargs)
    rows, targets = hidden_states.reshape(-1, hidden_states.shape[-1])[counted], targets[counted]

    def sum_of_chunks(apply, plain, rows):
        chunk_sum = partial(sum_of_chunk, apply, config)
        if torch.is_grad_enabled() and plain:
            learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
            return SumOverChunks.apply(rows, targets, chunk_sum, chunk_size, *learned)
        # A sum of nothing, but one with a gradient: a batch may be all prompt.
        found = rows[:0].float().sum()
        for states, wanted in zip(rows.split(chunk_size), targets.split(chunk_size), strict=True):
            found = found + checkpoint(chunk_sum, states, wanted, use_reentrant=False).to(found.device)
        return found

    hooked = [module for module in head.modules() if has_hooks(module)]
    if not gathered_by_fsdp(head):
        return sum_of_chunks(head, not hooked and not is_sharded(head), rows) / number
    # The head's own hooks are FSDP2's, and run once around all chunks.
    inside = partial(sum_of_chunks, head.forward, all(module is head for module in hooked))
    with forward_replaced(head, inside):
        return head(rows) / number


def sum_of_chunk(apply: Callable, config: ZooConfig, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Σ over targets `[n]` of cross entropy and z-loss from states `[n, D]`."""
    logits = shape_logits(apply(states), config).float()
    total = F.cross_entropy(logits, targets.to(logits.device), reduction="sum")
    if config.output_z_loss_coef:
        everyone = torch.ones_like(targets, dtype=torch.bool, device=logits.device)
        total = total + config.output_z_loss_coef * log_normalizer_squares(logits, everyone)
    return total


def gathered_by_fsdp(head: torch.nn.Module) -> bool:
    """Whether FSDP2 shards the head: it gathers and scatters around each call of it."""
    return hasattr(type(head), "set_requires_gradient_sync")


@contextmanager
def forward_replaced(head: torch.nn.Module, forward: Callable) -> Iterator[None]:
    """Within it, calling `head` gathers its weights by FSDP2 as ever and computes `forward`. Raises ValueError for a
    head that is tensor-parallel and sharded by FSDP."""

    def checked(rows):
        # Asked inside the call: outside of it FSDP2 shards the weights itself.
        if is_sharded(head):
            raise ValueError(
                "loss_chunk_size does not go with a head that is tensor-parallel and sharded by FSDP: leave it out."
            )
        return forward(rows)

    before = vars(head).get("forward")
    head.forward = checked
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def is_sharded(head: torch.nn.Module) -> bool:
    """Whether this process holds a part of a parameter only."""
    return any(hasattr(parameter, "to_local") for parameter in head.parameters())


class SumOverChunks(torch.autograd.Function):
    """Σ over chunks of chunk_sum(rows `[n, D]`, targets `[n]`) and, already in the forward pass, its gradient.

    The gradient of parameters is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        rows: torch.Tensor,
        targets: torch.Tensor,
        chunk_sum: Callable,
        chunk_size: int,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        row_gradient = torch.empty_like(rows)
        gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        for start in range(0, len(rows), chunk_size):
            here = slice(start, start + chunk_size)
            with torch.enable_grad():
                states = rows[here].detach().requires_grad_()
                part = chunk_sum(states, targets[here])
            first, *others = torch.autograd.grad(part, [states, *parameters], allow_unused=True)
            total += part.detach().to(total.device)
            row_gradient[here] = first
            for gradient, other in zip(gradients, others, strict=True):
                if other is not None:
                    gradient += other
            del part, first, others
        gradients = [gradient.to(parameter.dtype) for gradient, parameter in zip(gradients, parameters, strict=True)]
        ctx.save_for_backward(row_gradient, *gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        row_gradient, *gradients = [gradient * scale.to(gradient.device) for gradient in ctx.saved_tensors]
        return row_gradient, None, None, None, *gradients
