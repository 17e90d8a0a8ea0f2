"""What a model is made of, counted on the meta device: no weight is ever allocated. For `zoo inspect` and the card."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from configuration_zoo import ZooConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import DynamicCache, PreTrainedModel
    from transformers.cache_utils import Cache

    from modeling_zoo import ZooModel
    from modeling_zoo.mixer import TokenMixer

# Layer type -> (what of the sequence a token sees there, the field with the number of tokens).
CONTEXTS = {
    "full_attention": ("full", None),
    "indexed_attention": ("full, indexed", None),
    "sliding_attention": ("window", "sliding_window"),
    "chunked_attention": ("chunk", "attention_chunk_size"),
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


def measure(config: ZooConfig, model: "PreTrainedModel | None" = None) -> dict:
    """ZooConfig -> the report of `zoo inspect --json`: one entry per layer, then totals. `model`: an empty one."""
    model = model or empty_model(config)
    layers = [measure_layer(model, index, *sizes) for index, sizes in enumerate(cache_sizes(model))]
    total = model.num_parameters()
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedding = sum(weight.numel() for weight in {table.weight for table in tables if table is not None})
    if (rows := body_of(model).per_layer_embeddings) is not None:
        embedding += rows.embed_tokens_per_layer.weight.numel()
    further = getattr(model, "mtp", None)
    further = 0 if further is None else sum(parameter.numel() for parameter in further.parameters())
    return {
        "model_type": config.model_type,
        "class": type(model).__name__,
        "source_model_type": (config.source_config or {}).get("model_type"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "layers": layers,
        "parameters": total,
        "embedding_parameters": embedding,
        "prediction_parameters": further,
        "active_parameters": total - further - sum(layer["inactive_parameters"] for layer in layers),
        "bytes": total * model.dtype.itemsize,
        "cache_bytes_per_token": sum(layer["cache_bytes_per_token"] for layer in layers),
        "cache_bytes_at_full_length": sum(layer["cache_bytes_at_full_length"] for layer in layers),
        "state_bytes": sum(layer["state_bytes"] for layer in layers),
        "workspace_bytes": sum(layer["workspace_bytes"] for layer in layers),
    }


def empty_model(config: ZooConfig) -> "PreTrainedModel":
    """The config's model without weights, in the dtype that it names (bfloat16 if it names none)."""
    import torch

    from .heads import model_class

    dtype = config.dtype or torch.bfloat16
    with torch.device("meta"):
        return model_class(config)._from_config(deepcopy(config), dtype=dtype, attn_implementation="eager").eval()


def body_of(model: "PreTrainedModel") -> "ZooModel":
    """The ZooModel in a model with a head, or the model itself."""
    return getattr(model, "model", model)


def mixer_of(layer: "nn.Module") -> "TokenMixer | None":
    """The attention or the recurrence of a layer, None for a layer that is an MLP alone."""
    return getattr(layer, "self_attn", None) or getattr(layer, "linear_attn", None)


def measure_layer(model: "PreTrainedModel", index: int, per_token: int, state: int, workspace: int) -> dict:
    """One layer's mixer, context, MLP, parameters and cache."""
    layer, config = body_of(model).layers[index], model.config.per_layer_config[index]
    mixer, mlp = mixer_of(layer), getattr(layer, "mlp", None)
    context, limit = context_of(config, index)
    return {
        "layer": index,
        "layer_type": config.layer_types[index],
        "mixer": describe_mixer(config, mixer, index),
        "context": context if mixer is not None else "",
        "mlp": describe_mlp(config, index) if mlp is not None else "",
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "inactive_parameters": inactive_parameters(config, mlp),
        "cache_bytes_per_token": per_token,
        "cache_bytes_at_full_length": state + per_token * min(config.max_position_embeddings, limit),
        "state_bytes": state,
        "workspace_bytes": workspace,
    }


def context_of(config: ZooConfig, index: int) -> tuple[str, int]:
    """(what of the sequence a token sees in this layer, in words; the most tokens its cache has to keep)."""
    pattern = config.sparse_pattern_of(index)
    if pattern != "none":
        return f"{pattern} {config.sparse_attention_stride}", config.max_position_embeddings
    layer_type = config.layer_types[index]
    text, field = CONTEXTS.get(layer_type, (layer_type, None))
    limit = getattr(config, field) if field else None
    return (text, config.max_position_embeddings) if limit is None else (f"{text} {limit}", limit)


def describe_mixer(config: ZooConfig, mixer: "TokenMixer | None", index: int) -> str:
    """The registry's name of a mixer and its heads: of softmax attention query heads, key-value heads and their width,
    of a recurrence those of keys and of values."""
    if mixer is None:
        return ""
    name, named = config.mixer_types[index], config.linear_attention_type
    recurrence = named[index] if isinstance(named, list) else named
    sizes = f"{config.num_attention_heads}/{config.num_key_value_heads} x {config.head_dim}"
    if index in config.shared_block_layers:
        turn = config.shared_block_layers.index(index) % config.num_mem_blocks
        return f"shared block {turn}, {describe_recurrence(config, name, index)}"
    if name == "hybrid":
        return f"{config.attention_types[index]} {sizes} + {describe_recurrence(config, recurrence, index)}"
    if name == "shared_key_value":
        return f"{name} {sizes} of layer {config.kv_source_of(index)}"
    if name == recurrence:
        return describe_recurrence(config, name, index)
    return f"{name} {sizes}" if name == "grouped_query" else name


def describe_recurrence(config: ZooConfig, name: str, index: int) -> str:
    """`gated_delta_net 16/32 x 128`: heads of keys / heads of values x their width, a state's rows / columns if these
    differ."""
    settings = vars(config.linear_settings(index))
    if name in SHAPES:
        return SHAPES[name].format(name=name, **settings)
    keys, values = settings["key_head_dim"], settings["value_head_dim"]
    width = keys if keys == values else f"{keys}/{values}"
    return f"{name} {settings['num_key_heads']}/{settings['num_value_heads']} x {width}"


def describe_mlp(config: ZooConfig, index: int) -> str:
    """Kind, activation and inner width of a layer's MLP; how many experts, and how many a token visits."""
    kind = f"{'gated' if config.gated_mlp else 'plain'} {config.hidden_act}"
    if config.mlp_layer_types[index] != "sparse":
        return f"{kind} {config.intermediate_size}"
    shared = f" + {config.n_shared_experts} shared" if config.n_shared_experts else ""
    return (
        f"{config.num_experts_per_tok} of {config.num_experts}{shared} experts, {kind} {config.moe_intermediate_size}"
    )


def inactive_parameters(config: ZooConfig, mlp: "nn.Module | None") -> int:
    """Parameters of a sparse layer's experts that one token leaves out: fused tensors `[E, ..., ...]`, k of E used."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        return 0
    unused = config.num_experts - config.num_experts_per_tok
    return sum(weight.numel() // weight.shape[0] * unused for weight in experts.parameters())


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
    from modeling_zoo.ops_cross_layer import SharedKeyValues

    cache = DynamicCache(config=model.config)
    with torch.device("meta"), torch.no_grad():
        hidden_states = torch.empty(1, length, model.config.hidden_size, dtype=model.dtype)
        context = {"past_key_values": cache, "position_ids": torch.arange(length)[None], "attention_mask": None}
        context["shared_key_values"] = SharedKeyValues()
        if model.config.indexer_types is not None:
            context["shared_indices"] = SharedIndices()
        body, biases, keys = body_of(model), {}, body_of(model).mask_keys
        if body.score_biases is not None:
            biases = body.score_biases(body.position_bias, hidden_states, None, None)
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
