"""The output of attention through a rank, in groups of heads."""

import torch
from torch import nn
from transformers import initialization as init


class GroupedProjection(nn.Module):
    """x `[..., g · n]` → `[..., g · r]`: each of g groups of channels has a matrix of its own, one above the other in
    the weight `[g · r, n]` (DeepSeek-V4, §2.3.1)."""

    def __init__(self, in_features: int, rank: int, groups: int):
        super().__init__()
        self.groups, self.in_features = groups, in_features // groups
        self.weight = nn.Parameter(torch.zeros(groups * rank, self.in_features))

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, mean=0.0, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrices = self.weight.unflatten(0, (self.groups, -1))
        return torch.einsum("...gn,grn->...gr", x.unflatten(-1, (self.groups, -1)), matrices).flatten(-2)
