"""Memory while a cache grows: bytes allocated and reserved over what it holds."""

import time

import torch
from transformers.cache_utils import DynamicLayer

from modeling_zoo.cache_growing import GrowingLayer

from .harness import HALF, Item, Run

# Reserved over held, at most.
BAR = 1.2
LAYERS = {"transformers": DynamicLayer, "zoo": GrowingLayer}
ROWS, WIDTH = 8, 288


def items(run: Run) -> list[Item]:
    return [Item(side, lambda side=side: grown(run, side)) for side in LAYERS]


@torch.no_grad()
def grown(run: Run, side: str) -> dict:
    """16 layers of a latent's width, 8 rows, from 8k to 40k tokens in steps of 64."""
    layers, start, stop, chunk = (2, 32, 256, 8) if run.tiny else (16, 8192, 40960, 64)
    run.clear()
    if run.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
    held, begun = [LAYERS[side]() for _ in range(layers)], time.perf_counter()
    first = torch.zeros(ROWS, 1, start, WIDTH, device=run.device, dtype=HALF)
    more = torch.zeros(ROWS, 1, chunk, WIDTH, device=run.device, dtype=HALF)
    for layer in held:
        layer.update(first, first)
    for _ in range(start, stop, chunk):
        for layer in held:
            layer.update(more, more)
    run.wait()
    needed = layers * ROWS * stop * 2 * WIDTH * HALF.itemsize
    values = {"GiB": needed / 2**30, "seconds": time.perf_counter() - begun}
    if run.cuda:
        reserved = (torch.cuda.max_memory_reserved() - before) / needed
        values |= {"allocated": torch.cuda.max_memory_allocated() / needed, "reserved": reserved}
        values["retries"] = torch.cuda.memory_stats().get("num_alloc_retries", 0)
        values |= {"at_most": BAR, "met": reserved <= BAR} if side == "zoo" else {}
    return values
