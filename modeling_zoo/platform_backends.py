"""Which attention backends compute what a config asks for, and how all layers come to know the one that is set."""

from transformers import PreTrainedModel

from configuration_zoo import ZooConfig

# What a score needs beyond scale and mask → the backends that honour it. transformers' sdpa refuses a soft-cap and
# silently drops sinks, flash attention a position bias.
SCORE_NEEDS = {
    "attn_logit_softcapping": ("eager", "flex_attention", "vllm"),
    "attention_sinks": ("eager", "flex_attention"),
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
