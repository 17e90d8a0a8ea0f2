"""How far layers see: other words in the config, the same weights.

A window, or chunks, change nothing for texts that are not longer; beyond, what lies outside is not seen, and a cache is
bounded. A window of the length that a model was trained for extends it to any length where texts are short-sighted.
"""

from typing import Any

from configuration_zoo import ZooConfig

from .operation import APPROXIMATE, Exactness, Example, Operation, Request, SurgeryError, up_to

TYPES, WINDOW, CHUNK = "layer_types", "sliding_window", "attention_chunk_size"
LIMITS = {"sliding_attention": WINDOW, "chunked_attention": CHUNK, "full_attention": None}


class AttentionSpan(Operation):
    def __init__(self):
        super().__init__("attention span", (TYPES,), (WINDOW, CHUNK), parts=("mixer",))

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return len(self.words(config, fields)) == 1 and self.words(config, fields) <= set(LIMITS)

    def words(self, config: ZooConfig, fields: dict[str, Any]) -> set[str]:
        """The types that layers are to get."""
        wanted = fields.get(TYPES)
        if isinstance(wanted, list):
            both = zip(wanted, config.layer_types, strict=len(wanted) == config.num_hidden_layers)
            return {new for new, old in both if new != old}
        return {wanted}

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(TYPES)
        return [
            index
            for index, kind in enumerate(config.layer_types)
            if kind in LIMITS and (kind != wanted[index] if isinstance(wanted, list) else kind != wanted)
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if "full_attention" not in config.layer_types or config.sliding_window is not None:
            return []
        window = max(2, config.max_position_embeddings // 4)
        fields = {TYPES: "sliding_attention", WINDOW: window}
        return [Example(fields, up_to(window), "a bounded cache: --layers auto:n")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where layers have no window to slide by, or another one."""
        (word,) = self.words(config, request.fields)
        limit = LIMITS[word]
        if limit is not None and request.get(limit, getattr(config, limit)) is None:
            raise SurgeryError(f"{TYPES}={word}: say {limit} as well.")
        if word in config.layer_types and limit in request.fields and request.fields[limit] != getattr(config, limit):
            raise SurgeryError(f"{limit} is one for all: layers of {word!r} already have {getattr(config, limit)}.")
        if config.num_kv_shared_layers:
            raise SurgeryError(f"num_kv_shared_layers={config.num_kv_shared_layers}: layers share keys and values.")
        if len(config.rope_tables) > 1:
            raise SurgeryError("rope_parameters has a table for each type of layer: the rotation would change as well.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        (word,) = self.words(config, request.fields)
        limits = [request.get(LIMITS[word], getattr(config, LIMITS[word]))] if LIMITS[word] else []
        for layer in request.layers:
            if old := LIMITS[config.layer_types[layer]]:
                limits.append(getattr(config, old))
        return up_to(min(limits)) if limits else Exactness(APPROXIMATE)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        (word,) = self.words(config, request.fields)
        types = list(config.layer_types)
        for layer in request.layers:
            types[layer] = word
        said = {name: value for name, value in request.fields.items() if name != TYPES}
        unused = {name: None for kind, name in LIMITS.items() if name and kind not in types}
        return {TYPES: types} | said | unused
