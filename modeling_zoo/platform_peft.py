"""What an adapter should adapt: names for PEFT that need no knowledge of the architecture.

    LoraConfig(r=16, lora_alpha=32, **lora_targets(model))

PEFT knows nothing of a model type it has no table for, and its "all-linear" leaves out experts, which are no modules.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from configuration_zoo import ZooConfig

ADAPTED_PARTS = ("attention", "mlp", "experts")
# What a layer calls its attention and its recurrence.
MIXER_NAMES = frozenset(("self_attn", "linear_attn"))
# What PEFT puts around and inside a module it adapts.
WRAPPED, INSIDE = ".base_layer", ("lora_", "ia3_")


def lora_targets(model: nn.Module | ZooConfig, parts: Iterable[str] | None = None) -> dict[str, list[str]]:
    """{"target_modules": names, "target_parameters": names} of a zoo model or its config, each if there are any.

    "attention" are all linear maps of the token mixers, recurrent ones included; "mlp" those of dense MLPs and shared
    experts; "experts" the 3-D parameters of routed experts. Those and maps in several groups of channels are
    parameters to PEFT, which it adapts without dropout and without DoRA. All that the model has if `parts` is None.
    Routers, an indexer that only its own loss teaches, embeddings and heads are left out. Raises ValueError for a part
    that does not exist or that the model has not.
    """
    unknown = set(parts or ()) - set(ADAPTED_PARTS)
    if unknown:
        raise ValueError(f"parts has {sorted(unknown)}, which are not among {list(ADAPTED_PARTS)}.")
    if not isinstance(model, nn.Module):
        # Shapes are enough: nothing is allocated.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model)
    modules = {name.replace(WRAPPED, ""): module for name, module in _original_modules(model)}
    indexer_learns = bool(getattr(getattr(model, "config", None), "indexer_loss_coef", None))
    linear, matrices = _linear_maps(modules, indexer_learns), _matrices(modules)
    found = {part for part in ADAPTED_PARTS if linear.get(part) or matrices.get(part)}
    missing = set(parts or ()) - found
    if missing or not found:
        raise ValueError(
            f"Nothing to adapt: parts={sorted(parts) if parts else None}, but this {type(model).__name__} has "
            f"{sorted(found) if found else 'no layer of a zoo model'}."
        )
    wanted, stacked = (
        set().union(*(paths for part, paths in kind.items() if part in (parts or found))) for kind in (linear, matrices)
    )
    targets = {
        "target_modules": shortest_endings(wanted, modules.keys() - wanted),
        "target_parameters": shortest_endings(stacked, _parameters(modules) - stacked, least=2),
    }
    return {key: names for key, names in targets.items() if names}


def _original_modules(model):
    """(path, module) of the model as it was before any adapter."""
    for path, module in model.named_modules():
        if not any(piece.startswith(INSIDE) for piece in path.split(".")):
            yield path, module


def _linear_maps(modules, indexer_learns):
    """{"attention": paths of linear maps in the layers' mixers, "mlp": of those beside them}."""
    paths = {"attention": set(), "mlp": set()}
    indexers = tuple(f"{path}." for path, module in modules.items() if _is_a("LightningIndexer", module))
    for path, module in modules.items():
        pieces = path.split(".")
        # A gate of one number is a router in small.
        if not isinstance(module, nn.Linear) or "layers" not in pieces or module.out_features == 1:
            continue
        if indexer_learns or not path.startswith(indexers):
            paths["mlp" if MIXER_NAMES.isdisjoint(pieces) else "attention"].add(path)
    return paths


def _is_a(name, module):
    """Whether the module is of a class of that name: one loaded as remote code is another object, not another class."""
    return any(base.__name__ == name for base in type(module).__mro__)


def _matrices(modules):
    """{"experts": paths of the 3-D parameters of experts, "attention": of maps in several groups}."""
    owners = {"experts": "Experts", "attention": "GroupedLinear"}
    return {
        part: {
            f"{path}.{name}"
            for path, module in modules.items()
            if _is_a(owner, module)
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 3
        }
        for part, owner in owners.items()
    }


def _parameters(modules):
    """Paths of all parameters."""
    return {f"{path}.{name}" for path, module in modules.items() for name, _ in module.named_parameters(recurse=False)}


def shortest_endings(paths: Iterable[str], others: Iterable[str], least: int = 1) -> list[str]:
    """For each dotted path its shortest ending of `least` pieces or more that no path of `others` has, sorted, each
    once."""
    taken = {ending for other in others for ending in _endings(other)}
    return sorted({next((ending for ending in _endings(path, least) if ending not in taken), path) for path in paths})


def _endings(path, least=1):
    pieces = path.split(".")
    return [".".join(pieces[-count:]) for count in range(least, len(pieces) + 1)]
