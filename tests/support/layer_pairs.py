"""Layers of transformers' own models beside zoo's with the same weights, by the family's file alone.

Nothing about a family is said here again. Its `tiny` variant is built with every parameter random, saved, and loaded as
a model of zoo; two layers that stand in the same place are then given the same input.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from random_models import build, is_here, their_class_config
from torch import Tensor, nn
from transformers import DynamicCache

from conversion import family_of, import_config, known_families, load
from modeling_zoo.mlp_sparse import SparseMLP
from modeling_zoo.recurrent_mixer import RecurrentMixer


def variants(where: Callable[[Any], bool]) -> list[tuple[str, int]]:
    """(family, number in `tiny`) of every variant whose ZooConfig is such a one."""
    return [(name, number) for name, number, config in every_variant() if where(config)]


@cache
def every_variant() -> list[tuple[str, int, Any]]:
    """(family, number in `tiny`, its ZooConfig)."""
    found = []
    for name in filter(is_here, known_families()):
        family = family_of(name)
        for number, arguments in enumerate(family.tiny):
            found.append((name, number, import_config(their_class_config(name, family, arguments).to_dict())))
    return found


class Pair:
    """`theirs` of a variant, with further arguments of its config in `changes`, and `ours` with the same weights."""

    def __init__(self, folder: Path, name: str, number: int = 0, dtype: torch.dtype | None = None, **changes):
        family = family_of(name)
        self.folder, self.name = folder, name
        self.theirs = build(their_class_config(name, family, {**family.tiny[number], **changes}), family)
        if dtype is not None:
            # Numbers that the dtype has: no matter which tensors a class keeps in another.
            for tensor in self.theirs.state_dict().values():
                tensor.copy_(tensor.to(dtype))
        self.theirs.save_pretrained(folder)
        self.ours = load(folder, dtype=dtype).eval()
        if dtype is not None:
            self.theirs = type(self.theirs).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        for model in (self.theirs, self.ours):
            model.config._experts_implementation = "eager"

    def in_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under their names, gradients for instance, under the names of ours."""
        self.theirs.save_pretrained(self.folder / "further", state_dict=dict(tensors))
        return load(self.folder / "further").state_dict()


class Alone(Pair):
    """Two modules whose tensors have the same names: a layer of a family that `conversion` does not know."""

    def __init__(self, theirs: nn.Module, ours: nn.Module):
        ours.load_state_dict(theirs.state_dict())
        self.theirs, self.ours = theirs.eval(), ours.eval()

    def in_ours(self, tensors):
        return dict(tensors)


class Sum(nn.Module):
    """Two branches of their layer that read the same input and are added."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


class RoutedByAnother(nn.Module):
    """Experts on one input, routed by another."""

    def __init__(self, router, experts):
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, x, router_input):
        _, weights, indices = self.router(router_input.flatten(0, 1))
        return self.experts(x.flatten(0, 1), indices, weights).view(x.shape)


def their_sparse_layers(model: nn.Module) -> list[nn.Module]:
    """What of each layer of theirs is one sparse MLP here."""
    found = []
    for module in model.modules():
        if hasattr(module, "experts"):
            apart = hasattr(module, "self_attn")
            found.append(RoutedByAnother(module.router, module.experts) if apart else module)
        elif getattr(module, "shared_mlp", None) is not None:
            found.append(Sum(module.block_sparse_moe, module.shared_mlp))
    beside = {id(branch) for layer in found if isinstance(layer, Sum) for branch in layer.branches}
    return [layer for layer in found if id(layer) not in beside]


def sparse_layers(pair: Pair) -> list[tuple[nn.Module, SparseMLP]]:
    """(theirs, ours) of every layer with experts."""
    ours = [module for module in pair.ours.modules() if isinstance(module, SparseMLP)]
    assert ours
    return list(zip(their_sparse_layers(pair.theirs), ours, strict=True))


RECURRENT = re.compile(
    "(GatedDeltaNet|DeltaAttention|TextLinearAttention|LightningAttention|Mixer|MambaLayer|ShortConv|RecurrentBlock)$"
)


def recurrent_layers(pair: Pair) -> list[tuple[nn.Module, RecurrentMixer]]:
    """(theirs, ours) of every layer with a recurrence or a convolution."""
    theirs = [module for module in pair.theirs.modules() if RECURRENT.search(type(module).__name__)]
    ours = [module for module in pair.ours.modules() if isinstance(module, RecurrentMixer)]
    return list(zip(theirs, ours, strict=True))


def latent_layers(pair: Pair) -> list[tuple[nn.Module, nn.Module]]:
    """(theirs, ours) of every layer with latent attention."""
    both = [
        [module for module in model.modules() if hasattr(module, "kv_b_proj")] for model in (pair.theirs, pair.ours)
    ]
    return list(zip(*both, strict=True))


class SideBySide:
    """A pair's models on the same tokens, part by part over a cache of each: every layer of ours is given what its
    counterpart was given."""

    def __init__(self, pair: Pair, layers: list[tuple[nn.Module, nn.Module]]):
        assert layers
        self.pair, self.layers, self.given, self.outputs = pair, layers, {}, {}
        self.forget()
        for index, (theirs, ours) in enumerate(layers):
            theirs.register_forward_hook(partial(self._note, index, 0), with_kwargs=True)
            ours.register_forward_pre_hook(partial(self._replace, index), with_kwargs=True)
            ours.register_forward_hook(partial(self._note, index, 1), with_kwargs=True)

    def forget(self):
        """Empty caches."""
        models = (self.pair.theirs, self.pair.ours)
        self.caches = [{"past_key_values": DynamicCache(config=model.config)} for model in models]
        if self.pair.name != "recurrent_gemma":
            # Theirs makes one of its own kind; that model's outputs do not hold it.
            self.caches[0] = {}

    def cached(self) -> list[tuple]:
        """(theirs, ours) of each layer in the caches."""
        theirs, ours = (cache["past_key_values"].layers for cache in self.caches)
        return [(theirs[one.layer_idx], ours[other.layer_idx]) for one, other in self.layers]

    def _note(self, index, side, module, args, kwargs, output):
        if side == 0:
            self.given[index] = args[0] if args else kwargs["hidden_states"]
        self.outputs[index, side] = output[0] if isinstance(output, tuple) else output

    def _replace(self, index, module, args, kwargs):
        given = self.given[index]
        return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

    @torch.no_grad()
    def run(self, tokens, start=0, stop=None, mask=None, use_cache=True, rows=2) -> list[tuple[Tensor, Tensor]]:
        """[(theirs, ours)] for tokens `start` to `stop` `[B, T]`: the first `rows`, where `mask` `[B, T]` is not 0."""
        stop = tokens.shape[1] if stop is None else stop
        given = {"position_ids": torch.arange(start, stop).expand(len(tokens), -1), "use_cache": use_cache}
        given |= {} if mask is None else {"attention_mask": mask[:, :stop]}
        for model, held in zip((self.pair.theirs, self.pair.ours), self.caches, strict=True):
            known = inspect.signature(model.forward).parameters
            known = {name: value for name, value in given.items() if name in known}
            outputs = model(tokens[:, start:stop], **known, **(held if use_cache else {}))
            kept = ("past_key_values", "cache_params")
            held |= {name: outputs[name] for name in kept if outputs.get(name) is not None}
        seen = torch.ones_like(tokens) if mask is None else mask
        seen = seen[:rows, start:stop].bool()
        layers = range(len(self.given))
        return [tuple(self.outputs[index, side][:rows][seen] for side in (0, 1)) for index in layers]
