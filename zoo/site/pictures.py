"""The picture of each guide, drawn from models: their layers, the weights of their attention, the choices of their
routers, the angles of their rotations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.activations import ACT2FN

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from description_zoo.picture import architecture_svg
from modeling_zoo import ZooForCausalLM
from modeling_zoo.mlp_routers import Router
from modeling_zoo.position_rotary import RotaryEmbedding
from modeling_zoo.position_tables import alibi_slopes

from .concept import PLAIN, Concept
from .plots import curves, head_groups, maps

TEXT = Path(__file__).resolve().parents[2] / "examples" / "corpora" / "shakespeare.txt"
TOKENS = 24
# What is small enough for a map of 24 tokens.
TO_FIT = {"sliding_window": 6, "attention_chunk_size": 6, "sparse_attention_stride": 5, "index_topk": 6}

Pictures = dict[str, str]


def pictures_of(concept: Concept) -> Pictures:
    """{what it shows: an SVG document} for a guide; {} for none."""
    return PICTURES[concept.picture](concept)


def layer(concept: Concept) -> Pictures:
    """The model with the concept, layers that repeat once."""
    fields, _ = concept.sizes()
    return {f"a model with {', '.join(concept.config)}": architecture_svg(measure(ZooConfig(**fields)))}


def blocks(concept: Concept) -> Pictures:
    """One layer of each topology that differs in its norms."""
    small = {**PLAIN, "num_hidden_layers": 1}
    names = ("pre_norm", "post_norm", "output_norm", "sandwich_norm")
    return {name: architecture_svg(measure(ZooConfig(**small, block_type=name))) for name in names}


def heads(concept: Concept) -> Pictures:
    """Which keys and values the heads of three models read."""
    rows = []
    for name, keys in (("multi-head", 8), ("grouped-query", 2), ("multi-query", 1)):
        config = ZooConfig(**PLAIN | {"num_attention_heads": 8, "num_key_value_heads": keys})
        rows.append((name, config.num_attention_heads, config.num_key_value_heads))
    return {"which keys and values each query head reads": head_groups("heads that share keys and values", rows)}


def masks(concept: Concept) -> Pictures:
    """The weights of the first head in every layer that differs from those before it, after a random start."""
    fields = concept.sizes(small=True)[0]
    fields |= {name: size for name, size in TO_FIT.items() if fields.get(name)}
    model = small_model(fields)
    weights = model(some_text(), output_attentions=True, use_cache=False).attentions
    panels, seen = [], set()
    for index, entry in enumerate(weights):
        name = words_of(model.config, index)
        if entry is not None and name not in seen:
            seen.add(name)
            panels.append((name, entry[0, 0].tolist()))
    title = "weights of one head, random model"
    return {title: maps(title, panels, "token that looks", "token that is seen")}


def words_of(config: ZooConfig, index: int) -> str:
    """What the layer of a map is."""
    pattern = config.sparse_pattern_of(index)
    if pattern != "none":
        return pattern
    kind = config.layer_types[index].removesuffix("_attention")
    attention = config.attention_types[index]
    return kind if attention in ("grouped_query", "latent") else attention


def states(concept: Concept) -> Pictures:
    """The layers, and how much each number of a recurrent state holds after some tokens."""
    model, panels = small_model(concept.sizes(small=True)[0]), []
    for count in (1, 6, TOKENS):
        cache = model(some_text()[:, :count], use_cache=True).past_key_values
        state = cache.layers[0].recurrent_states[0][0, 0]
        panels.append((f"after {count}", state.abs().tolist()))
    title = "a head's state, random model"
    return layer(concept) | {title: maps(title, panels, "channel of a key", "channel of a value", by_row=False)}


def routing(concept: Concept) -> Pictures:
    """Shares of the experts in the first sparse layer for a line of text."""
    model, found = small_model(concept.sizes(small=True)[0]), []
    router = next(module for module in model.modules() if isinstance(module, Router))
    router.register_forward_hook(lambda module, given, result: found.append(result))
    model(some_text(), use_cache=False)
    logits, weights, chosen = found[0]
    shares = torch.zeros_like(logits.float()).scatter(-1, chosen, weights.float()).view(TOKENS, -1)
    panels = [("what each token goes to", shares.T.tolist())]
    return {"a router's choice": maps("a router's choice, random model", panels, "expert", "token")}


def activations(concept: Concept) -> Pictures:
    """Functions between the matrices of an MLP."""
    places = [step / 10 - 4 for step in range(81)]
    series = []
    for name in ("silu", "gelu", "relu", "relu2"):
        values = ACT2FN[name](torch.tensor(places)).tolist()
        series.append((name, [(x, y) for x, y in zip(places, values, strict=True) if y <= 4]))
    return {"activations": curves("activations", series, "x", "", ((0.0, "0"), (4.0, "4")))}


def caps(concept: Concept) -> Pictures:
    """Soft caps beside the line that they bend."""
    places = [float(step) for step in range(-150, 151, 2)]
    series = [("none", [(x, x) for x in places if abs(x) <= 80])]
    for cap in (50.0, 30.0):
        values = (cap * torch.tanh(torch.tensor(places) / cap)).tolist()
        series.append((f"cap {cap:g}", list(zip(places, values, strict=True))))
    ticks = tuple((value, f"{value:g}") for value in (-50.0, -30.0, 0.0, 30.0, 50.0))
    return {"soft caps": curves("c tanh(x / c)", series, "score", "", ticks)}


def rotations(concept: Concept) -> Pictures:
    """Turns of each pair of channels over 8,192 tokens, by the model's own tables."""
    long = {"factor": 4.0, "original_max_position_embeddings": 8192}
    tables = {
        "base 10,000": {"rope_type": "default", "rope_theta": 10000.0},
        "base 500,000": {"rope_type": "default", "rope_theta": 500000.0},
        "linear x 4": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        "yarn x 4": {"rope_type": "yarn", "rope_theta": 10000.0, **long},
        "llama3 x 4": {"rope_type": "llama3", "rope_theta": 10000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | long,
    }
    series = []
    for name, table in tables.items():
        config = ZooConfig(**PLAIN | {"rope_parameters": table, "max_position_embeddings": 32768})
        turns = RotaryEmbedding(config).inv_freq.double() * 8192 / (2 * torch.pi)
        series.append((name, [(float(pair), float(turn.log10())) for pair, turn in enumerate(turns)]))
    ticks = tuple((float(power), f"{10.0**power:g}") for power in range(-2, 4))
    return {"rotations": curves("turns over 8,192 tokens", series, "pair of channels of a head", "", ticks)}


def biases(concept: Concept) -> Pictures:
    """What ALiBi subtracts from the scores of each head."""
    series = []
    for head, slope in enumerate(alibi_slopes(8).tolist()):
        if head % 2 == 0 or head == 7:
            line = [(float(distance), -slope * distance) for distance in range(129) if slope * distance <= 16]
            series.append((f"head {head}", line))
    return {"ALiBi": curves("what ALiBi adds to scores", series, "tokens back", "", ((0.0, "0"), (-16.0, "-16")))}


def some_text() -> torch.Tensor:
    """The first bytes of the bundled text: `[1, TOKENS]`."""
    return torch.tensor([list(TEXT.read_bytes()[:TOKENS])])


def small_model(fields: dict[str, Any]) -> ZooForCausalLM:
    """A model of random weights, large enough that its choices differ, without gradients."""
    torch.manual_seed(0)
    model = ZooForCausalLM._from_config(ZooConfig(**fields), attn_implementation="eager").eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(4)
    return model


PICTURES: dict[str, Callable[[Concept], Pictures]] = {
    "activations": activations,
    "biases": biases,
    "blocks": blocks,
    "caps": caps,
    "heads": heads,
    "hybrid": states,
    "layer": layer,
    "masks": masks,
    "none": lambda concept: {},
    "rotations": rotations,
    "routing": routing,
}
