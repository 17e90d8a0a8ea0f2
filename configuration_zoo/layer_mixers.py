"""Which mechanism mixes tokens in each layer, by `layer_types` and the fields beside it."""

from .vocabulary import (
    COMPRESSED_SPARSE,
    HEAVILY_COMPRESSED,
    HYBRID,
    HYBRID_LAYERS,
    INDEXED,
    NO_MIXER_LAYERS,
    RECURRENT_LAYERS,
    WITH_RECURRENCE,
)

COMPRESSED_MIXERS = {COMPRESSED_SPARSE: "compressed_sparse", HEAVILY_COMPRESSED: "heavily_compressed"}


class LayerMixers:
    """What `layer_types`, `attention_type` and `linear_attention_type` come to, layer by layer."""

    @property
    def mixer_types(self) -> list[str | None]:
        """The mechanism of each layer: a name of the mixer registry, None for a layer that has no mixer."""
        linear = getattr(self, "linear_attention_type", None)
        by_type = {layer_type: [linear] * self.num_hidden_layers for layer_type in RECURRENT_LAYERS}
        if isinstance(linear, list):
            by_type = dict.fromkeys(RECURRENT_LAYERS, linear)
        by_type |= {layer_type: [None] * self.num_hidden_layers for layer_type in NO_MIXER_LAYERS}
        # The attention of a shared block is not the layer's own.
        recurrences = by_type[RECURRENT_LAYERS[0]]
        shared = [block == "shared_block" for block in self.block_types]
        beside = [name if skip else HYBRID for name, skip in zip(recurrences, shared, strict=False)]
        by_type |= dict.fromkeys(HYBRID_LAYERS, beside)
        in_blocks = [name == "grouped_query" for name in self.attention_types]
        by_type[INDEXED] = ["block_indexed" if blocks else "indexed" for blocks in in_blocks]
        by_type |= {name: [mixer] * self.num_hidden_layers for name, mixer in COMPRESSED_MIXERS.items()}
        by_distance = self.position_embedding_type == "transformer_xl"
        softmax = ["transformer_xl"] * self.num_hidden_layers if by_distance else self.attention_types
        shared = [name == "grouped_query" and self.shares_key_values(index) for index, name in enumerate(softmax)]
        softmax = ["shared_key_value" if skip else name for name, skip in zip(softmax, shared, strict=True)]
        return [by_type.get(layer_type, softmax)[index] for index, layer_type in enumerate(self.layer_types)]

    @property
    def attention_types(self) -> list[str | None]:
        """The mechanism of softmax attention, for each layer."""
        named = self.attention_type
        return named if isinstance(named, list) else [named] * self.num_hidden_layers

    @property
    def recurrent_mixers(self) -> list[str | None]:
        """The recurrence or convolution of each layer, None for a layer without: its `linear_attn`."""
        named = self.linear_attention_type
        named = named if isinstance(named, list) else [named] * self.num_hidden_layers
        return [
            name if layer_type in WITH_RECURRENCE else None
            for name, layer_type in zip(named, self.layer_types, strict=True)
        ]

    @property
    def attention_mixers(self) -> list[str | None]:
        """The attention of each layer, None for a layer without one of its own: its `self_attn`."""
        beside = zip(self.mixer_types, self.attention_types, strict=True)
        mixers = [attention if name == HYBRID else name for name, attention in beside]
        recurrent = [layer_type in RECURRENT_LAYERS for layer_type in self.layer_types]
        shared = [block == "shared_block" for block in self.block_types]
        return [None if r or s else name for name, r, s in zip(mixers, recurrent, shared, strict=True)]

    @property
    def softmax_layers(self) -> list[int]:
        """Indices of the layers with softmax attention, alone or beside a recurrence."""
        without = (*RECURRENT_LAYERS, *NO_MIXER_LAYERS)
        return [index for index, layer_type in enumerate(self.layer_types or ()) if layer_type not in without]

    @property
    def attentions(self) -> set[str]:
        """The distinct mechanisms of softmax attention."""
        if isinstance(self.attention_type, str):
            return {self.attention_type}
        layers = self.softmax_layers if self.layer_types else range(len(self.attention_type))
        named = dict(enumerate(self.attention_type))
        return {named[index] for index in layers if named.get(index) is not None}

    def rotary_width(self, layer_idx: int) -> int:
        """Channels of a head that rotate in layer `layer_idx`, before partial_rotary_factor."""
        return self.rope_head_width if self.attention_types[layer_idx] == "latent" else self.head_dim

    def key_width(self, layer_idx: int) -> int:
        """Channels of a query or key of layer `layer_idx`."""
        latent = self.attention_types[layer_idx] == "latent"
        return self.qk_nope_head_dim + self.qk_rope_head_dim if latent else self.head_dim
