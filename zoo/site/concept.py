"""What a guide is made of."""

from dataclasses import dataclass, field
from typing import Any

# The plain model that a concept is set beside: pre-norm, RMSNorm, RoPE, as many key-value heads as heads, a gated MLP.
PLAIN = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "max_position_embeddings": 131072,
}
# The same in small, for training on the bundled text: a token is a byte.
SMALL = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 256,
    "initializer": {"residual_type": "depth"},
}


@dataclass(frozen=True)
class Concept:
    """One guide. Its text is `text/<slug>.md`.

    `flags`: fields of the config, `router.` for all keys of a dict; `classes` and `references` as
    `modeling_zoo/norms.py:RMSNorm`, a reference without a folder is in tests/support/; `config` is what the page sets
    on a plain model, `twin` what it is set beside, {} for the plain model itself; `small` and `small_twin` the same at
    the size that is trained, where numbers differ. `trained`: whether the page has an ablation; `match`: which number
    of parameters is made equal there, by the width of the MLP. `curve`: the case of benchmarks/results/decode.json.
    `picture`: the function of pictures.py.
    """

    slug: str
    title: str
    flags: tuple[str, ...]
    classes: tuple[str, ...]
    references: tuple[str, ...]
    config: dict[str, Any]
    sources: tuple[str, ...]
    names: tuple[str, str] = ("with it", "plain")
    twin: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] | None = None
    small_twin: dict[str, Any] | None = None
    trained: bool = True
    match: str = "parameters"
    curve: str | None = None
    picture: str = "layer"
    see: tuple[str, ...] = ()

    def sizes(self, small: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of the model with the concept and of its twin, at either size."""
        if not small:
            return PLAIN | self.config, PLAIN | self.twin
        own = self.config if self.small is None else self.small
        other = self.twin if self.small_twin is None else self.small_twin
        return merged(SMALL, own), merged(SMALL, other)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` over `one`, dicts of settings key by key."""
    both = one | other
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(one.get(name), dict):
            both[name] = one[name] | value
    return both
