"""What a step of training holds: weights, gradients, the optimizer's moments, and what the forward leaves for the
backward.

The last is counted, not estimated: a model of fake tensors (torch's FakeTensorMode: shapes, no numbers) goes forward
and back, and every tensor that lives is added up. Gradients are there from the step before, as where they accumulate.
"""

import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configuration_zoo import ZooConfig

from .kinds import kinds_of
from .measure import body_of, empty_model, experts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedModel

# Numbers that an optimizer keeps for each parameter, in the dtype of the parameters.
OPTIMIZERS = {"adamw": 2, "sgd": 0, "sgd-momentum": 1}


def training_memory(config: ZooConfig, context: int, batch: int = 1, optimizer: str = "adamw") -> dict[str, int]:
    """Bytes of a step on `batch` sequences of `context` tokens: `weights`, `gradients`, `optimizer`, `activations` and
    their sum `total`; `activations_checkpointed` and `total_checkpointed` with the checkpointing that keeps a layer's
    input alone. One layer of each kind is run."""
    counts = {name: activations(config, context, batch, name == "_checkpointed") for name in ("", "_checkpointed")}
    weights = sum(parameter.nbytes for parameter in empty_model(config).parameters())
    fixed = {"weights": weights, "gradients": weights, "optimizer": OPTIMIZERS[optimizer] * weights}
    found = {"context": context, "batch": batch, **fixed}
    found |= {f"activations{name}": count for name, count in counts.items()}
    return found | {f"total{name}": sum(fixed.values()) + count for name, count in counts.items()}


def activations(config: ZooConfig, context: int, batch: int, checkpointing: bool) -> int:
    """Bytes of what a forward leaves for the backward, at the most."""
    kept, stands_for = representatives(config)
    model = fake_model(config, kept)
    held = {}

    def record(index: int, sign: int) -> None:
        held[index] = held.get(index, 0) + sign * live.now

    for index in kept:
        layer = body_of(model).layers[index]
        layer.register_forward_pre_hook(lambda *_, index=index: record(index, -1))
        layer.register_forward_hook(lambda *_, index=index: record(index, 1))
    live = LiveBytes()
    with next(model.parameters()).fake_mode:
        step(model, context, batch, checkpointing, live)
    return live.peak + sum(held[like] for index, like in enumerate(stands_for) if index not in kept)


def representatives(config: ZooConfig) -> tuple[list[int], list[int]]:
    """(the layers that have to be run; for each layer the one of these that holds as much): the first of each kind,
    what it reads of other layers, and both ends."""
    kinds, count = kinds_of(config)[0], config.num_hidden_layers
    if "shortcut" in config.block_types:
        return list(range(count)), list(range(count))
    first = [kinds.index(kind) for kind in kinds]
    kept = {*first, 0, count - 1}
    for index in sorted(kept):
        view = config.per_layer_config[index]
        if view.layer_types[index] == "indexed_attention":
            kept.add(view.indexer_of(index))
        elif view.shares_key_values(index) and (source := view.kv_source_of(index)) is not None:
            kept.add(source)
    return sorted(kept), first


class NoLayer(nn.Module):
    """What stands where a layer is left out: the residual stream goes by."""

    def forward(self, hidden_states: torch.Tensor, *shared: Any, **context: Any) -> torch.Tensor:
        return hidden_states


def fake_model(config: ZooConfig, kept: list[int]) -> "PreTrainedModel":
    """The layers `kept` of the config's model in training, of fake tensors on a CPU: shapes that take the forms which
    real ones would."""
    # No model that learns: it needs no advice.
    model = nn.Module.train(empty_model(config, attn_implementation=None))
    for index in range(config.num_hidden_layers):
        if index not in kept:
            body_of(model).layers[index] = NoLayer()
    with FakeTensorMode():
        # By shape: a tensor of the meta device is none of this mode.
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    for experts in experts_of(model):
        experts.forward = stand_in(experts)
    for module in model.modules():
        if getattr(module, "zero_expert_type", None) is not None:
            # As if every token went to experts that compute.
            module.zero_expert_type = None
    return model


def step(model: "PreTrainedModel", context: int, batch: int, checkpointing: bool, live: "LiveBytes") -> None:
    """A forward and a backward of a model, real or fake, `live` watching what is there beside weights and gradients."""
    if checkpointing:
        with warnings.catch_warnings():
            # transformers 5.23 has another name for it, which 5.17 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.ones(batch, context, dtype=torch.long)
    live.know(model.parameters())
    live.know(parameter.grad for parameter in model.parameters())
    with live:
        model(tokens, labels=tokens, use_cache=False).loss.backward()


def stand_in(experts: "nn.Module") -> "Callable":
    """An experts' forward that holds what products in groups hold, whatever the tokens' choice: every slot's row goes
    through the first expert."""

    def forward(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        count, slots = top_k_index.shape
        rows = hidden_states[top_k_index.reshape(-1).clamp(max=count - 1)]
        results = experts.run_expert(rows, 0) * top_k_weights.reshape(-1, 1)
        return results.view(count, slots, -1).sum(dim=1).to(hidden_states.dtype)

    return forward


class LiveBytes(TorchDispatchMode):
    """`now` and `peak`: bytes of all tensors made while this mode is on and still there, each storage once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {}

    def know(self, tensors: "Iterable[torch.Tensor]") -> None:
        """Leaves these out of the count."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            self.storages[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is gone."""
        key, size = id(storage), storage.nbytes()
        known = self.storages.get(key)
        if known is not None and known() is storage:
            return

        def forget(_: Any) -> None:
            self.now -= size
            self.storages.pop(key, None)

        self.storages[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
