"""Dense → experts (sparse upcycling): an MLP becomes routed experts that give what it gave.

    copies    every expert is the MLP, and the weights of those a token visits sum to one (Komatsuzaki et al. 2022,
              arXiv 2212.05055)
    shards    with a moe_intermediate_size of I / G every copy is in G shards; the router's row is the same for them, so
              that a token visits whole copies: routed_scaling_factor = G (He et al. 2024, arXiv 2410.07524)
    slices    each expert is a part of the neurons, and every token visits all: routed_scaling_factor = E
    shared    the MLP is visited by every token, the routed experts beside it give nothing until they learn
    split     neurons that fire together are an expert, a token visits some of them (`experts_split.py`)

The first four are exact. Narrower experts are filled with neurons of zeros up to a width that kernels take.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule

from .experts_split import Split, split_layer
from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    BITS,
    Exactness,
    Example,
    Make,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    has_own,
)

MLP = "model.layers.{i}.mlp."
# Kernels for products in groups want rows of a multiple of 16 bytes: 8 numbers in two bytes each.
WIDTH_MULTIPLE = 8
ROUTER_STD = 0.02
# Blocks without an MLP, with a norm inside it, with experts beside it, with one of several layers.
OTHER_BLOCKS = ("mixer_only", "sub_norm", "scaled_sandwich_norm", "shared_block")
TAKES = (
    "num_experts_per_tok", "moe_intermediate_size", "scoring_func", "n_shared_experts", "routed_scaling_factor",
    "shared_expert_intermediate_size", "norm_topk_prob", "router.score_after_topk", "mlp_layer_types",
)  # fmt: skip


class Experts(Operation):
    def __init__(self):
        methods = ("copies", "shards", "slices", "shared", "split")
        super().__init__("dense → experts", ("num_experts",), TAKES, methods, parts=("mlp",), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("num_experts"), int) and config.num_experts is None

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        if has_own(config, "intermediate_size", "mlp_bias"):
            return []
        named = fields.get("mlp_layer_types")
        return [
            index
            for index, (kind, block) in enumerate(zip(config.mlp_layer_types, config.block_types, strict=True))
            if kind == "dense"
            and block not in OTHER_BLOCKS
            and (not isinstance(named, list) or named[index] == "sparse")
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.num_experts is not None or not self.layers(config, {}):
            return []
        eight = {"num_experts": 8, "num_experts_per_tok": 2}
        arithmetic = Exactness(ARITHMETIC)
        width = padded(-(-config.intermediate_size // 4))
        shards = {"num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": width}
        return [
            Example(eight, arithmetic, "copies of the MLP: train them apart"),
            Example(shards, arithmetic, "copies in four shards each", "shards"),
            Example({"num_experts": 8, "num_experts_per_tok": 8}, arithmetic, "every token visits all parts", "slices"),
            Example(eight, Exactness(BITS), "experts beside the MLP, silent until they learn", "shared"),
            Example(
                {"num_experts": 8, "num_experts_per_tok": 6},
                Exactness(APPROXIMATE),
                "fewer active parameters: calibrate, then heal",
                "split",
            ),
        ]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for an MLP that experts cannot be, and for numbers that do not fit."""
        for key in ("dense_limit", "dense_alpha", "dense_up_offset", "activation_sparsity"):
            if config.swiglu_config[key]:
                raise SurgeryError(f"swiglu_config.{key} changes dense MLPs alone: experts would differ.")
        if config.mup_multipliers["mlp"] is not None:
            raise SurgeryError("mup_multipliers.mlp scales the gate of a dense MLP: experts have no place for it.")
        if config.num_kv_shared_layers and config.intermediate_size is None:
            raise SurgeryError("num_kv_shared_layers: layers have widths of their own.")
        sizes = Sizes(config, request)
        if request.get("num_experts_per_tok") is None:
            raise SurgeryError("num_experts_per_tok is missing: say how many experts a token visits.")
        if not 1 <= sizes.active <= sizes.experts:
            raise SurgeryError(f"num_experts_per_tok={sizes.active} must be 1 to num_experts={sizes.experts}.")
        if request.get("scoring_func") == "sparsemixer":
            raise SurgeryError("scoring_func='sparsemixer' gives weights that do not sum to one: take softmax.")
        CHECKS[request.method](sizes, request)

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness({"shared": BITS, "split": APPROXIMATE}.get(request.method, ARITHMETIC))

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        return [Need("mlp", "firing")] if request.method == "split" else []

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        sizes, kinds = Sizes(config, request), list(config.mlp_layer_types)
        for layer in request.layers:
            kinds[layer] = "sparse"
        asked = ("scoring_func", "norm_topk_prob", "router.score_after_topk")
        fields = {name: request.fields[name] for name in asked if name in request.fields} | sizes.router_fields()
        after = fields.get("router.score_after_topk", False)
        if fields.get("scoring_func", "softmax") == "softmax" and not after:
            fields["router.norm_topk_eps"] = 0.0  # as in Mixtral: probabilities never sum to nothing
        if "dense" not in kinds and not fields.get("n_shared_experts"):
            fields["mlp_bias"] = None
        return fields | {
            "num_experts": sizes.experts,
            "num_experts_per_tok": sizes.active,
            "moe_intermediate_size": sizes.width,
            "mlp_layer_types": kinds,
            "expert_bias": config.mlp_bias and request.method != "shared",
        }

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        sizes, chosen = Sizes(config, request), set(request.layers)
        kinds = ["weight", "bias"] if config.mlp_bias else ["weight"]
        names = [f"{MLP}{part}_proj.{kind}" for kind in kinds for part in sizes.parts]
        targets = [f"{MLP}gate.weight", *expert_names(new)]
        if new.n_shared_experts:
            targets += [f"{MLP}shared_experts.{part}_proj.{kind}" for kind in kinds for part in sizes.parts]
        if new.router["bias"]:
            targets.append(f"{MLP}gate.bias")

        def shapes(ctx: Context) -> list:
            return [shape for _, shape in target_shapes(new, sizes)]

        def make(ctx: Context, *tensors: Tensor) -> list[Tensor]:
            seed = request.seed * 1009 + (ctx.layer or 0)
            if request.method == "split":
                made = split_layer(sizes, tensors, statistics[ctx.layer, "mlp"])
            else:
                made = exact_layer(sizes, tensors, seed)
            return [made[name].to(tensors[0].dtype).contiguous() for name, _ in target_shapes(new, sizes)]

        rules = [Rule(names, targets, Make(make, shapes), where=lambda ctx: ctx.layer in chosen)]
        return [*rules, *activation_rules(config, new, chosen)]


class Sizes(Split):
    """E experts of `width`, of which `active` are visited; G shards make a copy of the MLP of `inner` neurons."""

    def __init__(self, config: ZooConfig, request: Request):
        self.method, self.hidden, self.inner = request.method, config.hidden_size, config.intermediate_size
        self.experts, self.active = request.fields["num_experts"], request.get("num_experts_per_tok", 0)
        self.shared = request.get("n_shared_experts", 0) if self.method == "split" else 0
        self.parts = ("gate", "up", "down") if config.gated_mlp else ("up", "down")
        self.gated, self.bias = config.gated_mlp, config.mlp_bias
        whole = self.experts + self.shared if self.method in ("slices", "split") else 1
        default = self.inner if whole == 1 else padded(-(-self.inner // whole))
        self.width = request.get("moe_intermediate_size", default)
        self.shards = -(-self.inner // self.width) if self.method == "shards" else whole

    def router_fields(self) -> dict[str, Any]:
        """What else the new config says, by method."""
        if self.method == "shared":
            return {"n_shared_experts": 1, "shared_expert_intermediate_size": self.inner}
        if self.method == "split":
            flat = {"scoring_func": "sigmoid", "router.score_after_topk": True, "router.bias": True}
            flat |= {"norm_topk_prob": True, "routed_scaling_factor": self.active}
            width = self.shared * self.width
            return flat | ({"n_shared_experts": self.shared, "shared_expert_intermediate_size": width} if width else {})
        scaling = self.experts if self.method == "slices" else self.shards
        return {"routed_scaling_factor": scaling} if scaling != 1 else {}


def activation_rules(config: ZooConfig, new: ZooConfig, chosen: set[int]) -> list[Rule]:
    """What an activation has learned, for the routed and the shared experts."""
    if config.hidden_act != "xielu":
        return []
    owners = ["experts.", "shared_experts."] if new.n_shared_experts else ["experts."]
    both = Make(lambda ctx, tensor: [tensor] * len(owners))
    return [
        Rule(
            f"{MLP}act_fn.{name}",
            [f"{MLP}{owner}act_fn.{name}" for owner in owners],
            both,
            where=lambda ctx: ctx.layer in chosen,
        )
        for name in ("alpha_p", "alpha_n", "beta", "eps")
    ]


def padded(width: int) -> int:
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def expert_names(new: ZooConfig) -> list[str]:
    """The tensors of routed experts: projections, then their biases."""
    projections = ("gate_up_proj" if new.gated_mlp else "up_proj", "down_proj")
    endings = ("", "_bias") if new.expert_bias else ("",)
    return [f"{MLP}experts.{name}{ending}" for ending in endings for name in projections]


def target_shapes(new: ZooConfig, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
    """(name of what `exact_layer` and `split_layer` make, its shape), in the order of the rule's targets."""
    experts, width, hidden = sizes.experts, sizes.width, sizes.hidden
    rows = 2 * width if sizes.gated else width
    found = [("router", (experts, hidden)), ("in", (experts, rows, hidden)), ("down", (experts, hidden, width))]
    if new.expert_bias:
        found += [("in_bias", (experts, rows)), ("down_bias", (experts, hidden))]
    if new.n_shared_experts:
        inner = new.shared_expert_intermediate_size
        found += [(f"shared_{part}", (hidden, inner) if part == "down" else (inner, hidden)) for part in sizes.parts]
        if sizes.bias:
            found += [(f"shared_{part}_bias", (hidden if part == "down" else inner,)) for part in sizes.parts]
    if new.router["bias"]:
        found.append(("router_bias", (experts,)))
    return found


def exact_layer(sizes: Sizes, tensors: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    """The tensors of a layer whose experts give what the MLP gave."""
    given = dict(zip((*sizes.parts, *(f"{part}_bias" for part in sizes.parts)), tensors, strict=False))
    slots = torch.arange(sizes.inner).chunk(sizes.shards) if sizes.shards > 1 else [torch.arange(sizes.inner)]
    copies = sizes.experts // len(slots)
    made = sizes.experts_of(given, list(slots), copies)
    router = torch.randn(copies, sizes.hidden, generator=torch.Generator().manual_seed(seed)) * ROUTER_STD
    made["router"] = router.repeat_interleave(len(slots), 0) * (sizes.method != "slices")
    if sizes.method == "shared":
        made["down"] = torch.zeros_like(made["down"])
        made |= {f"shared_{name}": tensor for name, tensor in given.items()}
    return made


def check_copies(sizes: Sizes, request: Request) -> None:
    """Raises SurgeryError for experts of another width than the MLP, or weights that do not sum to one."""
    if sizes.width != sizes.inner:
        raise SurgeryError(
            f"moe_intermediate_size={sizes.width} is not the width {sizes.inner} of the MLP that is copied: --method "
            "shards makes narrower experts, slices and split part it."
        )
    check_weights(request)


def check_weights(request: Request) -> None:
    """Raises SurgeryError where the weights of the chosen experts are not made to sum to one."""
    after = request.get("router.score_after_topk") and request.get("scoring_func", "softmax") == "softmax"
    if request.fields.get("norm_topk_prob") is False and not after:
        raise SurgeryError(
            "norm_topk_prob=False: weights that do not sum to one change what copies give; leave it out."
        )


def check_shards(sizes: Sizes, request: Request) -> None:
    """Raises SurgeryError where a token would visit parts of a copy."""
    check_weights(request)
    if sizes.width > sizes.inner:
        raise SurgeryError(f"moe_intermediate_size={sizes.width} is wider than the MLP's {sizes.inner}.")
    if sizes.experts % sizes.shards or sizes.active % sizes.shards:
        raise SurgeryError(
            f"moe_intermediate_size={sizes.width} makes {sizes.shards} shards of an MLP of {sizes.inner}: num_experts="
            f"{sizes.experts} and num_experts_per_tok={sizes.active} must be multiples of that."
        )


def check_slices(sizes: Sizes, request: Request) -> None:
    """Raises SurgeryError where a token would not visit all, or the parts do not hold the MLP."""
    if sizes.active != sizes.experts:
        raise SurgeryError(
            f"num_experts_per_tok={sizes.active}: slices are exact where every token visits all {sizes.experts}; "
            "--method split leaves some out."
        )
    check_weights(request)
    check_width(sizes)


def check_width(sizes: Sizes) -> None:
    """Raises SurgeryError for parts that are too narrow, or more parts than neurons."""
    parts = sizes.experts + sizes.shared
    if sizes.width * parts < sizes.inner or parts > sizes.inner:
        raise SurgeryError(
            f"{parts} experts of moe_intermediate_size={sizes.width} do not hold an MLP of {sizes.inner} neurons."
        )


def check_shared(sizes: Sizes, request: Request) -> None:
    """Raises SurgeryError for a shared expert of another width than the MLP."""
    if request.get("shared_expert_intermediate_size", sizes.inner) != sizes.inner:
        raise SurgeryError(f"shared_expert_intermediate_size must be the width of the MLP, {sizes.inner}.")
    if request.get("n_shared_experts", 1) != 1:
        raise SurgeryError("n_shared_experts must be 1: the MLP becomes one shared expert.")


def check_split(sizes: Sizes, request: Request) -> None:
    """Raises SurgeryError for a router of another kind, and for biases, which no expert alone has."""
    for name in ("scoring_func", "norm_topk_prob", "router.score_after_topk", "routed_scaling_factor"):
        if name in request.fields:
            raise SurgeryError(f"{name}: --method split fits a router of its own kind; leave it out.")
    check_width(sizes)


CHECKS = {
    "copies": check_copies,
    "shards": check_shards,
    "slices": check_slices,
    "shared": check_shared,
    "split": check_split,
}
