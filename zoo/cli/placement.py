"""What one of many ranks holds: the plans a config ships, applied to shapes on the meta device.

The layout is transformers' (`DistributedConfig`): tensor parallel over N ranks, expert parallel over a multiple M.
Where M is more, what is not experts is split by FSDP over the M / N groups and gathered layer by layer.
"""

import re
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from configuration_zoo import ZooConfig

    # Of experts apart, of tensor parallelism: {pattern of names: style}.
    Plans = tuple[dict[str, str], dict[str, str]]

# Style of a rule -> the dimension of a weight it splits, from the back; biases and sinks have one dimension.
SPLIT = {
    "colwise": -2, "colwise_gather_output": -2, "packed_colwise": -2, "embedding_rowwise": -2,
    "rowwise": -1, "rowwise_rep": -1, "grouped_gemm": 0,
}  # fmt: skip
SPLITS_BIAS = ("colwise", "colwise_gather_output", "packed_colwise")


def place(config: "ZooConfig", tp: int, ep: int, context: int | None = None, batch: int = 1) -> dict:
    """Bytes of weights and cache on the fullest rank, the cache after `context` tokens of its `batch` sequences; raises
    UserError for sizes the model does not divide into."""
    from description_zoo.measure import cached_bytes, empty_model, measure

    check_sizes(config, tp, ep)
    model, groups = empty_model(config), max(1, ep // tp)
    layers = measure(config, model)["layers"]
    plan = config.base_model_tp_plan
    parts = [cache_parts(config, plan, index, tp) for index in range(len(layers))]
    length = context or config.max_position_embeddings
    plans = plans_of(config, ep)
    kinds = {"dense": 0, "experts": 0}
    whole = dict(kinds)
    for name, weight in model.named_parameters():
        kind = "experts" if ".mlp.experts." in name else "dense"
        whole[kind] += weight.nbytes
        kinds[kind] += share(plans, name, weight, tp, ep, groups) * weight.dtype.itemsize
    return {
        "tp": tp,
        "ep": ep,
        "fsdp": groups,
        "ranks": max(tp, ep),
        "bytes": sum(whole.values()),
        "bytes_per_rank": sum(kinds.values()),
        "dense_bytes_per_rank": kinds["dense"],
        "expert_bytes_per_rank": kinds["experts"],
        "gathered_bytes": gathered(plans, model, tp, ep) if groups > 1 else 0,
        "cache_bytes_per_token_per_rank": sum(
            layer["cache_bytes_per_token"] // keys
            for layer, (keys, _) in zip(layers, parts, strict=True)
            if layer["window"] is None
        ),
        "cache_bytes_per_rank": batch
        * sum(
            (cached_bytes(layer, length) - layer["state_bytes"]) // keys + layer["state_bytes"] // states
            for layer, (keys, states) in zip(layers, parts, strict=True)
        ),
        "context": length,
        "batch": batch,
    }


def check_sizes(config: "ZooConfig", tp: int, ep: int) -> None:
    """Raises UserError for what transformers, or a tensor, would refuse later and less clearly."""
    from ..training.ranks import heads_to_split

    if ep > 1 and "sparse" not in config.mlp_layer_types:
        raise UserError(f"--ep {ep} splits experts, and this model has none.")
    if ep > 1 and ep % tp:
        raise UserError(f"--ep {ep} is not a multiple of --tp {tp}: ranks that share a layer share their experts too.")
    plan = config.base_model_tp_plan
    for index, layer in enumerate(config.per_layer_config):
        if ep > 1 and config.mlp_layer_types[index] == "sparse" and layer.num_experts % ep:
            raise UserError(f"--ep {ep} does not divide num_experts={layer.num_experts} of layer {index}.")
        for name, heads in heads_to_split(config, plan, index, layer).items():
            if heads % tp and (name != "num_key_value_heads" or tp % heads):
                raise UserError(f"--tp {tp} does not divide {name}={heads} of layer {index}.")


def cache_parts(config: "ZooConfig", plan: dict[str, str], index: int, tp: int) -> tuple[int, int]:
    """Into how many parts the keys and values of a layer are divided, and its recurrent state."""
    from ..training.ranks import heads_to_split

    split = heads_to_split(config, plan, index, config.per_layer_config[index])
    states = tp if {"linear_num_key_heads", "linear_num_value_heads"} & split.keys() else 1
    return min(tp, split.get("num_key_value_heads", 1)), states


def plans_of(config: "ZooConfig", ep: int) -> "Plans":
    """The rules for experts apart and those of tensor parallelism."""
    experts = (config.base_model_ep_plan or {}) if ep > 1 else {}
    return experts, config.base_model_tp_plan | {"lm_head": "colwise_gather_output"}


def rule_of(plans: "Plans", name: str) -> tuple[str, bool]:
    """(the style that splits this parameter or "", whether its rule is one of expert parallelism)."""
    path = name.removeprefix("model.")
    for plan, by_experts in zip(plans, (True, False), strict=True):
        for place_in_model in (path, path.rpartition(".")[0]):
            pattern = re.sub(r"\.\d+(?=\.|$)", ".*", place_in_model)
            if plan.get(pattern) in SPLIT:
                return plan[pattern], by_experts
    return "", False


def share(plans: "Plans", name: str, weight: "torch.Tensor", tp: int, ep: int, groups: int = 1) -> int:
    """Elements of a parameter on the rank that holds the most of it."""
    style, by_experts = rule_of(plans, name)
    shape = list(weight.shape)
    if style and (len(shape) > 1 or style in SPLITS_BIAS or by_experts):
        dim = max(SPLIT[style], -len(shape)) % len(shape)
        shape[dim] = -(-shape[dim] // (ep if by_experts else tp))
    if not by_experts:
        # FSDP2 splits the first dimension, whatever tensor parallelism has left of it.
        shape[0] = -(-shape[0] // groups)
    count = 1
    for size in shape:
        count *= size
    return count


def gathered(plans: "Plans", model: "PreTrainedModel", tp: int, ep: int) -> int:
    """Bytes held on top while FSDP computes: the largest layer or the embedding, without experts, and head and norm."""
    from description_zoo.measure import body_of

    units = [(f"model.layers.{index}.", layer) for index, layer in enumerate(body_of(model).layers)]
    units += [("model.embed_tokens.", model.get_input_embeddings())]
    kept = [("model.norm.", body_of(model).norm)]
    kept += [("lm_head.", head)] if (head := model.get_output_embeddings()) is not None else []

    def size(prefix, unit):
        parts = [(name, weight) for name, weight in unit.named_parameters() if ".experts." not in f".{name}"]
        return sum(share(plans, prefix + name, weight, tp, ep) * weight.dtype.itemsize for name, weight in parts)

    return max(size(*unit) for unit in units) + sum(size(*unit) for unit in kept)


def show_placement(placed: dict) -> str:
    """Two lines of text."""
    from .tables import short_bytes

    def size(name):
        return short_bytes(placed[name])

    ranks = f"{placed['ranks']} ranks, each with"
    layout = f"tp {placed['tp']} × ep {placed['ep']}" + (f", fsdp {placed['fsdp']}" if placed["fsdp"] > 1 else "")
    extra = f"\n            plus {size('gathered_bytes')} while they are gathered" if placed["gathered_bytes"] else ""
    parts = f"{size('dense_bytes_per_rank')} dense, {size('expert_bytes_per_rank')} experts"
    return (
        f"placement   {layout}: {ranks} {size('bytes_per_rank')} of weights ({parts}){extra},\n"
        f"            and {size('cache_bytes_per_rank')} of cache at {placed['context']} tokens x {placed['batch']} of "
        f"its sequences,\n            {size('cache_bytes_per_token_per_rank')} for each further token"
    )
