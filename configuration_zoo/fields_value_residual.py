"""Values of a layer mixed with those of the first."""

from dataclasses import dataclass

from .field_kinds import Number, items


@dataclass(kw_only=True, repr=False)
class ValueResidualFields:
    """Value residual (Zhou et al. 2024, arXiv 2410.17897), in the layers of attention_type 'value_residual'."""

    value_residual: list[float | int] | None = items(
        Number(),
        2,
        needs="value residual",
        meaning="Weights of a layer's own values and of those of the first layer, with attention_type "
        "'value_residual'. None: two learned numbers for each layer, 0.5 before training.",
        source="Zhou et al. 2024, arXiv 2410.17897, §3",
    )

    def validate_value_residual(self) -> None:
        mixing = [index for index, name in enumerate(self.attention_mixers) if name == "value_residual"]
        for source, index in zip(mixing[:1] * len(mixing), mixing[1:], strict=False):
            layer = self.per_layer_config[index]
            first = self.per_layer_config[source]
            sizes = [[one.num_key_value_heads, one.value_width] for one in (first, layer)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"attention_type[{index}]='value_residual' mixes in the values of layer {source}, but "
                    f"num_key_value_heads and v_head_dim are {sizes[0]} there and {sizes[1]} in layer {index}."
                )

    @property
    def value_source(self) -> int | None:
        """The first layer with value residual, whose values the later ones mix in; None without one."""
        mixers = enumerate(self.attention_mixers)
        return next((index for index, name in mixers if name == "value_residual"), None)

    def mixes_values(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` mixes in the values of the first such layer."""
        return self.attention_mixers[layer_idx] == "value_residual" and layer_idx != self.value_source
