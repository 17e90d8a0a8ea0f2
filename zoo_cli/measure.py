"""What a model is made of, counted on the meta device: no weight is ever allocated."""

from copy import deepcopy

# transformers' word for a layer -> (how far it sees, the field with its number of tokens).
REACH = {
    "full_attention": ("full", None),
    "indexed_attention": ("full, indexed", None),
    "sliding_attention": ("window", "sliding_window"),
    "chunked_attention": ("chunk", "attention_chunk_size"),
    "hybrid": ("full + state", None),
    "hybrid_sliding": ("state + window", "sliding_window"),
    "linear_attention": ("state", None),
    "conv": ("state", None),
}


def measure(config) -> dict:
    """ZooConfig -> the report of `zoo inspect --json`: one entry per layer, then totals."""
    model = empty_model(config)
    layers = [measure_layer(model, index) for index in range(config.num_hidden_layers)]
    total = model.num_parameters()
    embedding = sum(part.weight.numel() for part in {model.get_input_embeddings(), model.get_output_embeddings()})
    if config.tie_word_embeddings:
        embedding //= 2
    return {
        "model_type": config.model_type,
        "source_model_type": (config.source_config or {}).get("model_type"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "layers": layers,
        "parameters": total,
        "embedding_parameters": embedding,
        "active_parameters": total - sum(layer["idle_parameters"] for layer in layers),
        "bytes": total * model.dtype.itemsize,
        "cache_bytes_per_token": sum(layer["cache_bytes_per_token"] for layer in layers),
        "cache_bytes_at_full_length": sum(layer["cache_bytes_at_full_length"] for layer in layers),
        "state_bytes": sum(layer["state_bytes"] for layer in layers),
    }


def empty_model(config):
    """A ZooForCausalLM without weights, in the dtype the config names (bfloat16 if it names none)."""
    import torch

    from modeling_zoo import ZooForCausalLM

    dtype = config.dtype or torch.bfloat16
    with torch.device("meta"):
        return ZooForCausalLM._from_config(deepcopy(config), dtype=dtype, attn_implementation="eager").eval()


def measure_layer(model, index: int) -> dict:
    """One layer's mixer, reach, MLP, parameters and cache."""
    layer, config = model.model.layers[index], model.config.per_layer_config[index]
    word = config.layer_types[index]
    mixer, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    reach, field = REACH.get(word, (word, None))
    limit = getattr(config, field) if field else None
    per_token, state = cache_bytes(model, mixer)
    return {
        "layer": index,
        "layer_type": word,
        "mixer": describe_mixer(config, mixer, index),
        "reach": "" if mixer is None else reach if limit is None else f"{reach} {limit}",
        "mlp": describe_mlp(config, index) if mlp is not None else "",
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "idle_parameters": idle_parameters(config, mlp),
        "cache_bytes_per_token": per_token,
        "cache_bytes_at_full_length": state + per_token * min(config.max_position_embeddings, limit or float("inf")),
        "state_bytes": state,
    }


def describe_mixer(config, mixer, index: int) -> str:
    """The registry's name of a mixer; of softmax attention also query heads, key-value heads and their width."""
    if mixer is None:
        return ""
    name = config.mixer_types[index]
    heads = f" {config.num_attention_heads}/{config.num_key_value_heads} x {config.head_dim}"
    return name + heads if name == "grouped_query" else name


def describe_mlp(config, index: int) -> str:
    """Kind, activation and inner width of a layer's MLP."""
    kind = "gated" if config.gated_mlp else "plain"
    if config.mlp_layer_types[index] == "sparse":
        experts = f"{config.num_experts_per_tok} of {config.num_experts} experts"
        return f"{experts}, {kind} {config.hidden_act} {config.moe_intermediate_size}"
    return f"{kind} {config.hidden_act} {config.intermediate_size}"


def idle_parameters(config, mlp) -> int:
    """Parameters of a sparse layer's experts that one token leaves out: fused tensors `[E, ..., ...]`, k of E used."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        return 0
    unused = config.num_experts - config.num_experts_per_tok
    return sum(weight.numel() // weight.shape[0] * unused for weight in experts.parameters())


def cache_bytes(model, mixer) -> tuple[int, int]:
    """(bytes each further token adds, bytes held whatever the length) of one layer's cache, by filling one.

    transformers' own cache is filled with one token and with two: what grew is per token, the rest is state.
    """
    if mixer is None:
        return 0, 0
    one, two = (filled_bytes(model, mixer, length) for length in (1, 2))
    return two - one, 2 * one - two


def filled_bytes(model, mixer, length: int) -> int:
    """Bytes of `mixer`'s cache layer after `length` tokens."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.device("meta"), torch.no_grad():
        hidden_states = torch.empty(1, length, model.config.hidden_size, dtype=model.dtype)
        mixer(hidden_states, past_key_values=cache, position_ids=torch.arange(length)[None], attention_mask=None)
    held = vars(cache.layers[mixer.layer_idx]).values()
    # What is not a float counts tokens.
    return sum(part.nbytes for part in held if isinstance(part, torch.Tensor) and part.is_floating_point())
