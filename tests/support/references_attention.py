"""Attention the slow way: one query, one head, one key after the other, in float64."""

import math

import torch


def linear(parameters, name, x):
    """[D] -> [rows]"""
    y = parameters[name + ".weight"] @ x
    return y + parameters[name + ".bias"] if name + ".bias" in parameters else y


def normalise(x, kind, eps):
    """Mean (layer norm only) and size taken away, over everything given."""
    if kind == "layer_norm":
        x = x - x.mean()
    return x / math.sqrt(float((x * x).mean()) + eps)


def norm_heads(parameters, name, heads, config):
    """The QK-norm of one token's heads [H, d]."""
    if config.qk_norm is None:
        return heads
    together = config.qk_norm_config["scope"] == "full"
    groups = [heads.flatten()] if together else list(heads)
    found = []
    for number, group in enumerate(groups):
        y = normalise(group, config.qk_norm, config.qk_norm_config["eps"])
        if config.qk_norm_config["weight"] != "none":
            row = number if config.qk_norm_config["weight"] == "per_head" else ...
            offset = 1 if config.norm_unit_offset and config.qk_norm == config.norm_type else 0
            y = y * (parameters[name + ".weight"][row] + offset)
            if config.qk_norm_config["bias"]:
                y = y + parameters[name + ".bias"][row]
        found.append(y)
    return torch.stack(found).view_as(heads)


def rotate(head, position, config):
    """One head [d], turned pair by pair."""
    table = config.rope_parameters
    width = int(config.head_dim * table.get("partial_rotary_factor", 1.0))
    given = head.tolist()
    turned = list(given)
    for pair in range(width // 2):
        angle = position * table["rope_theta"] ** (-2 * pair / width)
        first, second = (2 * pair, 2 * pair + 1) if config.rope_interleave else (pair, pair + width // 2)
        turned[first] = given[first] * math.cos(angle) - given[second] * math.sin(angle)
        turned[second] = given[second] * math.cos(angle) + given[first] * math.sin(angle)
    return torch.tensor(turned, dtype=torch.double)


def rotates(config, layer):
    return config.position_embedding_type == "rope" and (config.no_rope_layers or {layer: 1})[layer] == 1


def temperature(config, layer, position):
    chosen = {None: False, "all": True, "rope": rotates(config, layer), "no_rope": not rotates(config, layer)}
    if not chosen[config.attn_temperature["layers"]]:
        return 1.0
    floors = math.floor((position + config.attn_temperature["offset"]) / config.attn_temperature["floor_scale"])
    return 1 + config.attn_temperature["scale"] * math.log(1 + floors)


def sees(config, layer, query, key, first):
    """Whether slot `query` may look at slot `key` in a row whose first real token stands in slot `first`."""
    if key < first:
        return False
    if config.use_bidirectional_attention:
        return True
    if key > query:
        return False
    word, stride = config.layer_types[layer], config.sparse_attention_stride
    pattern = (config.sparse_attention_pattern or {layer: "none"})[layer]
    return {
        "full_attention": True,
        "sliding_attention": query - key < (config.sliding_window or 0),
        "chunked_attention": (query - first) // (config.attention_chunk_size or 1)
        == (key - first) // (config.attention_chunk_size or 1),
    }[word] and {
        "none": True,
        "banded": query - key < (stride or 0),
        "strided": query - key < (stride or 0) or (query - key) % (stride or 1) == 0,
        "fixed": query // (stride or 1) == key // (stride or 1) or key % (stride or 1) == (stride or 1) - 1,
    }[pattern]


def alibi(config, head, query, key):
    """slope · (key - query); the slopes are halves of halves, those beyond a power of two lie between them."""
    power = 2 ** math.floor(math.log2(config.num_attention_heads))
    exponent = -8 * (head + 1) / power if head < power else -4 * (2 * (head - power) + 1) / power
    return 2**exponent * (key - query) * (config.head_dim**-0.5 if config.position_config["alibi_scaled"] else 1.0)


def relative(config, table, head, query, key):
    """A learned number for the bucket of the distance back."""
    distance, buckets = max(query - key, 0), config.relative_attention_num_buckets
    exact = buckets // 2
    if distance >= exact:
        growth = math.log(distance / exact) / math.log(config.relative_attention_max_distance / exact)
        distance = min(exact + int(growth * (buckets - exact)), buckets - 1)
    return float(table[distance, head])


def position_bias(config, table, head, query, key):
    if config.position_embedding_type == "alibi":
        return alibi(config, head, query, key)
    return relative(config, table, head, query, key) if config.position_embedding_type == "relative" else 0.0


def shared_query(parameters, x, config):
    """Queries out of one latent, in all heads; keys and values as ever."""
    latent = linear(parameters, "q_a_proj", x)
    if config.attention_factors["query_norm"]:
        latent = normalise(latent, "rms_norm", config.norm_eps) * parameters["q_a_layernorm.weight"]
    return linear(parameters, "q_b_proj", latent), *(linear(parameters, f"{name}_proj", x) for name in "kv")


def tensor_products(parameters, x, config):
    """Queries, keys and values of each head: the mean of vectors, each times a number of the head's own."""
    found = []
    for name, heads, rank in zip(
        "qkv",
        (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads),
        (config.attention_factors[f"{word}_rank"] for word in ("query", "key", "value")),
        strict=True,
    ):
        of_heads = linear(parameters, f"{name}_a_proj", x).view(rank, heads)
        vectors = linear(parameters, f"{name}_b_proj", x).view(rank, -1)
        rows = [sum(of_heads[r, h] * vectors[r] for r in range(rank)) / rank for h in range(heads)]
        found.append(torch.cat(rows))
    return found


def tied_keys(parameters, x, config):
    """Keys of one part that all heads share and turn, and of the first channels of the values."""
    values = linear(parameters, "kv_proj", x).view(config.num_key_value_heads, -1)
    shared = linear(parameters, "k_rope_proj", x) if "k_rope_proj.weight" in parameters else x[:0]
    keys = [torch.cat((shared, value[: config.head_dim - len(shared)])) for value in values]
    return linear(parameters, "q_proj", x), torch.cat(keys), values.flatten()


MADE_OF = {
    "multi_matrix_factorization": shared_query, "tensor_product": tensor_products, "grouped_tied": tied_keys,
}  # fmt: skip


def project(parameters, x, position, config, layer):
    """One token [D] -> its queries [H, d], keys [K, d], values [K, v], gate [H, v] or None."""
    clip = config.clip_qkv or math.inf
    first = math.inf if config.clip_qkv_position == "after_norm" else clip
    wide, value_width = config.attn_output_gate == "query", config.v_head_dim or config.head_dim
    made = MADE_OF.get(config.attention_type, lambda *_: (linear(parameters, f"{name}_proj", x) for name in "qkv"))
    query, key, value = made(parameters, x, config)
    query = query.clamp(-first, first).view(-1, config.head_dim + (value_width if wide else 0))
    key = key.clamp(-first, first).view(-1, config.head_dim)
    value = value.clamp(-clip, clip).view(-1, value_width) * (config.attention_value_scale or 1)
    gate = query[:, config.head_dim :] if wide else None
    query = query[:, : config.head_dim]
    steps = ["norm", "turn"] if config.qk_norm_config["position"] != "after_rope" else ["turn", "norm"]
    for step in steps:
        if step == "norm" and (config.qk_norm_config["layers"] != "rope" or rotates(config, layer)):
            query, key = norm_heads(parameters, "q_norm", query, config), norm_heads(parameters, "k_norm", key, config)
            if config.clip_qkv_position == "after_norm":
                query, key = query.clamp(-clip, clip), key.clamp(-clip, clip)
        elif step == "turn" and rotates(config, layer):
            query, key = (torch.stack([rotate(head, position, config) for head in heads]) for heads in (query, key))
    return query * temperature(config, layer, position), key, value, gate


def gated(parameters, output, x, gate, config):
    """The output [H, d] of one token, through its gate."""
    if config.attn_output_gate is None:
        return output
    if gate is None:
        gate = parameters["output_gate.g_proj.weight"] @ x
        gate = gate.view(-1, 1) if config.attn_output_gate.startswith("headwise") else gate.view_as(output)
        if config.attn_output_gate.endswith("softplus"):
            return output * torch.log1p(torch.exp(gate))
    return output / (1 + torch.exp(-gate))


def forget_gate(parameters, x, head):
    """log f of one token and head."""
    return -math.log(1 + math.exp(-float(linear(parameters, "f_proj", x)[head])))


def along_the_path(parameters, query, key, between, kv_head):
    """A query, reflected by each of the tokens `between` it and a key, from the newest on, times the key."""
    for x in between:
        direction = (parameters["w_proj.weight"] @ x).view(-1, len(key))[kv_head]
        direction = direction / math.sqrt(float(direction @ direction))
        strength = 2 / (1 + math.exp(-float(linear(parameters, "bt_proj", x)[kv_head])))
        query = query - strength * float(query @ direction) * direction
    return float(query @ key)


def softmax(scores, sink):
    """{key: score} -> {key: weight}"""
    total = sum(math.exp(score) for score in scores.values()) + (0.0 if sink is None else math.exp(sink))
    return {key: math.exp(score) / total for key, score in scores.items()}


def stick_breaking(scores, query):
    """{key: score} -> {key: weight}: each key before the query, from the newest on, breaks its share off what is
    left."""
    left, weights = 1.0, {}
    for key in sorted(scores.keys() - {query}, reverse=True):
        share = 1 / (1 + math.exp(-scores[key]))
        weights[key] = left * share
        left = left * (1 - share)
    return weights


def mixed(weights, tokens, head, config, shared):
    """The values that a head reads, summed by their weights; of a differential head those of a pair."""
    if config.attention_type != "differential":
        readers = [head // shared]
    else:
        pairs = config.num_key_value_heads // 2
        readers = [head // shared % pairs, head // shared % pairs + pairs]
    zero = torch.zeros(len(readers) * tokens[0][2].shape[-1], dtype=torch.double)
    return sum((weight * torch.cat([tokens[key][2][r] for r in readers]) for key, weight in weights.items()), zero)


def value_residual(own, first, weights):
    """The values of a layer and those of the first one for the same tokens, mixed by two weights."""
    return weights[0] * own + weights[1] * first


def differences(parameters, heads, config, layer):
    """[H] outputs of 2v channels -> [H] of v channels."""
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    first, second = (math.exp(float(parameters[f"lambda_q{n}"] @ parameters[f"lambda_k{n}"])) for n in (1, 2))
    half = len(heads) // 2
    pairs = [heads[n] - (first - second + start) * heads[n + half] for n in range(half)]
    pairs = [(1 - start) * normalise(pair, "rms_norm", config.norm_eps) for pair in pairs]
    return list(torch.cat(pairs).view(2 * half, -1))


def attention_row(parameters, x, config, layer, first=0, table=None):
    """What layer `layer` gives for the tokens x [T, D], of which the first `first` are padding (given as zeros)."""
    parameters = {name: value.double() for name, value in parameters.items()}
    x = x.double()
    tokens = [project(parameters, x[t], t, config, layer) for t in range(len(x))]
    scale = config.attention_multiplier if config.attention_multiplier is not None else config.head_dim**-0.5
    if config.scale_attn_by_inverse_layer_idx:
        scale = scale / (layer + 1)
    cap = config.attn_logit_softcapping
    sinks = parameters.get("sinks")
    shared = config.num_attention_heads // config.num_key_value_heads
    rows = []
    for q, (query, _, _, gate) in enumerate(tokens):
        heads = []
        for head in range(config.num_attention_heads):
            scores = {}
            for k, (_, keys, _, _) in enumerate(tokens):
                if not sees(config, layer, q, k, first):
                    continue
                between = [x[token] for token in range(q, max(k + 1, first) - 1, -1)]
                path = between if config.attention_type == "path" else []
                score = along_the_path(parameters, query[head], keys[head // shared], path, head // shared) * scale
                score = cap * math.tanh(score / cap) if cap is not None else score
                scores[k] = score + position_bias(config, table, head, q, k)
                if config.attention_type == "forgetting":
                    scores[k] += sum(forget_gate(parameters, token, head) for token in between)
            sink = None if sinks is None else float(sinks[head])
            weights = stick_breaking(scores, q) if config.attention_type == "stick_breaking" else softmax(scores, sink)
            heads.append(mixed(weights, tokens, head, config, shared))
        heads = differences(parameters, heads, config, layer) if config.attention_type == "differential" else heads
        output = gated(parameters, torch.stack(heads), x[q], gate, config)
        rows.append(linear(parameters, "o_proj", output.flatten()))
    return torch.stack(rows)
