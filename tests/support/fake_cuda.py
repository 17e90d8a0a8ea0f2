"""Run by test_launches in a process of its own, as it replaces methods of tensors: prints {case: {"launches": how many
kernels a decoded token starts, "waits": where the host waits for the device, "prompt": the same of the prompt}}.

Models stand on fake tensors of a CUDA device: each branch is the GPU's, nothing is computed. Every aten operation that
is no view and no allocation counts as a launch, attention and torch's RMS norm as one.
"""

import collections
import json
import sys
import traceback

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, StaticCache

from benchmarks.models import their_config
from configuration_zoo import ZooConfig
from conversion import import_config
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_upgrade import upgrade_cache

GROUPED = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_hidden_layers": 1, "max_position_embeddings": 4096, "attn_implementation": "eager",
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
PLAIN = GROUPED | {"attn_implementation": "sdpa"}
SHARED_ENTRIES = {
    "sliding_window": 128, "attention_k_eq_v": True, "num_key_value_heads": 1, "position_config": {"rope_values": True},
}  # fmt: skip
INDEXER = {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 16}
# Beside those of benchmarks.models.
OWN = {
    **{word: PLAIN | {"attention_type": word} for word in (
        "differential", "forgetting", "stick_breaking", "path", "value_residual", "tensor_product", "grouped_tied",
    )},
    "multi_matrix_factorization": PLAIN | {"attention_type": "multi_matrix_factorization", "num_key_value_heads": 1},
    "indexed blocks": PLAIN | INDEXER | {"layer_types": ["indexed_attention"], "indexer": {"block_size": 8}},
    "compressed sparse": PLAIN | SHARED_ENTRIES | INDEXER | {"layer_types": ["compressed_sparse_attention"]},
    "heavily compressed": PLAIN | SHARED_ENTRIES | {"layer_types": ["heavily_compressed_attention"]},
    **{word: PLAIN | LINEAR | {"linear_attention_type": word} for word in (
        "gated_delta_product", "kimi_delta_attention", "mamba2", "gated_linear_attention", "lightning_attention",
    )},
    "mamba": PLAIN | {
        "layer_types": ["linear_attention"], "linear_attention_type": "mamba", "linear_value_head_dim": 64,
        "linear_key_head_dim": 16,
    },
    "sinks": GROUPED | {"attention_sinks": "all"},
    "softcap": GROUPED | {"attn_logit_softcapping": 20.0},
    "chunked": GROUPED | {
        "layer_types": ["chunked_attention"], "attention_chunk_size": 1024, "attn_implementation": "sdpa",
    },
}  # fmt: skip
CONTEXT = {"dsa": 2304, "gdn": 64}
# Views and allocations; eye makes the rows of an absorbed weight, of which nothing is left where weights have numbers.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "eye", "flatten", "is_same_size", "lift", "lift_fresh", "movedim",
    "narrow", "new_empty", "new_empty_strided", "permute", "prim", "result_type", "scalar_tensor", "select", "slice",
    "split", "split_with_sizes", "squeeze", "sym_size", "t", "transpose", "unbind", "unflatten", "unfold", "unsqueeze",
    "view",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_dim",
}  # fmt: skip
ONE_LAUNCH = []


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.launches, self.waits = collections.Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        if name in WAITS or self.crosses(name, args, kwargs or {}):
            self.waits.append(f"{name} at {place()}")
        if name == "_local_scalar_dense":
            # There is no number to read.
            return True
        output = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        if name not in FREE and any(tensor.device.type == "cuda" for tensor in tensors):
            self.launches[name] += 1
        return output

    @staticmethod
    def crosses(name, args, kwargs):
        """Whether numbers go between host and device."""
        if name == "copy_":
            source, target = args[1], args[0].device
        elif name == "_to_copy":
            source, target = args[0], kwargs.get("device")
        elif name in ("where", "fill_", "masked_fill", "full_like"):
            # A number of the host where a tensor of the device could be.
            devices = {leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
            return devices == {"cpu", "cuda"}
        else:
            return False
        return target is not None and torch.device(target).type != source.device.type


def place():
    for frame in reversed(traceback.extract_stack()):
        if "modeling_zoo" in frame.filename or "transformers/" in frame.filename:
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}"
    return "?"


# -- methods that ask a real device ------------------------------------------------------------------------------------


def on_fake_device(tensor):
    return isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"


def replace(name, form):
    """`form(tensor, ...)` in place of the method, for fake tensors of a device."""
    real = getattr(torch.Tensor, name)

    def method(tensor, *args, **kwargs):
        return form(tensor, *args, **kwargs) if on_fake_device(tensor) else real(tensor, *args, **kwargs)

    setattr(torch.Tensor, name, method)


def expanded(tensor, index):
    """The index with `...` written out."""
    index = index if isinstance(index, tuple) else (index,)
    used = 0
    for part in index:
        if part is not None and part is not Ellipsis:
            used += part.dim() if isinstance(part, torch.Tensor) and part.dtype == torch.bool else 1
    for part in index:
        yield from [slice(None)] * (tensor.dim() - used) if part is Ellipsis else [part]


def get_item(tensor, index):
    dim, chosen = 0, []
    for part in expanded(tensor, index):
        if part is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        elif isinstance(part, slice):
            if part != slice(None):
                stop = part.stop if part.stop is not None else 2**63 - 1
                tensor = torch.ops.aten.slice(tensor, dim, part.start, stop, part.step or 1)
        else:
            part = part if isinstance(part, torch.Tensor) else torch.tensor(part)
            chosen.append(part)
            dim += part.dim() if part.dtype == torch.bool else 1
            continue
        chosen.append(None)
        dim += 1
    return torch.ops.aten.index(tensor, chosen) if any(part is not None for part in chosen) else tensor


def set_item(tensor, index, value):
    target = get_item(tensor, index)
    target.copy_(value) if isinstance(value, torch.Tensor) else target.fill_(value)


def cast(dtype):
    return lambda tensor, *_, **__: tensor if tensor.dtype == dtype else torch.ops.aten._to_copy(tensor, dtype=dtype)


def new(make):
    def form(tensor, *shape, **options):
        options = {"dtype": tensor.dtype, "device": tensor.device} | options
        if make is torch.full:
            return make(*shape, **options)
        return make(tuple(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape), **options)

    return form


def new_tensor(tensor, data, **options):
    return torch.zeros(len(data) if isinstance(data, (list, tuple)) else (), dtype=tensor.dtype, device=tensor.device)


def contiguous(tensor, **options):
    if tensor.is_contiguous():
        return tensor
    return torch.ops.aten.clone(tensor, memory_format=torch.contiguous_format)


def install():
    torch.cuda.get_device_capability = lambda *_, **__: (9, 0)
    replace("__getitem__", get_item)
    replace("__setitem__", set_item)
    replace("__invert__", torch.bitwise_not)
    replace("contiguous", contiguous)
    replace("copy_", lambda tensor, source, non_blocking=False: torch.ops.aten.copy_(tensor, source, non_blocking))
    replace("new_tensor", new_tensor)
    for name, make in (("empty", torch.empty), ("zeros", torch.zeros), ("ones", torch.ones), ("full", torch.full)):
        replace(f"new_{name}", new(make))
    replace("type", lambda tensor, dtype: cast(dtype)(tensor))
    dtypes = {"float": torch.float32, "long": torch.int64, "bool": torch.bool, "int": torch.int32}
    for name, dtype in (dtypes | {"half": torch.float16, "bfloat16": torch.bfloat16}).items():
        replace(name, cast(dtype))

    def attention(query, key, value, *_, **__):
        ONE_LAUNCH.append("attention")
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    def rms_norm(x, *_, **__):
        ONE_LAUNCH.append("rms_norm")
        return torch.empty_like(x)

    from modeling_zoo import ops_attention

    F.scaled_dot_product_attention = ops_attention.scaled_dot_product_attention = attention
    torch.rms_norm = F.rms_norm = rms_norm


# -- the step ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def step(name, kind, masked):
    """Launches and waits of the second token behind a prompt."""
    own = name in OWN
    config = ZooConfig(**OWN[name]) if own else import_config(their_config(name).to_dict())
    with torch.device("meta"):
        built = ZooForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    length = CONTEXT.get(name, 1100)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = built.to_empty(device="cuda")
        if name in ("mla", "dsa", "moe", "gdn"):
            model.set_experts_implementation("batched_mm")
        more = {"max_cache_len": length + 64} if kind == "static" else {}
        cache = upgrade_cache(
            {"static": StaticCache, "dynamic": DynamicCache}[kind](config=model.config, **more), config
        )
        prompt = None
        for count in (length, 1, 1):
            tokens = torch.zeros(1, count, dtype=torch.long, device="cuda")
            length += count if count == 1 else 0
            mask = torch.ones(1, length, dtype=torch.long, device="cuda") if masked else None
            ONE_LAUNCH.clear()
            with Counter() as counter:
                model(tokens, past_key_values=cache, attention_mask=mask, logits_to_keep=1)
            prompt = counter.waits if prompt is None else prompt
    return {"launches": counter.launches.total() + len(ONE_LAUNCH), "waits": counter.waits, "prompt": prompt}


if __name__ == "__main__":
    install()
    found = {}
    for case in sys.argv[1:]:
        name, kind, *mask = case.split("|")
        try:
            found[case] = step(name, kind, bool(mask))
        except Exception:
            found[case] = {"launches": None, "waits": [traceback.format_exc()[-1500:]], "prompt": []}
    print(json.dumps(found))
