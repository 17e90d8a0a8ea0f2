"""Which experts a token goes to and with what weight, as pure functions.

Shapes: N tokens, E experts, G groups of E / G experts, k experts per token.
"""

import torch
import torch.nn.functional as F


def softmax(logits):
    """`[..., E]`, sums to one (Shazeer et al. 2017; Mixtral, Qwen3)."""
    return logits.softmax(dim=-1)


def sigmoid(logits):
    """`[..., E]`, each expert by itself (DeepSeek-V3, Llama 4)."""
    return logits.sigmoid()


def sqrtsoftplus(logits):
    """sqrt(log(1 + exp(x))), `[..., E]` (DeepSeek-V4)."""
    return F.softplus(logits).sqrt()


SCORING_FUNCTIONS = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": sqrtsoftplus}


def best_of_group(scores):
    """`[N, G, E / G]` → `[N, G]`, a group is as good as its best expert (DeepSeek-V2 §2.2.2)."""
    return scores.amax(dim=-1)


def best_two_of_group(scores):
    """`[N, G, E / G]` → `[N, G]`, a group is as good as its two best experts together (DeepSeek-V3)."""
    return scores.topk(2, dim=-1).values.sum(dim=-1)


GROUP_SCORES = {"max": best_of_group, "top2_sum": best_two_of_group}
GROUP_MASK_VALUES = {"-inf": float("-inf"), "zero": 0.0}


def limit_groups(scores, n_group, topk_group, group_score, mask_value):
    """Scores `[N, E]` with `mask_value` outside the `topk_group` best groups (DeepSeek-V2 §2.2.2).

    With a `mask_value` of 0 an expert outside can still be picked, where the scores inside are 0 too.
    """
    groups = scores.unflatten(-1, (n_group, -1))
    best = GROUP_SCORES[group_score](groups).topk(topk_group, dim=-1).indices
    outside = torch.ones(groups.shape[:-1], dtype=torch.bool, device=scores.device).scatter(-1, best, False)
    return groups.masked_fill(outside.unsqueeze(-1), mask_value).flatten(-2)


def normalize_weights(weights, eps, minimum):
    """w / max(sum(w) + eps, minimum), `[N, k]`."""
    total = weights.sum(dim=-1, keepdim=True) + eps
    return weights / (total if minimum is None else total.clamp(min=minimum))


def sparsemixer(scores, top_k, jitter_eps, training):
    """Scores `[N, E]` → (weights `[N, k]`, experts `[N, k]`), one expert after the other (Liu et al. 2024, 2409.12136).

    For each pick, the experts whose score lies within 2 · jitter_eps of the best one left, relatively, stay in a
    softmax; its value at the pick is the weight. In training the pick is sampled, and where it is not the best one the
    weight is scaled by 1 or 1/3 at random, without a gradient of the scale's own: Heun's third-order estimate. The
    weights do not sum to one, and the threshold acts in evaluation too. (Phi-3.5-MoE.)
    """
    left, weights, experts = scores, [], []
    for _ in range(top_k):
        best, expert = left.max(dim=-1, keepdim=True)
        with torch.no_grad():
            far = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter_eps
        gates = left.masked_fill(far, float("-inf"))
        probabilities = gates.softmax(dim=-1)
        if training:
            expert = sample(gates)
        weight = probabilities.gather(-1, expert)
        if training:
            weight = heun_scale(weight, expert == probabilities.argmax(dim=-1, keepdim=True))
        weights.append(weight)
        experts.append(expert)
        left = left.scatter(-1, expert, float("-inf"))
    return torch.cat(weights, dim=-1), torch.cat(experts, dim=-1)


def sample(logits):
    """One index `[N, 1]` from softmax(logits), `[N, E]`, by the Gumbel trick."""
    noise = torch.empty_like(logits).exponential_().log()
    return (logits - noise).argmax(dim=-1, keepdim=True)


def heun_scale(weight, is_best):
    """Weights `[N, 1]`, those of a pick that is not the best times 1/3 at three out of four, with the gradient of 1."""
    keep = is_best | (torch.rand_like(weight) > 0.75)
    return torch.where(keep, weight, weight - (weight * (2 / 3)).detach())
