"""Layers that read the keys and values of an earlier one."""

from dataclasses import dataclass

from .field_kinds import count
from .vocabulary import SHARING_LAYERS

# What a layer and the one whose keys it reads must agree in: how far they see, how keys were turned.
READ_ALIKE = ("sliding_window", "attention_chunk_size", "rope_parameters", "rope_interleave", "precision.rope")


@dataclass(kw_only=True, repr=False)
class KeyValueSharingFields:
    """Keys and values across layers (Brandon et al. 2024, arXiv 2405.12981; Gemma 3n, Gemma 4)."""

    num_kv_shared_layers: int = count(
        0,
        meaning="How many of the last layers have no keys and values of their own: they read those of the last layer "
        "before them of the same type, and cache nothing.",
        source="Brandon et al. 2024, arXiv 2405.12981; Gemma 3n's name",
    )

    def validate_kv_sharing(self) -> None:
        shared = self.num_kv_shared_layers
        if shared >= self.num_hidden_layers:
            raise ValueError(
                f"num_kv_shared_layers={shared} must be at least 0 and below num_hidden_layers="
                f"{self.num_hidden_layers}."
            )
        layers = self.per_layer_config
        if shared and all(layers[index].mixer_types[index] is None for index in range(-shared, 0)):
            raise ValueError(f"num_kv_shared_layers={shared} only means something with attention in those layers.")
        for index in range(self.num_hidden_layers - shared, self.num_hidden_layers):
            if layers[index].mixer_types[index] is not None:
                self._validate_sharer(index, layers)

    def _validate_sharer(self, index, layers):
        says = f"num_kv_shared_layers={self.num_kv_shared_layers} lets layer {index} share,"
        layer_type = self.layer_types[index]
        if layers[index].mixer_types[index] != "shared_key_value" or layer_type not in SHARING_LAYERS:
            raise ValueError(
                f"{says} which needs attention_type='grouped_query', a position_embedding_type other than "
                f"'transformer_xl' and layer_types[{index}] one of {list(SHARING_LAYERS)}, got {layer_type!r}."
            )
        source = self.kv_source_of(index)
        if source is None:
            raise ValueError(
                f"{says} but no layer before it that keeps keys and values is {layer_type!r} in layer_types."
            )
        if self.attention_types[source] != "grouped_query":
            raise ValueError(
                f"{says} but attention_type of layer {source}, whose keys and values it reads, is "
                f"{self.attention_types[source]!r}: it has to be 'grouped_query'."
            )
        one, other = layers[source], layers[index]
        sizes = [[layer.num_key_value_heads, layer.head_dim, layer.value_width] for layer in (one, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{says} but num_key_value_heads, head_dim and v_head_dim are {sizes[0]} in layer {source}, whose "
                f"keys and values it reads, and {sizes[1]} in layer {index}."
            )
        if one.rope_table_of(source) != other.rope_table_of(index):
            raise ValueError(f"{says} so no_rope_layers must say the same for it and for layer {source}.")
        for field in READ_ALIKE:
            if getattr(one, field) != getattr(other, field):
                raise ValueError(
                    f"{says} but {field} is {getattr(one, field)!r} in layer {source}, whose keys and values it reads, "
                    f"and {getattr(other, field)!r} in layer {index}."
                )

    @property
    def first_sharing_layer(self) -> int:
        """The layer from which on all share; of all that layer_types names, however many of them run."""
        return len(self.layer_types) - self.num_kv_shared_layers

    def shares_key_values(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` reads the keys and values of another."""
        return layer_idx >= self.first_sharing_layer

    def kv_source_of(self, layer_idx: int) -> int | None:
        """The layer whose keys and values layer `layer_idx` reads: itself, or the last of its type before the sharing
        ones, None without one."""
        if not self.shares_key_values(layer_idx):
            return layer_idx
        first = self.first_sharing_layer
        layer_type = self.layer_types[layer_idx]
        return max((index for index in range(first) if self.layer_types[index] == layer_type), default=None)

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """transformers' names for it, by which its caches leave a layer out: "store", "reuse" or None."""
        if not self.num_kv_shared_layers:
            return [None for _ in self.layer_types]
        shared = range(self.first_sharing_layer, self.num_hidden_layers)
        sources = {self.kv_source_of(index) for index in shared}
        modes = ["store" if index in sources else None for index in range(self.num_hidden_layers)]
        for index in shared:
            modes[index] = "reuse"
        return modes
