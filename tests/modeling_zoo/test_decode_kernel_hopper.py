"""The kernel for Hopper, run in torch, against float64."""

import pytest
import torch
from gluon_emulator import run

RANK, ROPE = 128, 16


def exact(query, key, scale, visible):
    """The same in float64; zero where all is hidden."""
    scores = (query.double() @ key.double().transpose(1, 2) * scale).masked_fill(~visible[:, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return weights @ key[..., :RANK].double()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize(
    ("count", "heads", "splits", "ranges"),
    [
        (330, 70, 1, None),
        (200, 20, 2, None),
        (1, 64, 1, None),
        (300, 20, 3, ((0, 299), (100, 170))),
        (130, 64, 4, ((129, 130), (0, 0))),
    ],
)
def test_it_equals_float64(count, heads, splits, ranges, gathered, early):
    generator = torch.Generator().manual_seed(count)
    key = torch.randn(2, count + 7, RANK + ROPE, generator=generator).bfloat16()
    query = torch.randn(2, heads, RANK + ROPE, generator=generator).bfloat16()
    rows = torch.stack([torch.randperm(count + 7, generator=generator)[:count] for _ in range(2)]).int()
    read = key.gather(1, rows.long()[..., None].expand(-1, -1, RANK + ROPE)) if gathered else key[:, :count]
    at = torch.arange(count)
    ranges = ranges or ((0, count), (0, count))
    visible = torch.stack([(at >= first) & (at < last) for first, last in ranges])
    # One sequence has keys hidden between its first and its last, the other has not.
    visible[0, 3 : count - 4 : 5] = False
    holes = (visible.sum(1) < torch.tensor([last - first for first, last in ranges])).int()
    bounds = torch.cat((torch.tensor(ranges, dtype=torch.int32), holes[:, None]), dim=1)
    expected = exact(query, read, 0.1, visible)
    if not gathered:
        # What is not to be read is no number: behind the last key, and outside of what is visible.
        key[:, count:] = torch.nan
        for entry, (first, last) in zip(key, ranges, strict=True):
            entry[:first], entry[last:] = torch.nan, torch.nan
    mixed, logs = torch.full((2, splits, heads, RANK), torch.nan), torch.full((2, splits, heads), torch.nan)
    tables = rows.flatten(), visible.view(torch.uint8).flatten(), bounds.flatten()
    sizes = 0.1 * 1.4426950408889634, heads, count, splits
    strides = query.stride(0), query.stride(1), key.stride(0), key.stride(1), count, count
    run(
        (-(-heads // 64), splits, 2),
        (query.flatten(), key.flatten(), *tables, mixed.view(-1), logs.view(-1), *sizes, *strides),
        {"FIRST": RANK, "REST": ROPE, "ROWS": 64, "KEYS": 64, "GATHERED": gathered, "MASKED": True},
        early,
    )
    share = torch.softmax(logs * 0.6931471805599453, dim=1).nan_to_num(0.0)
    found = (share.unsqueeze(-1) * mixed).sum(1)
    # Weights are rounded to bfloat16 before they meet the values.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8e-3 * expected.abs().max().item())
