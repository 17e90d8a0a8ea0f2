"""What one layer is, in words: mixer, positions, what attention adds, norms and residual, MLP.

A word is there for everything that differs from a plain layer: pre-norm, grouped queries, full attention, RoPE, a dense
MLP. What no word says is named by its field: see kinds.py.
"""

from typing import TYPE_CHECKING, Any

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import LAUREL_BLOCKS

if TYPE_CHECKING:
    from modeling_zoo.mixer import TokenMixer

# Layer type -> (what of the sequence a token sees there, the field with the number of tokens).
CONTEXTS = {
    "full_attention": ("full", None),
    "indexed_attention": ("full, indexed", None),
    "sliding_attention": ("window", "sliding_window"),
    "chunked_attention": ("chunk", "attention_chunk_size"),
    "compressed_sparse_attention": ("window + chosen entries", "sliding_window"),
    "heavily_compressed_attention": ("window + entries", "sliding_window"),
    "hybrid": ("full + state", None),
    "hybrid_sliding": ("state + window", "sliding_window"),
    "linear_attention": ("state", None),
    "conv": ("state", None),
}
# What a mechanism with a state of fixed size has in place of heads of keys and values: see fields_linear.py.
STATE_SPACE = "{name} {num_key_heads}/{num_value_heads} x {value_head_dim}, {key_head_dim} states"
SHAPES = {
    "mamba2": STATE_SPACE,
    "mamba": STATE_SPACE,
    "rg_lru": "{name} {num_value_heads} x {value_head_dim}",
    "short_conv": "{name} {conv_kernel_dim} taps",
}
POSITIONS = {
    "alibi": "ALiBi", "learned": "learned", "none": "NoPE", "relative": "relative", "sinusoidal": "sinusoidal",
    "transformer_xl": "Transformer-XL",
}  # fmt: skip
COMBINED = {"average": "averaged with shared", "normed_sum": "norm behind the sum with shared"}
GATES = {
    "query": "gate from q_proj", "elementwise": "gate per channel", "headwise": "gate per head",
    "elementwise_softplus": "softplus gate per channel", "headwise_softplus": "softplus gate per head",
}  # fmt: skip


def layer_words(config: ZooConfig, mixer: "TokenMixer | None", index: int, has_mlp: bool) -> dict[str, Any]:
    """The entries of a layer's report that are words; `config` is its own view of the model's."""
    attends = mixer is not None and index in config.softmax_layers
    return {
        "mixer": describe_mixer(config, mixer, index),
        "context": context_of(config, index)[0] if mixer is not None else "",
        "positions": positions_of(config, index) if attends else "",
        "features": attention_features(config, index) if attends else [],
        "block": config.block_types[index],
        "residual": residual_of(config, index),
        "mlp": describe_mlp(config, index) if has_mlp else "",
        "widths": widths_of(config, index) if mixer is not None else {},
        "experts": experts_in(config, index) if has_mlp else {},
    }


def context_of(config: ZooConfig, index: int) -> tuple[str, int | None]:
    """(what of the sequence a token sees in this layer, in words; how many tokens that is at most, None for all)."""
    pattern = config.sparse_pattern_of(index)
    if pattern != "none":
        return f"{pattern} {config.sparse_attention_stride}", None
    layer_type = config.layer_types[index]
    text, field = CONTEXTS.get(layer_type, (layer_type, None))
    limit = getattr(config, field) if field else None
    if layer_type == "indexed_attention":
        text += f" {config.index_topk}"
    return (text if limit is None else f"{text} {limit}"), limit


def describe_mixer(config: ZooConfig, mixer: "TokenMixer | None", index: int) -> str:
    """The registry's name of a mixer and its widths: of softmax attention query heads, key-value heads and their width,
    of latent attention the ranks too, of a recurrence heads of keys and of values."""
    if mixer is None:
        return ""
    name, named = config.mixer_types[index], config.linear_attention_type
    recurrence = named[index] if isinstance(named, list) else named
    if index in config.shared_block_layers:
        turn = config.shared_block_layers.index(index) % config.num_mem_blocks
        return f"shared block {turn} {_heads(config)}, {describe_recurrence(config, name, index)}"
    if name == "hybrid":
        attention = config.attention_types[index]
        return f"{attention} {_heads(config)} + {describe_recurrence(config, recurrence, index)}"
    if name == "shared_key_value":
        return f"{name} {_heads(config)} of layer {config.kv_source_of(index)}"
    if name == recurrence:
        return describe_recurrence(config, name, index)
    if config.attention_types[index] == "latent":
        return f"{name} {_latent(config)}{indexer_words(config, index)}"
    words = (indexer_words(config, index), _ranks(config, index), compression_words(config, index), rank_words(config))
    return f"{name} {_heads(config)}{''.join(words)}"


def _ranks(config: ZooConfig, index: int) -> str:
    """`, q 6, k 2, v 2`: the ranks of factors, where a layer has them."""
    ranks = config.attention_factors if config.has_factors(index) else {}
    named = {"q": "query_rank"} | ({"k": "key_rank", "v": "value_rank"} if config.has_factors(index, True) else {})
    return "".join(f", {word} {ranks[key]}" for word, key in named.items() if key in ranks)


def factors_kept(config: ZooConfig, index: int) -> dict[str, int]:
    """Channels of the factors of keys and values that tensor product attention caches."""
    ranks, kv_heads = config.attention_factors, config.num_key_value_heads
    keys, values = (
        ranks["key_rank"] * (kv_heads + config.head_dim),
        ranks["value_rank"] * (kv_heads + config.value_width),
    )
    return {"k factors": keys, "v factors": values}


def tied_kept(config: ZooConfig, index: int) -> dict[str, int]:
    """Channels of the rotated key and of the values that grouped-tied attention caches."""
    return {"rope key": config.tied_rope_width(index), "v": config.num_key_value_heads * config.value_width}


KEPT = {"tensor_product": factors_kept, "grouped_tied": tied_kept}


def _heads(config: ZooConfig) -> str:
    width = config.head_dim if config.value_width == config.head_dim else f"{config.head_dim}/{config.value_width}"
    return f"{config.num_attention_heads}/{config.num_key_value_heads} x {width}"


def _latent(config: ZooConfig) -> str:
    """`128 x 128+64/128, kv 512, q 1536`: heads x channels of a key without and with rotation / of a value, ranks."""
    heads = f"{config.num_attention_heads}"
    if config.num_key_value_heads != config.num_attention_heads:
        heads += f"/{config.num_key_value_heads}"
    width = f"{config.qk_nope_head_dim}+{config.qk_rope_head_dim}/{config.v_head_dim}"
    rank = f", q {config.q_lora_rank}" if config.q_lora_rank else ""
    return f"{heads} x {width}, kv {config.kv_lora_rank}{rank}"


def compression_words(config: ZooConfig, index: int) -> str:
    """`, an entry for 4 tokens, 512 of them by an indexer of 64 x 128`; nothing for other layers."""
    rate = config.compress_rates.get(config.layer_types[index])
    if rate is None:
        return ""
    words = f", an entry for {rate} tokens"
    if config.layer_types[index] != "compressed_sparse_attention":
        return words
    return f"{words}, {config.index_topk} of them by an indexer of {config.index_n_heads} x {config.index_head_dim}"


def rank_words(config: ZooConfig) -> str:
    """`, q 1024, o 8 x 1024`: ranks of the projections of queries and of the output, the latter in groups."""
    query, output = config.mla_config["query_rank"], config.mla_config["output_rank"]
    words = f", q {query}" if query else ""
    return words + (f", o {config.mla_config['output_groups']} x {output}" if output else "")


def indexer_words(config: ZooConfig, index: int) -> str:
    if config.layer_types[index] != "indexed_attention":
        return ""
    source = config.indexer_of(index)
    own = f"indexer {config.index_n_heads} x {config.index_head_dim}"
    return f", {own}" if source == index else f", indexer of layer {source}"


def describe_recurrence(config: ZooConfig, name: str, index: int) -> str:
    """`gated_delta_net 16/32 x 128`: heads of keys / heads of values x their width, a state's rows / columns if these
    differ."""
    settings = vars(config.linear_settings(index))
    if name in SHAPES:
        return SHAPES[name].format(name=name, **settings)
    keys, values = settings["key_head_dim"], settings["value_head_dim"]
    width = keys if keys == values else f"{keys}/{values}"
    return f"{name} {settings['num_key_heads']}/{settings['num_value_heads']} x {width}"


def widths_of(config: ZooConfig, index: int) -> dict[str, int]:
    """Channels of what a mixer projects a token to: queries, keys and values of all heads, latents."""
    recurrence, found = config.recurrent_mixers[index], {}
    if index in config.softmax_layers:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if config.attention_types[index] == "latent":
            width = config.qk_nope_head_dim + config.qk_rope_head_dim
            ranks = {
                "q latent": config.q_lora_rank,
                "kv latent": config.kv_lora_rank,
                "rope key": config.qk_rope_head_dim,
            }
            found = {name: rank for name, rank in ranks.items() if rank}
            found |= {"q": heads * width, "k": kv_heads * width, "v": kv_heads * config.v_head_dim}
        elif config.attention_types[index] in KEPT:
            parts = KEPT[config.attention_types[index]](config, index)
            found = {"q": heads * config.head_dim} | {name: width for name, width in parts.items() if width}
        else:
            found = {"q": heads * config.head_dim}
            if not config.shares_key_values(index):
                found |= {"k": kv_heads * config.head_dim, "v": kv_heads * config.value_width}
    if recurrence is not None and recurrence != "short_conv":
        settings = vars(config.linear_settings(index))
        keys, states = settings.get("num_key_heads"), settings.get("key_head_dim")
        own = {"q, k": keys * states if keys and states else None}
        own["v"] = settings["num_value_heads"] * settings["value_head_dim"]
        found |= {f"{name} of the state" if found else name: width for name, width in own.items() if width}
    return found


def experts_in(config: ZooConfig, index: int) -> dict[str, int]:
    """How many experts a sparse layer has of each kind, and how many of the routed ones a token goes to; {} else."""
    if config.mlp_layer_types[index] != "sparse":
        return {}
    found = {"routed": config.num_experts, "chosen": config.num_experts_per_tok, "shared": config.n_shared_experts}
    found["zero"] = config.zero_expert_num
    return {name: count for name, count in found.items() if count}


def positions_of(config: ZooConfig, index: int) -> str:
    """How softmax attention learns where a key stands: `RoPE 10000`, `RoPE 1e+06 yarn x 4, 32 channels`, `NoPE`."""
    kind = config.position_embedding_type
    if kind != "rope":
        return ", ".join([POSITIONS[kind], *_details_of(config, kind)])
    name = config.rope_table_of(index)
    if name is None:
        return "NoPE"
    table = config.rope_tables[name]
    text = f"RoPE {table.get('rope_theta', 10000.0):g}"
    if table.get("rope_type", "default") != "default":
        factor = table.get("factor")
        text += f" {table['rope_type']}" + (f" x {factor:g}" if factor else "")
    if table.get("partial_rotary_factor", 1.0) != 1.0:
        text += f", {table['partial_rotary_factor']:g} of a head"
        if config.position_config["rope_channels"] == "last":
            text += ", its last channels"
    return text + (", interleaved" if config.rope_interleave else "")


def _details_of(config: ZooConfig, kind: str) -> list[str]:
    """What a kind of positions other than rotary ones has beside its usual form."""
    details = config.position_config or {}
    found = {
        "scaled": kind == "alibi" and details.get("alibi_scaled"),
        f"{config.relative_attention_num_buckets} buckets up to {config.relative_attention_max_distance}": kind
        == "relative",
        f"from {details.get('offset')}": details.get("offset"),
        "counted in the mask": details.get("ids_from_mask"),
        f"{details.get('sinusoid_layout')}".replace("_", " "): kind == "sinusoidal"
        and details.get("sinusoid_layout") not in (None, "interleaved"),
    }
    return [words for words, there in found.items() if there]


def attention_features(config: ZooConfig, index: int) -> list[str]:
    """What softmax attention has beyond projections, scores and their softmax."""
    found = {
        _qk_norm(config): bool(config.qk_norm) and config.has_qk_norm(index),
        GATES.get(config.attn_output_gate): config.attn_output_gate,
        "sinks": config.has_attention_sinks(index),
        f"cap {config.attn_logit_softcapping}": config.attn_logit_softcapping,
        f"clamp {config.clip_qkv}": config.clip_qkv,
        "values = keys": config.attention_k_eq_v,
        "values rotate": config.position_config["rope_values"],
        "norm of values": config.value_norm,
        f"values x {config.attention_value_scale}": config.attention_value_scale,
        _value_residual(config): config.mixes_values(index),
        f"scale {config.attention_multiplier}": config.attention_multiplier,
        "scores / layer number": config.scale_attn_by_inverse_layer_idx,
        "temperature by position": config.has_attention_temperature(index),
        "q, k, v biases": config.attention_bias,
        "o bias": config.attention_out_bias,
        "bidirectional": config.use_bidirectional_attention,
    }
    return [words for words, there in found.items() if there]


def _value_residual(config: ZooConfig) -> str:
    if config.value_residual is None:
        return f"values mixed with those of layer {config.value_source}"
    own, first = config.value_residual
    return f"values x {own:g} + those of layer {config.value_source} x {first:g}"


def _qk_norm(config: ZooConfig) -> str:
    how, norm = config.qk_norm_config, (config.qk_norm or "").replace("_", " ")
    words = f"QK {norm}" + (" over all heads" if how["scope"] == "full" else "")
    words += ", a weight for keys alone" if how["weight"] == "keys" else ""
    return words + (" after RoPE" if how["position"] == "after_rope" else "")


def residual_of(config: ZooConfig, index: int) -> str:
    """`pre_norm rms_norm`, and what is multiplied where a sub-layer joins the residual stream."""
    block = config.block_types[index]
    words = [f"{block} {config.norm_type}"]
    if config.residual_multiplier != 1.0:
        words.append(f"outputs x {config.residual_multiplier:g}")
    if block == "sub_norm":
        words.append("norms in front of output projections")
    if block in ("gated_norm", "gated_attn_norm"):
        words.append(
            f"gates of {config.block_config['gated_norm_rank']} channels on the norm" + "s" * (block == "gated_norm")
        )
    if block in LAUREL_BLOCKS and config.block_config["laurel_rank"]:
        words.append(f"a map of rank {config.block_config['laurel_rank']} beside attention")
    if block == "altup":
        words.append(f"{config.block_config['altup_num_inputs']} streams, one computed")
    if block == "attention_residual":
        words.append(f"attention over blocks of {config.block_config['attn_res_block_size']} layers")
    if block == "hyper_connection":
        rounds = f"{config.hc_sinkhorn_iters} rounds of balance" if config.hc_sinkhorn_iters else "no mixing"
        words.append(f"{config.hc_mult} streams, {rounds}")
    factors = [value for pair in config.residual_factors_of(index) for value in pair]
    if any(value != 1 for value in factors):
        words.append("α, β of mixer {:g}, {:g}, of MLP {:g}, {:g}".format(*factors))
    return ", ".join(words)


def describe_mlp(config: ZooConfig, index: int) -> str:
    """Kind, activation and inner width of a layer's MLP; how many experts, and how many a token visits."""
    kind = f"{'gated' if config.gated_mlp else 'plain'} {config.hidden_act}"
    sparse = config.mlp_layer_types[index] == "sparse"
    bias = ", biases" if config.mlp_bias or (sparse and config.expert_bias) else ""
    if not sparse:
        return f"{kind} {config.intermediate_size}{bias}"
    dense = config.block_types[index] in ("scaled_sandwich_norm", "shortcut")
    shared = f" + {config.n_shared_experts} shared" if config.n_shared_experts else ""
    zero = f" + {config.zero_expert_num} zero" if config.zero_expert_num else ""
    words = [
        f"{config.num_experts_per_tok} of {config.num_experts}{zero}{shared} experts, {kind} "
        f"{config.moe_intermediate_size}",
        f"{config.shared_expert_intermediate_size} shared"
        if shared and config.shared_expert_intermediate_size != config.n_shared_experts * config.moe_intermediate_size
        else "",
        f"in {config.moe_latent_size} channels" if config.moe_latent_size else "",
        f"{config.scoring_func} router" if config.scoring_func != "softmax" else "",
        f"{config.topk_group} of {config.n_group} groups" if (config.n_group or 1) > 1 else "",
        "bias for balance" if config.use_score_correction_bias else "",
        "gate of shared" if config.shared_expert_gate else "",
        COMBINED.get(config.shared_expert_combination_strategy, ""),
        f"beside a dense {config.intermediate_size}" if dense else "",
    ]
    return ", ".join(word for word in words if word) + bias
