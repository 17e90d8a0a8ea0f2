"""An embedding of every token for every layer."""

from dataclasses import dataclass

from .field_kinds import size
from .fields_checks import refuse_unless


@dataclass(kw_only=True, repr=False)
class PerLayerInputFields:
    """Per-layer embeddings (Gemma 3n, Gemma 4): a second, narrow table that holds a row per token and layer."""

    hidden_size_per_layer_input: int | None = size(
        meaning="Width of a further embedding of every token for each layer, from a second table. None: no such table.",
        source="Gemma 3n (Google 2025)",
    )
    vocab_size_per_layer_input: int | None = size(
        needs="per-layer input",
        meaning="Tokens of that second table. None: vocab_size.",
        source="Gemma 3n (Google 2025)",
    )

    def resolve_per_layer_input(self) -> None:
        if self.hidden_size_per_layer_input is not None and self.vocab_size_per_layer_input is None:
            self.vocab_size_per_layer_input = self.vocab_size

    def validate_per_layer_input(self) -> None:
        has = self.hidden_size_per_layer_input is not None
        refuse_unless(self, has, "hidden_size_per_layer_input", ("vocab_size_per_layer_input",))
