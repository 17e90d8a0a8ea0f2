"""What a copy, a read and a product reach on this card: the measures of all that follows."""

import torch

from .harness import HALF, Item, Run, seconds


def items(run: Run) -> list[Item]:
    return [Item("copy, read and product", lambda: measured(run))]


def measured(run: Run) -> dict:
    """GB/s of a copy (read and written) and of a sum, TFLOP/s of a product in bfloat16; and what computed them."""
    count = 2**20 if run.tiny else 2**31
    source = torch.empty(count, dtype=torch.uint8, device=run.device).random_(0, 255)
    target = torch.empty_like(source)
    copy = 2 * count / seconds(run, lambda _: target.copy_(source), 9)
    integers = source.view(torch.int16)
    read = count / seconds(run, lambda _: integers.amax(), 9)
    size = 256 if run.tiny else 8192
    left, right = (torch.randn(size, size, device=run.device).to(HALF) for _ in range(2))
    product = 2 * size**3 / seconds(run, lambda _: left @ right, 9)
    return {
        "device": torch.cuda.get_device_name() if run.cuda else "cpu",
        "copy_GBps": copy / 1e9,
        "read_GBps": read / 1e9,
        "bf16_TFLOPS": product / 1e12,
    }
