"""Tensor parallelism over a number of ranks: what the plan of a model cannot know, or why it does not fit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from configuration_zoo import ZooConfig


def fit_to_ranks(model: "nn.Module", layout: Any, meshes: Any) -> None:
    """Keys and values of fewer heads than ranks are made on all of them, and each rank keeps the head it reads.

    Called where transformers distributes a model (`HOOKS` of configuration_zoo), if zoo is installed. Raises ValueError
    for heads that do not divide, and for a word of `layout`, transformers' DistributedConfig, that does nothing yet.
    """
    if getattr(layout, "enable_sequence_parallel", False):
        raise ValueError(
            "enable_sequence_parallel=True: transformers reserves this word and cuts nothing by it. Leave it out; "
            "tp_size and fsdp_size divide a model."
        )
    ways = 1 if meshes is None else layout.tp_size
    if ways == 1:
        return
    plan = dict(model.tp_plan)
    prefix = next((rule.partition("layers.")[0] for rule in plan if "layers." in rule), "")
    check_heads(model.config, {rule.removeprefix(prefix): how for rule, how in plan.items()}, ways)
    few = {layer.num_key_value_heads for layer in model.config.per_layer_config if layer.num_key_value_heads < ways}
    parts = [f"{prefix}{part}.*.self_attn." for part in ("layers", "shared_blocks")]
    parts = [part for part in parts if plan.get(f"{part}k_proj") == "colwise"]
    if not few or not parts:
        return
    for part in parts:
        plan |= {rule: "colwise_gather_output" for rule in (f"{part}k_proj", f"{part}v_proj") if rule in plan}
        # It sees all heads now, and so its gradient is whole.
        plan.pop(f"{part}k_norm", None)
    model.tp_plan = plan
    for module in model.modules():
        if hasattr(module, "num_key_value_groups") and hasattr(module, "k_proj"):
            heads = module.q_proj.out_features // sum(module.query_parts)
            module.key_copies = ways * module.num_key_value_groups // heads
            module.num_key_value_groups = heads // ways


def check_heads(config: "ZooConfig", plan: dict[str, str], ways: int) -> None:
    """Raises ValueError where `ways` ranks do not divide heads that `plan` splits, with the field and the layer."""
    for index, layer in enumerate(config.per_layer_config):
        for field, heads in heads_to_split(config, plan, index, layer).items():
            if heads % ways and (field != "num_key_value_heads" or ways % heads):
                raise ValueError(
                    f"Tensor parallelism over {ways} ranks splits heads, and {field}={heads} of layer {index} does not "
                    f"divide into {ways}: choose tp_size so that it does."
                )


def heads_to_split(config: "ZooConfig", plan: dict[str, str], index: int, layer: "ZooConfig") -> dict[str, int]:
    """{field: number} of the heads of a layer that `plan` spreads over ranks."""
    fields = {}
    part = "shared_blocks" if index in config.shared_block_layers else "layers"
    has_attention = part == "shared_blocks" or config.attention_mixers[index] is not None
    if has_attention and plan.get(f"{part}.*.self_attn.o_proj") == "rowwise":
        fields["num_attention_heads"] = layer.num_attention_heads
        if plan.get(f"{part}.*.self_attn.k_proj") == "colwise":
            fields["num_key_value_heads"] = layer.num_key_value_heads
    if config.linear_attention_type is not None and index in config.recurrent_layers():
        settings = layer.linear_settings(index)
        if plan.get("layers.*.linear_attn.q_proj") == "colwise":
            fields |= {"linear_num_key_heads": settings.num_key_heads}
        elif plan.get("layers.*.linear_attn.in_proj") == "colwise":
            fields |= {"linear_num_value_heads": settings.num_value_heads}
    return fields
