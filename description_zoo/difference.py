"""Two models side by side: the totals, layers and flags in which they differ."""

from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of, spread

from .architecture import architecture
from .measure import pattern_of
from .notebook import pattern

# What a report says of a layer, in the order of the table of `zoo inspect`.
OF_A_LAYER = (
    "mixer", "context", "positions", "features", "residual", "mlp", "differs", "parameters", "cache_bytes_per_token",
    "state_bytes",
)  # fmt: skip
TOTALS = (
    "embedding", "head", "vocab_size", "hidden_size", "parameters", "active_parameters", "embedding_parameters",
    "prediction_parameters", "dtype", "bytes",
)  # fmt: skip
OF_THE_CACHE = ("bytes_per_token", "window_bytes", "state_bytes", "bytes")

Pair = list[Any]


def difference(reports: tuple[dict, dict], configs: tuple[ZooConfig, ZooConfig]) -> dict[str, Any]:
    """What `reported` says of two models at one context -> {"totals": {name: [one, other]}, "layers": [...], "flags":
    {...}}, where they differ.

    A kind of layer stands beside the kind of the other model that it has most in common with: {"layers": ["0-2", "0"],
    "mixer": [one, other]}, None for the model that has no such layers.
    """
    return {
        "totals": differing(*(totals(report) for report in reports)),
        "layers": layers_that_differ(*(report["layers"] for report in reports)),
        "flags": flags_that_differ(*configs),
    }


def differing(one: dict, other: dict) -> dict[str, Pair]:
    """{name: [value here, value there]} of entries that are not the same."""
    names = dict.fromkeys([*one, *other])
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def totals(report: dict) -> dict[str, Any]:
    """What a report says of the whole model, its cache and its operations."""
    found = {"layers": pattern_of(report["layers"])} | {name: report[name] for name in TOTALS}
    found |= {f"cache.{name}": report["cache"][name] for name in OF_THE_CACHE}
    found |= {f"flops.{name}": count for name, count in report["flops"].items()}
    return found | {name: report[name] for name in ("bytes_moved_per_token", "arithmetic_intensity")}


def layers_that_differ(one: list[dict], other: list[dict]) -> list[dict[str, Pair]]:
    """Kinds of layers with what tells them from their like in the other model."""
    theirs, found = kinds_of_layer(other), []
    for where, layer in kinds_of_layer(one):
        alike = max(theirs, key=lambda kind: in_common(layer, kind[1]), default=(None, {}))
        if alike[1]:
            theirs.remove(alike)
        found.append(((where, layer), alike))
    found += [((None, {}), kind) for kind in theirs]
    pairs = [({"layers": where} | layer, {"layers": place} | like) for (where, layer), (place, like) in found]
    rows = [{"layers": [here["layers"], there["layers"]]} | differing(here, there) for here, there in pairs]
    return [row for row in rows if len(row) > 1 or row["layers"][0] != row["layers"][1]]


def kinds_of_layer(layers: list[dict]) -> list[tuple[str, dict]]:
    """(numbers of the layers, what is said of them) for each kind of layer, by its first."""
    kinds = {}
    for layer in layers:
        said = {name: layer[name] for name in OF_A_LAYER}
        kinds.setdefault(repr(said), ([], said))[0].append(layer["layer"])
    return [(numbers(places), said) for places, said in kinds.values()]


def numbers(places: list[int]) -> str:
    """[0, 1, 2, 6] -> "0-2, 6"; [3, 7, 11, 15] -> "3, 7 ... 15", every fourth."""
    steps = {after - before for before, after in zip(places, places[1:], strict=False)}
    if len(places) > 3 and len(steps) == 1 and steps != {1}:
        return f"{places[0]}, {places[1]} ... {places[-1]}"
    runs = [[places[0], places[0]]]
    for place in places[1:]:
        if place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(words if len(words) <= 6 else [*words[:3], f"... {words[-1]}"])


def in_common(one: dict, other: dict) -> tuple[bool, int]:
    """Whether two layers mix tokens by the same mechanism, then how much else is said alike."""
    mixers = [layer["mixer"].partition(" ")[0] for layer in (one, other)]
    return mixers[0] == mixers[1], sum(one[name] == other[name] for name in OF_A_LAYER)


def flags_that_differ(one: ZooConfig, other: ZooConfig) -> dict[str, Pair]:
    """Fields of the architecture, in the order of the config, that either model sets: what is derived from these is
    left out. A list over layers stands there as the pattern that it repeats."""
    found = differing(folded(one), folded(other))
    stated = {name for config in (one, other) for name in spread(config.to_diff_dict(), settings_of(ZooConfig))}
    return {name: found[name] for name in described(ZooConfig) if name in found and name in stated}


def folded(config: ZooConfig) -> dict[str, Any]:
    """The fields of the architecture, lists over layers without their length."""
    fields, depth = architecture(config), config.num_hidden_layers
    return {
        name: pattern(value) if isinstance(value, list) and len(value) == depth else value
        for name, value in fields.items()
    }
