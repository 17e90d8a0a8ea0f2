"""What a model is made of, counted on the meta device: no weight is ever allocated. For `zoo inspect` and the card."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import ABSOLUTE_POSITIONS

from .kinds import kinds_of
from .layers import context_of, layer_words

if TYPE_CHECKING:
    from torch import nn
    from transformers import DynamicCache, PreTrainedModel
    from transformers.cache_utils import Cache

    from modeling_zoo import ZooModel
    from modeling_zoo.mixer import TokenMixer


def measure(config: ZooConfig, model: "PreTrainedModel | None" = None) -> dict:
    """ZooConfig -> the report of `zoo inspect --json`: one entry per layer, then totals. `model`: an empty one."""
    model = model or empty_model(config)
    kinds, differing = kinds_of(config)
    layers = [
        measure_layer(model, index, sizes) | {"kind": kinds[index], "differs": differing[index]}
        for index, sizes in enumerate(cache_sizes(model))
    ]
    total, further, spared = model.num_parameters(), prediction_parameters(model), max_zero_experts(model)
    active = total - further - sum(layer["inactive_parameters"] for layer in layers)
    length = config.max_position_embeddings
    return {
        "model_type": config.model_type,
        "class": type(model).__name__,
        "source_model_type": (config.source_config or {}).get("model_type"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "max_position_embeddings": length,
        "embedding": embedding_words(config.outside_layers()),
        "head": head_words(config.outside_layers()),
        "layers": layers,
        "parameters": total,
        "embedding_parameters": embedding_parameters(model),
        "prediction_parameters": further,
        "active_parameters": active,
        "least_active_parameters": active - spared,
        "bytes": total * model.dtype.itemsize,
        "cache_bytes_per_token": sum(growth(layer) for layer in layers),
        "window_bytes": sum(held_in_window(layer) for layer in layers),
        "state_bytes": sum(layer["state_bytes"] for layer in layers),
        "workspace_bytes": sum(layer["workspace_bytes"] for layer in layers),
        "cache_bytes_at_full_length": sum(layer["cache_bytes_at_full_length"] for layer in layers),
    }


def embedding_parameters(model: "PreTrainedModel") -> int:
    """Numbers in the token table, in an output table of its own, and in the tables of an embedding for every layer."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    count = sum(weight.numel() for weight in {table.weight for table in tables if table is not None})
    rows = body_of(model).per_layer_embeddings
    return count if rows is None else count + rows.embed_tokens_per_layer.weight.numel()


def prediction_parameters(model: "PreTrainedModel") -> int:
    """Numbers in the layers that predict further tokens."""
    further = getattr(model, "mtp", None)
    return 0 if further is None else sum(parameter.numel() for parameter in further.parameters())


def embedding_words(config: ZooConfig) -> list[str]:
    """What happens between a token and the first layer, beside looking it up."""
    width, kind = config.embedding_size, config.position_embedding_type
    found = {
        f"of {width} channels, projected to {config.hidden_size}": width and width != config.hidden_size,
        f"x {config.embedding_multiplier:g}": config.embedding_multiplier != 1.0,
        "norm": config.embedding_norm,
        f"{kind} positions": kind in ABSOLUTE_POSITIONS,
        f"{config.hidden_size_per_layer_input} channels for every layer": config.hidden_size_per_layer_input,
    }
    return [words for words, there in found.items() if there]


def head_words(config: ZooConfig) -> list[str]:
    """What happens between the last layer and the logits, beside the product with the table."""
    found = {
        config.norm_type: config.final_norm,
        "tied to the embedding": config.tie_word_embeddings,
        "bias": config.lm_head_bias,
        f"logits / {config.logits_scaling:g}": config.logits_scaling != 1.0,
        f"cap {config.final_logit_softcapping}": config.final_logit_softcapping,
        f"{len(config.suppressed_token_ids or ())} tokens suppressed": config.suppressed_token_ids,
        f"{config.num_mtp_layers} layers that predict further tokens": config.num_mtp_layers,
    }
    return [words for words, there in found.items() if there]


def empty_model(config: ZooConfig, attn_implementation: str | None = "eager") -> "PreTrainedModel":
    """The config's model without weights, in the dtype that it names (bfloat16 if it names none); None for the
    attention that it would choose."""
    import torch

    from .heads import model_class

    options = {"dtype": config.dtype or torch.bfloat16}
    options |= {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        return model_class(config)._from_config(deepcopy(config), **options).eval()


def body_of(model: "PreTrainedModel") -> "ZooModel":
    """The ZooModel in a model with a head, or the model itself."""
    return getattr(model, "model", model)


def mixer_of(layer: "nn.Module") -> "TokenMixer | None":
    """The attention or the recurrence of a layer, None for a layer that is an MLP alone."""
    return getattr(layer, "self_attn", None) or getattr(layer, "linear_attn", None)


def measure_layer(model: "PreTrainedModel", index: int, sizes: tuple[int, int, int]) -> dict:
    """One layer in words, its parameters and its cache: `sizes` as `cache_sizes` gives them."""
    layer, config = body_of(model).layers[index], model.config.per_layer_config[index]
    limit = context_of(config, index)[1]
    measured = {
        "layer": index,
        "layer_type": config.layer_types[index],
        **layer_words(config, mixer_of(layer), index, has_mlp=getattr(layer, "mlp", None) is not None),
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "inactive_parameters": sum(inactive_parameters(experts, config) for experts in experts_of(layer)),
        "window": limit,
        **dict(zip(("cache_bytes_per_token", "state_bytes", "workspace_bytes"), sizes, strict=True)),
        **compressed_sizes(mixer_of(layer), model.dtype.itemsize),
    }
    return measured | {"cache_bytes_at_full_length": cached_bytes(measured, config.max_position_embeddings)}


def cached_bytes(layer: dict, length: int) -> int:
    """Bytes that a layer's cache holds after `length` tokens of one sequence: in a window the w - 1 that the next token
    sees beside itself."""
    kept = length if layer["window"] is None else min(length, layer["window"] - 1)
    return layer["state_bytes"] + layer["cache_bytes_per_token"] * max(kept, 0) + entries_bytes(layer, length)


def growth(layer: dict) -> int:
    """Bytes that a token adds to a layer's cache for good; of entries, its share of one."""
    entries = layer["entry_bytes"] // layer["entry_rate"] if layer.get("entry_rate") else 0
    return entries if layer["window"] else layer["cache_bytes_per_token"]


def held_in_window(layer: dict) -> int:
    """Bytes of the tokens in a full window, 0 for a layer without one."""
    length = layer["window"] or 0
    return cached_bytes(layer, length) - layer["state_bytes"] - entries_bytes(layer, length)


def entries_bytes(layer: dict, length: int) -> int:
    """Bytes of the entries that stand for windows of so many tokens, in a layer of compressed attention."""
    return layer["entry_bytes"] * (length // layer["entry_rate"]) if layer.get("entry_rate") else 0


def compressed_sizes(mixer: "TokenMixer | None", itemsize: int) -> dict[str, int]:
    """What a layer of compressed attention keeps, {} for any other: a token of its window, which is key and value at
    once; all that stays of the tokens in open windows; the entries of a closed one, and how many tokens that has."""
    if getattr(mixer, "compressor", None) is None:
        return {}
    config, indexer = mixer.config, mixer.indexer
    parts = [mixer.compressor] if indexer is None else [mixer.compressor, indexer.compressor]
    table = config.rope_tables.get(config.rope_table_of(mixer.layer_idx))
    turning = 2 * int(config.head_dim * table.get("partial_rotary_factor", 1.0)) if table else 0
    open_tokens = mixer.compressor.rate * (1 + mixer.overlap) - 1
    per_token = sum(2 * part.kv_proj.out_features + turning for part in parts)
    return {
        "cache_bytes_per_token": config.num_key_value_heads * config.head_dim * itemsize,
        "state_bytes": open_tokens * per_token * itemsize,
        "entry_bytes": sum(part.heads * part.width for part in parts) * itemsize,
        "entry_rate": mixer.compressor.rate,
    }


def cache_totals(report: dict, context: int | None = None, batch: int = 1) -> dict:
    """What the caches of `batch` sequences hold after `context` tokens each (None: as many as a sequence can have):
    what grows with every token, what has filled its window, states. Bytes per token and the parts are one sequence's.
    """
    length = context or report["max_position_embeddings"]
    layers = report["layers"]
    held = sum(cached_bytes(layer, length) for layer in layers)
    state = report["state_bytes"]
    growing = sum(cached_bytes(layer, length) - layer["state_bytes"] for layer in layers if layer["window"] is None)
    growing += sum(entries_bytes(layer, length) for layer in layers if layer["window"] is not None)
    return {
        "context": length,
        "batch": batch,
        "dtype": report["dtype"],
        "bytes_per_token": report["cache_bytes_per_token"],
        "growing_bytes": growing,
        "window_bytes": held - state - growing,
        "state_bytes": state,
        "bytes": held * batch,
    }


def experts_of(layer: "nn.Module") -> "list[nn.Module]":
    """The sets of routed experts in a layer, wherever they stand: in place of its MLP, or beside it."""
    from modeling_zoo.mlp_experts import Experts

    return [module for module in layer.modules() if isinstance(module, Experts)]


def inactive_parameters(experts: "nn.Module", config: ZooConfig) -> int:
    """Parameters of routed experts that one token leaves out: fused tensors `[E, ..., ...]`, k of E used."""
    unused = config.num_experts - min(config.num_experts_per_tok, config.num_experts)
    return expert_parameters(experts) * unused


def expert_parameters(experts: "nn.Module") -> int:
    """Parameters of one routed expert."""
    return sum(weight.numel() // weight.shape[0] for weight in experts.parameters())


def max_zero_experts(model: "PreTrainedModel") -> int:
    """Parameters that a token spares at most by going to experts that cost nothing."""
    spared = 0
    for index, layer in enumerate(body_of(model).layers):
        config = model.config.per_layer_config[index]
        count = min(config.zero_expert_num or 0, config.num_experts_per_tok or 0)
        spared += sum(expert_parameters(experts) * count for experts in experts_of(layer))
    return spared


def cache_sizes(model: "PreTrainedModel") -> list[tuple[int, int, int]]:
    """For each layer's cache: bytes that each token adds, bytes whatever the length, and bytes of buffers that decoding
    on a CPU adds.

    transformers' own cache is filled with one token and with two: what grew is per token, the rest is state.
    """
    first = first_alike(model)
    caches = [filled_cache(model, length, sorted(set(first))) for length in (1, 2)]
    sizes = {}
    for index in set(first):
        # An older transformers makes no cache layer for a layer that reads another's keys.
        shorter, longer = (held_bytes(cache.layers[index : index + 1]) for cache in caches)
        workspace = workspace_bytes(body_of(model).layers[index], caches[0], index)
        sizes[index] = longer - shorter, 2 * shorter - longer, workspace
    return [sizes[index] for index in first]


def workspace_bytes(layer: "nn.Module", cache: "Cache", index: int) -> int:
    """Bytes of the buffers in which a CPU collects the writes of single tokens to a layer's state: see
    modeling_zoo/ops_recurrence_decode.py."""
    from modeling_zoo.ops_recurrence_decode import DeferredState
    from modeling_zoo.recurrent_linear import DeltaAttention

    mixer = next((part for part in layer.modules() if getattr(part, "can_defer", False)), None)
    if mixer is None:
        return 0
    deferred = DeferredState(cache.layers[index].recurrent_states[0])
    deferred.allocate(mixer.settings.num_key_heads, delta=isinstance(mixer, DeltaAttention))
    return deferred.workspace_bytes


def filled_cache(model: "PreTrainedModel", length: int, indices: Iterable[int]) -> "DynamicCache":
    """A cache after `length` tokens of the layers `indices`, each fed alone, as sizes do not depend on its input."""
    import torch
    from transformers import DynamicCache

    from modeling_zoo.attention_sparse_indexer import SharedIndices
    from modeling_zoo.cache_upgrade import prepare_cache
    from modeling_zoo.ops_cross_layer import SharedKeyValues

    cache = DynamicCache(config=model.config)
    prepare_cache(cache, model.config)
    for held in cache.layers:
        # A window that drops its second token would hide what a token adds.
        if getattr(held, "sliding_window", None):
            held.sliding_window = max(held.sliding_window, length + 1)
    with torch.device("meta"), torch.no_grad():
        hidden_states = torch.empty(1, length, model.config.hidden_size, dtype=model.dtype)
        context = {"past_key_values": cache, "position_ids": torch.arange(length)[None], "attention_mask": None}
        context["shared_key_values"] = SharedKeyValues()
        if model.config.indexer_types is not None:
            context["shared_indices"] = SharedIndices()
        body, biases, keys = body_of(model), {}, body_of(model).mask_keys
        if body.score_biases is not None:
            biases = body.score_biases(body.position_bias, hidden_states, None, None, body.layers)
        if (source := model.config.value_source) is not None:
            first = body_of(model).layers[source].self_attn.keys_and_values(hidden_states, None)
            context["shared_key_values"].put(source, *first)
        for index in indices:
            layer = body_of(model).layers[index]
            if mixer_of(layer) is not None:
                layer.mixer(hidden_states, {"position_bias": biases.get(keys[index])} | context)
            if index in model.config.shared_block_layers:
                shared = body_of(model).shared_blocks.context(index, hidden_states)["shared_block"]
                shared(hidden_states, hidden_states, layer.adapters, layer_idx=index, **context)
    return cache


def first_alike(model: "PreTrainedModel") -> list[int]:
    """For each layer the first one whose cache is of the same kind: same layer type, mixer, settings and parameters.

    Itself where layers read each other's caches or differ in fields.
    """
    config, first = model.config, {}
    if config.is_heterogeneous or config.num_kv_shared_layers or config.indexer_types is not None:
        return list(range(config.num_hidden_layers))
    kinds = []
    for index, layer in enumerate(body_of(model).layers):
        settings = getattr(getattr(layer, "linear_attn", None), "settings", None)
        shapes = tuple((name, weight.shape) for name, weight in layer.named_parameters())
        types, shared = (config.layer_types[index], config.mixer_types[index]), index in config.shared_block_layers
        kinds.append((types, shared, repr(settings), shapes))
        first.setdefault(kinds[-1], index)
    return [first[kind] for kind in kinds]


def held_bytes(holder: Any) -> int:
    """Bytes of the tensors a cache layer holds, in attributes, lists and dicts; what is not a float counts tokens."""
    import torch

    if isinstance(holder, torch.Tensor):
        return holder.nbytes if holder.is_floating_point() else 0
    if isinstance(holder, (list, tuple)):
        return sum(held_bytes(part) for part in holder)
    parts = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
    return sum(held_bytes(part) for part in parts.values())


def layer_runs(layers: list[dict]) -> Iterator[tuple[int, int, dict]]:
    """(first, last, layer) of each run of layers that differ in nothing but their number."""
    start = 0
    for index in range(1, len(layers) + 1):
        if index == len(layers) or layers[index] | {"layer": start} != layers[start]:
            yield start, index - 1, layers[start]
            start = index


def repetitions(runs: list) -> list[tuple[int, list]]:
    """Runs of equal layers → (how often, the runs that repeat), as few as a greedy look ahead finds."""
    kinds = [(last - first, {**layer, "layer": 0}) for first, last, layer in runs]
    found, start = [], 0
    while start < len(runs):
        times, period = 1, 1
        for width in range(1, (len(runs) - start) // 2 + 1):
            count = 1
            while kinds[start + count * width : start + (count + 1) * width] == kinds[start : start + width]:
                count += 1
            if count > 1 and count * width > times * period:
                times, period = count, width
        found.append((times, runs[start : start + period]))
        start += times * period
    return found


def pattern_of(layers: list[dict]) -> str:
    """`12 x (3 x gated_delta_net + 1 x grouped_query)`: mixers and how often they stand one behind the other."""
    parts = []
    for times, runs in repetitions(list(layer_runs(layers))):
        words = [
            f"{last - first + 1} x {layer['mixer'].split()[0] if layer['mixer'] else 'MLP'}{_short_context(layer)}"
            for first, last, layer in runs
        ]
        parts.append(" + ".join(words) if times == 1 else f"{times} x ({' + '.join(words)})")
    return " + ".join(parts)


def _short_context(layer: dict) -> str:
    """What a softmax layer sees, where that is not all."""
    return "" if layer["context"] in ("", "full", "state") else f" ({layer['context']})"
