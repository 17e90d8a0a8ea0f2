"""The least that a decoded token takes: the bytes that must move, at the speed at which this machine reads memory."""

from functools import cache
from typing import TYPE_CHECKING

import torch

from zoo.inspection import reported

from .measuring import seconds

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig


@cache
def read_speed(device: str = "cpu") -> float:
    """Bytes a second that this process reads, from a sum over more than any cache holds."""
    numbers = torch.ones(2**26 if torch.device(device).type == "cpu" else 2**30, device=device)
    return numbers.nbytes / min(seconds(numbers.sum, device)[0][0] for _ in range(5))


def limit(config: "ZooConfig", context: int, times: dict[str, float], device: str = "cpu") -> dict:
    """{"bytes": what a token behind `context` others moves, by description_zoo's count, "seconds": the least for it,
    "share": {side: that divided by what the side took}}."""
    moved = reported(config, context)["bytes_moved_per_token"]
    least = moved / read_speed(device)
    return {"bytes": moved, "seconds": least, "share": {side: least / taken for side, taken in times.items()}}


def in_words(found: dict) -> str:
    """ "reading 12.1 MiB takes 0.61 ms: transformers 23 % of the limit, zoo 61 %"."""
    shares = ", ".join(f"{side} {share:.0%}" for side, share in found["share"].items())
    return f"moving {found['bytes'] / 2**20:,.1f} MiB takes {found['seconds'] * 1e3:.2f} ms: {shares} of the limit"
