"""One learning rate for every width: maximal update parametrization (muP, Yang et al. 2022, arXiv 2203.03466)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig

# What grows with the width; the size of a head and of a state, ranks that are numbers of their own, and experts do not.
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "moe_latent_size",
    "num_attention_heads", "num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads", "kv_lora_rank",
    "q_lora_rank", "embedding_size",
)  # fmt: skip


def scale_width(config: "ZooConfig", width: int) -> "ZooConfig":
    """`config` with hidden_size=`width`: everything else that is wide, and the number of heads, in proportion; heads
    keep their size. One head, or one group, stays one.

    Raises ValueError where a number would not be whole.
    """
    changed = {}
    for field in WIDTHS:
        size = getattr(config, field, None)
        if not isinstance(size, int) or size == 1:
            continue
        scaled, rest = divmod(size * width, config.hidden_size)
        if rest:
            raise ValueError(
                f"width {width}: {field}={size} is {size} / {config.hidden_size} of the width, which makes no whole "
                f"number of {width}. Choose a width of which it does."
            )
        changed[field] = scaled
    return with_fields(config, changed | {"head_dim": config.head_dim})


def mup_config(config: "ZooConfig", base_width: int) -> "ZooConfig":
    """`config` in muP for a learning rate that was chosen at `base_width`.

    Matrices start at 1 / sqrt(inputs), the token table at 1 (or all as initializer.type="auto" has it, which does not
    depend on the width either), logits are divided by width / base_width. The size of a head is the base's, so that
    attention scores need no factor of their own. Train with `parameter_groups(model, base=base_width)`.

    Raises ValueError for a config with tied embeddings: their table would have to start at 1 and at 1 / width.
    """
    if config.tie_word_embeddings:
        raise ValueError(
            "tie_word_embeddings=True: muP gives the token table and the head different starts; untie them."
        )
    start = {**config.initializer}
    if start["type"] != "auto":
        start |= {"type": "fan_in", "embedding_range": 1.0}
    scaling = config.logits_scaling * config.hidden_size / base_width
    return with_fields(config, {"initializer": start, "logits_scaling": scaling})


def with_fields(config: "ZooConfig", fields: dict) -> "ZooConfig":
    """A new config of the same values but `fields`. Raises ValueError as the config's class does."""
    return type(config)(**{**config.to_diff_dict(), **fields})
