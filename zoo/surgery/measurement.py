"""What a change costs: perplexity on held-out rows, and the divergence from the source."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.utils import tqdm
from torch import Tensor
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig

from .calibration import batches

# What is measured with.
EVALUATION_TOKENS = 3072


@torch.no_grad()
def perplexity(model: PreTrainedModel, ids: Tensor, progress: bool = False) -> float:
    """exp of the mean loss of every token but each row's first, over rows `[n, T]`."""
    model.eval()
    total, count = 0.0, 0
    for rows in tqdm(list(batches(ids)), desc="Measuring", disable=not progress):
        logits = model(rows.to(model.device), use_cache=False).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].to(logits.device).flatten(), reduction="sum").item()
        count += rows[:, 1:].numel()
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf


@torch.no_grad()
def perplexity_by_position(
    model: PreTrainedModel, ids: Tensor, edges: list[int], progress: bool = False
) -> list[float]:
    """exp of the mean loss of the tokens from one edge to the next, `edges` [0, ..., T], over rows `[n, T]`."""
    model.eval()
    total = torch.zeros(ids.shape[1] - 1, dtype=torch.float64)
    for rows in tqdm(list(batches(ids)), desc="Measuring by position", disable=not progress):
        logits = model(rows.to(model.device), use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:].to(logits.device), reduction="none")
        total += loss.double().sum(0).cpu()
    # The first token of a row is predicted by none.
    spans = [total[max(0, first - 1) : last - 1] / len(ids) for first, last in zip(edges, edges[1:], strict=False)]
    return [math.exp(min(span.mean().item(), 700.0)) for span in spans]


def position_edges(trained: int, length: int) -> list[int]:
    """Halves of the trained context, wholes where the new one is more than four times as long; the last is shorter."""
    step = max(2, trained // 2 if length <= 4 * trained else trained)
    return [*range(0, length, step), length]


class OfTokens:
    """A model as if it had some of its tokens alone: their numbers are 0 to n - 1, and its logits are theirs."""

    def __init__(self, model: PreTrainedModel, tokens: list[int]):
        self.model, self.tokens, self.device = model, torch.tensor(tokens, device=model.device), model.device

    def numbers(self, ids: Tensor) -> Tensor:
        """Numbers here of tokens that are there, `[n, T]`."""
        return torch.searchsorted(self.tokens.to(ids.device), ids)

    def eval(self) -> "OfTokens":
        self.model.eval()
        return self

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        output = self.model(self.tokens[ids], **options)
        output.logits = output.logits[..., self.tokens]
        return output


@torch.no_grad()
def divergence(teacher: PreTrainedModel, student: PreTrainedModel, ids: Tensor) -> float:
    """Mean of KL(teacher ‖ student) over the tokens of rows `[n, T]`, in nats."""
    teacher.eval(), student.eval()
    total = 0.0
    for rows in batches(ids):
        total += (
            kl(
                teacher(rows.to(teacher.device), use_cache=False).logits,
                student(rows.to(student.device), use_cache=False).logits,
            ).item()
            * rows.numel()
        )
    return total / ids.numel()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher ‖ student) for logits `[B, T, V]`; a vocabulary that has grown is compared where
    both have tokens."""
    shared = min(teacher.shape[-1], student.shape[-1])
    teacher = teacher[..., :shared].float().log_softmax(-1)
    student = student[..., :shared].float().log_softmax(-1)
    return F.kl_div(student, teacher.to(student.device), log_target=True, reduction="none").sum(-1).mean()


def sizes(config: ZooConfig) -> dict[str, int]:
    """Parameters, and bytes of cache that a token adds, in the model's dtype."""
    from description_zoo.measure import measure

    report = measure(config)
    return {name: report[name] for name in ("parameters", "cache_bytes_per_token", "state_bytes")}
