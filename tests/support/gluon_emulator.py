"""The kernel for Hopper run in torch, program after program: what it computes, not what its threads do to each other.

Copies to shared memory arrive as late as they may, when they are waited for, or as early as they may, at once: both
must give the same.
"""

import ast
import inspect
from types import SimpleNamespace

import torch

from modeling_zoo import ops_attention_triton_hopper as source


class Pointer:
    """An address of a number in `numbers`, a flat tensor, or a tensor of them."""

    def __init__(self, numbers, at=0):
        self.numbers, self.at = numbers, torch.as_tensor(at)
        self.dtype = SimpleNamespace(element_ty=numbers.dtype)

    def __add__(self, offset):
        return Pointer(self.numbers, self.at + offset)

    def load(self, mask=None, other=0):
        inside = torch.ones_like(self.at, dtype=torch.bool) if mask is None else mask.expand_as(self.at)
        return torch.where(inside, self.numbers[torch.where(inside, self.at, 0)], other)

    def store(self, values, mask=None):
        at = self.at.expand_as(values)
        inside = torch.ones_like(at, dtype=torch.bool) if mask is None else mask.expand_as(at)
        self.numbers[at[inside]] = values[inside]


class Shared:
    """A tile in shared memory."""

    def __init__(self, numbers):
        self.numbers, self.shape = numbers, numbers.shape

    def index(self, at):
        return Shared(self.numbers[int(at)])

    def permute(self, order):
        return Shared(self.numbers.permute(order))

    def store(self, values):
        self.numbers.copy_(values)


class Copies:
    """Copies on their way, in groups."""

    def __init__(self, early):
        self.early, self.groups, self.open = early, [], []

    def start(self, tile, pointers):
        if self.early:
            tile.store(pointers.load())
        self.open.append((tile, pointers))

    def commit_group(self):
        self.groups.append(self.open)
        self.open = []

    def wait_group(self, count):
        while len(self.groups) > count:
            for tile, pointers in self.groups.pop(0):
                tile.store(pointers.load())


def multiply(a, b, accumulator, is_async=False):
    return accumulator + a.numbers.float() @ b.numbers.float()


def language(program):
    """What the kernel uses of Gluon, in torch."""

    class NoLayout:
        """A layout: of no concern here."""

        def __init__(self, *args):
            pass

        get_default_for = staticmethod(lambda shape, dtype: None)

    return SimpleNamespace(
        constexpr=object,
        int64=torch.int64,
        float32=torch.float32,
        SliceLayout=NoLayout,
        BlockedLayout=NoLayout,
        NVMMADistributedLayout=NoLayout,
        NVMMASharedLayout=NoLayout,
        program_id=lambda axis: torch.tensor(program[axis]),
        arange=lambda start, end, layout: torch.arange(start, end),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        cdiv=lambda a, b: -(-a // b),
        minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
        maximum=torch.maximum,
        max=lambda values, axis: values.amax(axis),
        sum=lambda values, axis: values.sum(axis),
        exp2=torch.exp2,
        log2=torch.log2,
        where=torch.where,
        load=lambda pointer, mask=None, other=0: pointer.load(mask, other),
        store=lambda pointer, values, mask=None: pointer.store(values, mask),
        convert_layout=lambda values, layout: values,
        static_range=range,
        # What nobody wrote is no number.
        allocate_shared_memory=lambda dtype, shape, layout: Shared(torch.full(shape, torch.nan, dtype=dtype)),
    )


def run(grid, arguments, constants, early):
    """`_read_latents` over `grid`; tensors among the arguments are their addresses."""
    tree = ast.parse(inspect.getsource(source))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    # Behind the name of the copy, which is given here, and of the kernel as it is compiled.
    code = compile(ast.Module(block.body[1:], []), source.__file__, "exec")
    for x in range(grid[0]):
        for y in range(grid[1]):
            for z in range(grid[2]):
                copies = Copies(early)
                hopper = SimpleNamespace(
                    async_copy=copies,
                    fence_async_shared=lambda: None,
                    warpgroup_mma=multiply,
                    warpgroup_mma_wait=lambda count, deps: deps[0],
                )
                jit = SimpleNamespace(jit=lambda function=None, **options: function or (lambda inner: inner))
                names = {"gl": language((x, y, z)), "hopper": hopper, "copy_async": copies.start, "gluon": jit}
                exec(code, names)
                pointers = [Pointer(a) if isinstance(a, torch.Tensor) else a for a in arguments]
                names["_read_latents"](*pointers, **constants)
