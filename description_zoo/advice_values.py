"""What `zoo advise` reads off a config; None where there is nothing, such as a feed-forward ratio of experts alone."""

from collections.abc import Iterable

from configuration_zoo import ZooConfig

# -- sizes --------------------------------------------------------------------------------------------------------


def gated_ratio(config: ZooConfig) -> float | None:
    return config.intermediate_size / config.hidden_size if config.gated_mlp and has_dense(config) else None


def plain_ratio(config: ZooConfig) -> float | None:
    return None if config.gated_mlp or not has_dense(config) else config.intermediate_size / config.hidden_size


def has_dense(config: ZooConfig) -> bool:
    """Whether a layer has a dense MLP."""
    kinds = zip(config.mlp_layer_types, config.block_types, strict=True)
    return any(kind == "dense" and block not in ("mixer_only", "shared_block") for kind, block in kinds)


def head_ratio(config: ZooConfig) -> float | None:
    if not config.softmax_layers or "latent" in config.attention_types:
        return None
    return config.num_attention_heads * config.head_dim / config.hidden_size


def aspect_ratio(config: ZooConfig) -> float:
    """Width by depth; a layer that is a mixer or an MLP alone counts half."""
    halves = sum(block in ("mixer_only", "mlp_only") for block in config.block_types)
    return config.hidden_size / (config.num_hidden_layers - halves / 2)


def misaligned(config: ZooConfig) -> str:
    """The sizes of products that are no multiples of 64."""
    names = ["hidden_size", "vocab_size"]
    names += ["intermediate_size"] if has_dense(config) else []
    names += ["moe_intermediate_size"] if "sparse" in config.mlp_layer_types else []
    if config.softmax_layers:
        names += [*LATENT_WIDTHS] if "latent" in config.attention_types else ["head_dim"]
    return ", ".join(name for name in names if (getattr(config, name) or 0) % 64) or "all"


LATENT_WIDTHS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def split_sizes(config: ZooConfig) -> dict[str, int]:
    """What tensor parallelism divides among ranks."""
    names = ["vocab_size", "num_attention_heads"]
    names += [] if "latent" in config.attention_types else ["num_key_value_heads"]
    names += ["intermediate_size"] if has_dense(config) else []
    names += ["moe_intermediate_size"] if "sparse" in config.mlp_layer_types else []
    if not config.softmax_layers:
        names = [name for name in names if "heads" not in name]
    return {name: getattr(config, name) for name in names}


def most_ranks(config: ZooConfig) -> int:
    """The largest power of two that divides all of them."""
    ranks = 1
    while ranks < 128 and all(size % (2 * ranks) == 0 for size in split_sizes(config).values()):
        ranks *= 2
    return ranks


def quarter(heads: int) -> int:
    """The largest divisor that is a quarter of them at most."""
    return max(count for count in range(1, max(1, heads // 4) + 1) if heads % count == 0)


def to_64(size: float) -> int:
    """The nearest multiple of 64 above 0."""
    return max(64, round(size / 64) * 64)


# -- concepts -----------------------------------------------------------------------------------------------------


def once(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def biases(config: ZooConfig) -> str:
    found = {
        "q, k, v": config.attention_bias,
        "o": config.attention_out_bias,
        "MLP": config.mlp_bias,
        "head": config.lm_head_bias,
    }
    return ", ".join(name for name, there in found.items() if there) or "none"


def held_scores(config: ZooConfig) -> str | None:
    """What keeps the scores of softmax attention small."""
    if not config.softmax_layers:
        return None
    found = {
        "QK norm": config.qk_norm,
        "norm of latents": "latent" in config.attention_types,
        f"cap {config.attn_logit_softcapping}": config.attn_logit_softcapping,
    }
    return " and ".join(words for words, there in found.items() if there) or "nothing"


def heads_per_key(config: ZooConfig) -> float | None:
    if not config.softmax_layers or "latent" in config.attention_types:
        return None
    return config.num_attention_heads / config.num_key_value_heads


def full_share(config: ZooConfig) -> float | None:
    """Of the layers with a mixer, those that see and keep every token; None for short contexts without any other."""
    every = [kind for kind, mixer in zip(config.layer_types, config.mixer_types, strict=True) if mixer is not None]
    full = sum(kind in ("full_attention", "indexed_attention", "hybrid") for kind in every)
    if full == len(every) and config.max_position_embeddings <= 32768:
        return None
    return full / len(every)


def balance(config: ZooConfig) -> str | None:
    """What keeps experts in balance while a model learns."""
    if "sparse" not in config.mlp_layer_types:
        return None
    found = {
        f"loss x {config.router_aux_loss_coef:g}": config.router_aux_loss_coef,
        "bias": config.use_score_correction_bias,
        "sampling": config.scoring_func == "sparsemixer",
    }
    return " and ".join(words for words, there in found.items() if there) or "nothing"
