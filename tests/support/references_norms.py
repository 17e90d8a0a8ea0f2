"""Norms the slow way: one vector after the other, in float64."""

import math

import torch


def norm_vector(x, kind, eps, weight=None, bias=None, offset=0.0):
    """One vector as a list; a layer norm takes the mean away first."""
    if kind == "layer_norm":
        mean = sum(x) / len(x)
        x = [value - mean for value in x]
    size = math.sqrt(sum(value * value for value in x) / len(x) + eps)
    y = [value / size for value in x]
    if weight is not None:
        y = [value * (offset + scale) for value, scale in zip(y, weight, strict=True)]
    return y if bias is None else [value + shift for value, shift in zip(y, bias, strict=True)]


def norm_heads(x, kind, eps, weight=None, bias=None, offset=0.0):
    """Every head [d] of `x` `[..., H, d]`, with one weight `[d]` for all of them or one `[H, d]` for each."""
    rows = []
    for number, row in enumerate(x.double().flatten(0, -2)):
        of_head = [
            None if part is None else (part if part.dim() == 1 else part[number % x.shape[-2]]).double().tolist()
            for part in (weight, bias)
        ]
        rows.append(norm_vector(row.tolist(), kind, eps, *of_head, offset))
    return torch.tensor(rows, dtype=torch.double).view(x.shape)


def norm_projections(x, kind, eps, weight=None, bias=None, offset=0.0):
    """All heads of a token together, `[..., H, d]`."""
    return norm_heads(x.flatten(-2).unsqueeze(-2), kind, eps, weight, bias, offset).view(x.shape)
