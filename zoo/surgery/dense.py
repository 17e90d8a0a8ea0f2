"""Experts → dense: where every token visits all experts with weights that never change, they are one wide MLP.

    Σ_e w_e · down_e act(gate_e x) · up_e x  =  down' act(gate' x) · up' x,   down' = [w_1 down_1, ..., w_E down_E]

and shared experts are further neurons. The weights never change with one expert, or with a router whose rows are all
the same; others say something about the token, which no dense MLP can.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described
from configuration_zoo.fields_experts import ExpertFields
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .operation import (
    ARITHMETIC,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    for_layers,
    has_own,
)

EXPERTS, BIAS = "num_experts", "mlp_bias"
# What all sparse layers must have in common.
OWN = (EXPERTS, "num_experts_per_tok", "moe_intermediate_size", BIAS, "n_shared_experts")
# What fields say of themselves that only experts read.
SPARSE = "sparse layer"
# What a dense MLP has no place for; (field, what it may say all the same).
UNSAYABLE = {
    "zero_expert_num": (None, 0), "moe_latent_size": (None,), "swiglu_limit": (None,), "swiglu_config.alpha": (None,),
    "swiglu_config.up_offset": (None, 0, 0.0), "router.weight_on_input": (None, False), "router.norm_topk_min": (None,),
    "swiglu_config.shared_limit": (None, 0), "swiglu_config.dense_limit": (None,),
    "swiglu_config.dense_alpha": (None,), "swiglu_config.dense_up_offset": (None, 0, 0.0),
    "shared_expert_gate": (None, False), "shared_expert_combination_strategy": (None, "sum"),
}  # fmt: skip


class Dense(Operation):
    def __init__(self):
        super().__init__("experts → dense", (EXPERTS,), parts=("mlp",))

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return EXPERTS in fields and fields[EXPERTS] is None and bool(config.num_experts)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        return [index for index, kind in enumerate(config.mlp_layer_types) if kind == "sparse"]

    def examples(self, config: ZooConfig) -> list[Example]:
        if has_own(config, *OWN) or not config.num_experts:
            return []
        return [Example({EXPERTS: None}, Exactness(ARITHMETIC), "one wide MLP, where the router tells nothing apart")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where experts are chosen, or compute what a dense MLP cannot."""
        if has_own(config, *OWN):
            raise SurgeryError(f"{EXPERTS}: layers have experts of their own in per_layer_config.")
        if config.num_experts_per_tok < config.num_experts:
            raise SurgeryError(
                f"num_experts_per_tok={config.num_experts_per_tok} of {config.num_experts}: a dense MLP cannot choose. "
                f"Set num_experts=1 first, which keeps the expert that gives most, and heal."
            )
        for name, free in UNSAYABLE.items():
            if getattr(config, name) not in free:
                raise SurgeryError(f"{name}={getattr(config, name)!r} has no place in a dense MLP.")
        if config.n_group and config.topk_group != config.n_group:
            raise SurgeryError(f"topk_group={config.topk_group} of {config.n_group}: a dense MLP cannot choose.")
        if config.scoring_func != "softmax" and not config.norm_topk_prob:
            raise SurgeryError(
                f"scoring_func={config.scoring_func!r} without norm_topk_prob: weights follow the token."
            )
        if config.hidden_act == "xielu" or config.scoring_func == "sparsemixer":
            name = "hidden_act" if config.hidden_act == "xielu" else "scoring_func"
            raise SurgeryError(f"{name}={getattr(config, name)!r}: experts with it do not become one MLP.")
        if not request.every:
            raise SurgeryError(f"{EXPERTS} is one number for all sparse layers: leave out --layers.")
        if config.expert_bias and not config.mlp_bias and "dense" in config.mlp_layer_types:
            raise SurgeryError("expert_bias=True beside dense layers without biases: set mlp_bias=True first.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def width(self, config: ZooConfig) -> int:
        shared = config.shared_expert_intermediate_size if config.n_shared_experts else 0
        return config.num_experts * config.moe_intermediate_size + shared

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        known = described(ZooConfig).items()
        read = [name for name, one in known if one.metadata.get("needs") == SPARSE or name.startswith("router.")]
        changes: dict[str, Any] = dict.fromkeys((*ExpertFields.__dataclass_fields__, *read))
        changes["mlp_layer_types"] = ["dense"] * config.num_hidden_layers
        changes[BIAS] = bool(config.expert_bias or config.mlp_bias)
        wanted = replace(request, every="dense" not in config.mlp_layer_types)
        return changes | for_layers(config, wanted, {"intermediate_size": self.width(config)})

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        before, after = expected_tensors(config).tensors, expected_tensors(new).tensors
        rules = []
        for layer in request.layers:
            stem = f"model.layers.{layer}.mlp."
            sources = [name for name in before if name.startswith(stem)]
            targets = [name for name in after if name.startswith(stem)]
            shapes = [after[name].shape for name in targets]

            def make(ctx: Context, *tensors: Tensor, layer=layer, sources=sources, targets=targets) -> list[Tensor]:
                stem = f"model.layers.{layer}.mlp."
                given = {name.removeprefix(stem): one for name, one in zip(sources, tensors, strict=True)}
                made = wide_mlp(config, given, layer)
                return [made[name.removeprefix(stem)].to(tensors[0].dtype).contiguous() for name in targets]

            rules.append(Rule(sources, targets, Make(make, lambda ctx, shapes=shapes: shapes)))
        return rules


def constant_weights(config: ZooConfig, given: dict[str, Tensor], layer: int) -> Tensor:
    """What each expert counts, `[E]`, whatever the token. Raises SurgeryError where it hangs on the token."""
    count, rows = config.num_experts, given["gate.weight"]
    bias = given.get("gate.bias", rows.new_zeros(count))
    if count > 1 and not (torch.equal(rows, rows[:1].expand_as(rows)) and torch.equal(bias, bias[:1].expand_as(bias))):
        raise SurgeryError(
            f"layer {layer}: the router weighs its {count} experts by the token, which no dense MLP does. "
            "Set num_experts=1 first, which keeps the expert that gives most, and heal."
        )
    weights = torch.full((count,), (config.routed_scaling_factor or 1.0) / count, dtype=torch.float64)
    return weights * given["gate.per_expert_scale"].double() if "gate.per_expert_scale" in given else weights


def wide_mlp(config: ZooConfig, given: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The tensors of an MLP with the neurons of all experts, routed and shared, by their names in it."""
    weights = constant_weights(config, given, layer)
    into = given["experts.gate_up_proj" if config.gated_mlp else "experts.up_proj"].double()
    down = given["experts.down_proj"].double()
    parts = ("gate", "up") if config.gated_mlp else ("up",)
    made = {
        f"{part}_proj.weight": half.flatten(0, 1) for part, half in zip(parts, into.chunk(len(parts), 1), strict=True)
    }
    made["down_proj.weight"] = (down * weights[:, None, None]).transpose(0, 1).flatten(1)
    bias = given.get("experts.gate_up_proj_bias" if config.gated_mlp else "experts.up_proj_bias")
    bias = into.new_zeros(into.shape[:2]) if bias is None else bias.double()
    for part, half in zip(parts, bias.chunk(len(parts), 1), strict=True):
        made[f"{part}_proj.bias"] = half.flatten()
    down_bias = given.get("experts.down_proj_bias")
    made["down_proj.bias"] = down.new_zeros(down.shape[1]) if down_bias is None else weights @ down_bias.double()
    if config.n_shared_experts:
        for part in (*parts, "down"):
            shared = given[f"shared_experts.{part}_proj.weight"].double()
            name = f"{part}_proj.weight"
            made[name] = torch.cat((made[name], shared), 1 if part == "down" else 0)
            more = given.get(f"shared_experts.{part}_proj.bias")
            more = shared.new_zeros(shared.shape[0]) if more is None else more.double()
            name = f"{part}_proj.bias"
            made[name] = made[name] + more if part == "down" else torch.cat((made[name], more))
    return made
