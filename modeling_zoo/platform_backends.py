"""Which attention backends compute what a config asks for, and how all layers come to know the one that is set."""

from transformers import PreTrainedModel

from configuration_zoo import ZooConfig

# Flash attention with a soft-cap, and with sinks as transformers' gpt-oss lists it: of a kernel without an argument for
# sinks transformers silently drops them.
FLASH_WITH_CAP = [
    f"{name}{version}" for name in ("flash_attention_", "kernels-community/flash-attn") for version in "234"
]
FLASH_WITH_SINKS = [FLASH_WITH_CAP[2], FLASH_WITH_CAP[5], "kernels-community/vllm-flash-attn3"]
# What a score needs beyond scale and mask → the backends that honour it. transformers' sdpa refuses a soft-cap, flash
# attention drops a position bias.
SCORE_NEEDS = {
    "attn_logit_softcapping": ("eager", "flex_attention", "vllm", *FLASH_WITH_CAP, FLASH_WITH_SINKS[-1]),
    "attention_sinks": ("eager", "flex_attention", *FLASH_WITH_SINKS),
    "position_bias": ("eager", "sdpa", "flex_attention"),
    "sparse_attention_pattern": ("eager", "sdpa", "flex_attention"),
    "index_topk": ("eager", "sdpa"),
    "attention_type": ("eager", "sdpa"),
}


def attention_backends(config: ZooConfig) -> tuple[tuple[str, ...], str] | None:
    """(backends that compute this config rightly, "field=value" of what limits them); None where all do."""
    biased = config.position_embedding_type in ("alibi", "relative", "transformer_xl")
    found = {"position_bias": f"position_embedding_type={config.position_embedding_type!r}"} if biased else {}
    if config.attentions & {"forgetting", "stick_breaking", "path"}:
        found["attention_type"] = f"attention_type={config.attention_type!r}"
    for layer in config.per_layer_config if config.is_heterogeneous else [config]:
        for field in SCORE_NEEDS.keys() - {"position_bias", "attention_type"}:
            value = getattr(layer, field)
            if value is not None and value != []:
                found.setdefault(field, f"{field}={value!r}")
    needs = [need for need in SCORE_NEEDS if need in found]
    if not needs:
        return None
    backends = tuple(name for name in SCORE_NEEDS[needs[0]] if all(name in SCORE_NEEDS[need] for need in needs))
    return backends, found[needs[0]]


def fitting_backend(config: ZooConfig, name: str | dict | None) -> str | dict:
    """`name`, or the first backend that computes what the config asks for where it is None; raises ValueError for one
    that would silently drop that."""
    backends, reason = attention_backends(config)
    if name is None:
        return "sdpa" if "sdpa" in backends else backends[0]
    asked = name.get("", "eager") if isinstance(name, dict) else name
    if asked not in backends:
        raise ValueError(
            f"attn_implementation={asked!r} cannot compute a model with {reason}: use one of {list(backends)}."
        )
    return name


def has_views(config: ZooConfig) -> bool:
    """Whether layers of the model see the config in a view of their own."""
    return bool(config.is_heterogeneous or config.num_mtp_layers)


def share_implementations(model: PreTrainedModel) -> None:
    """Gives every layer's own view of the config the implementations that transformers has set on the model's: where
    layers differ, each holds a view that transformers does not know of."""
    views = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    views |= {id(rule.config): rule.config for part in model.modules() for rule in getattr(part, "mask_plan", ())}
    for view in views.values():
        if view is not model.config:
            view._attn_implementation = model.config._attn_implementation
            view._experts_implementation = model.config._experts_implementation
