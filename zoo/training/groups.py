"""Parameters in groups, as optimizers take them: what decays, what Muon turns, and how fast each width learns."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from configuration_zoo import ZooConfig


def parameter_groups(
    model: "nn.Module",
    learning_rate: float = 3e-4,
    weight_decay: float = 0.1,
    *,
    base: "ZooConfig | int | None" = None,
    muon: bool = False,
    muon_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, each with `lr`, `weight_decay` and `use_muon`; frozen parameters are in none.

    Decay: matrices, tables and convolutions decay by `weight_decay`; norms, biases and every other vector do not
    (`modeling_zoo/train_weight_decay.py`).

    `base`: the config that the learning rate was chosen for, or its width (then `scale_width(model.config, base)`). A
    matrix W `[out, in]` learns at learning_rate · base_in / in, everything that reads one number or one token, and the
    head, whose logits `mup_config` divides, at learning_rate (muP for Adam, Yang et al. 2022, arXiv 2203.03466, table
    8). The product of rate and decay stays that of the base (independent weight decay, Wortsman et al. 2023, arXiv
    2309.14322, §3.2).

    `muon`: the matrices of the layers, experts included, are for `MuonAdamW`, at `muon_learning_rate` if given;
    tables, the head, routers, convolutions and vectors stay with AdamW (Jordan et al. 2024; Liu et al. 2025, arXiv
    2502.16982). With a base their rate is divided by sqrt(max(in, out) / the base's), which keeps the spectral norm of
    an update (Yang et al. 2023, arXiv 2310.17813).

    Raises ValueError for a width that the model cannot be scaled to.
    """
    from modeling_zoo import get_decay_parameter_names

    decayed = set(get_decay_parameter_names(model))
    turned = muon_matrices(model) if muon else set()
    base_shapes = None if base is None else shapes_of(model, base)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_turned = name in turned
        rate = muon_learning_rate if is_turned and muon_learning_rate is not None else learning_rate
        factor = 1.0 if base_shapes is None else rate_factor(model, name, base_shapes[name], is_turned)
        decay = weight_decay / factor if name in decayed else 0.0
        group = {"params": [], "lr": rate * factor, "weight_decay": decay, "use_muon": is_turned}
        groups.setdefault((rate * factor, decay, is_turned), group)["params"].append(parameter)
    return list(groups.values())


def matrix_names(model: "nn.Module") -> dict[str, Any]:
    """{name: module} of the parameters that are linear maps `[..., out, in]`: those of Linear modules, experts and
    routers, the head too."""
    from modeling_zoo.train_init import own_matrices

    found = {}
    for path, module in model.named_modules():
        for name, _ in own_matrices(module):
            found[f"{path}.{name}" if path else name] = module
    return found


def muon_matrices(model: "nn.Module") -> set[str]:
    """Names of the matrices Muon turns: those inside layers but routers, which are one vector for each expert."""
    from modeling_zoo.mlp_routers import Router

    head = model.get_output_embeddings()
    parts = matrix_names(model).items()
    return {name for name, module in parts if module is not head and not isinstance(module, Router)}


def shapes_of(model: "nn.Module", base: "ZooConfig | int") -> dict[str, "torch.Size"]:
    """{parameter: its shape} in the model of `base`. Raises ValueError where the two have other parameters."""
    import torch

    from .widths import scale_width

    config = scale_width(model.config, base) if isinstance(base, int) else base
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in type(model)(config).named_parameters()}
    if missing := sorted({name for name, _ in model.named_parameters()} ^ shapes.keys()):
        raise ValueError(f"base: its model and this one differ in more than widths; only one has {missing[0]}.")
    return shapes


def rate_factor(model: "nn.Module", name: str, base_shape: "torch.Size", is_turned: bool) -> float:
    """How much slower than in the base model the parameter `name` learns."""
    shape = model.get_parameter(name).shape
    if is_turned:
        return (max(base_shape[-2:]) / max(shape[-2:])) ** 0.5
    head = model.get_output_embeddings()
    is_head = head is not None and model.get_parameter(name) is head.weight
    return 1.0 if is_head or name not in matrix_names(model) else base_shape[-1] / shape[-1]
