"""How much a computation does, counted and not timed: the numbers that its operations write."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedWork(TorchDispatchMode):
    """`numbers`: how many all operations wrote since, those of a backward pass too; views write none."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        return output


def counted(work):
    """Numbers written by `work()`."""
    with CountedWork() as count:
        work()
    return count.numbers
