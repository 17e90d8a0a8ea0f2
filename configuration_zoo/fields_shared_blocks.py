"""Transformer blocks that several layers share."""

from dataclasses import dataclass

from .field_kinds import size
from .field_settings import settings_of
from .fields_checks import refuse_unless
from .fields_linear import LINEAR_FIELDS
from .fields_multipliers import HYBRID_FACTORS
from .vocabulary import HYBRID_LAYERS

SHARED_BLOCK_FIELDS = ("num_mem_blocks", "shared_attention_adapter_rank", "shared_mlp_adapter_rank")
# What a shared attention does not compute.
NOT_SHARED = (
    "attention_k_eq_v", "attention_value_scale", "attn_output_gate", "attn_temperature.layers", "clip_qkv",
    "mla_config.output_rank", "mla_config.query_rank", "mup_multipliers.key", "position_config.rope_values",
    "scale_attn_by_inverse_layer_idx", "value_norm",
)  # fmt: skip


@dataclass(kw_only=True, repr=False)
class SharedBlockFields:
    """Blocks of attention and MLP in front of the recurrences of some layers, the layers with block_type "shared_block"
    (Glorioso et al. 2024, Zamba, arXiv 2405.16712)."""

    num_mem_blocks: int | None = size(
        needs="shared block",
        meaning='How many shared blocks take turns over the layers with block_type "shared_block". None: 1.',
        source="Glorioso et al. 2024, Zamba, arXiv 2405.16712; Zamba2's name",
    )
    shared_attention_adapter_rank: int | None = size(
        needs="shared block",
        meaning="Rank of what each of those layers adds to the shared block's queries, keys and values. None: nothing.",
        source="Zamba2, arXiv 2411.15242",
    )
    shared_mlp_adapter_rank: int | None = size(
        needs="shared block",
        meaning="Rank of what each of those layers adds to the first projection of the shared block's MLP. None: "
        "nothing.",
        source="Zamba2, arXiv 2411.15242",
    )

    @property
    def shared_block_layers(self) -> list[int]:
        """The layers that have a shared block."""
        return [index for index, block in enumerate(self.block_types) if block == "shared_block"]

    def resolve_shared_blocks(self) -> None:
        if self.shared_block_layers and self.num_mem_blocks is None:
            self.num_mem_blocks = 1

    def validate_shared_blocks(self) -> None:
        users = self.shared_block_layers
        for layer in self.per_layer_config:
            refuse_unless(layer, bool(users), "a block_type 'shared_block'", SHARED_BLOCK_FIELDS)
        if not users:
            return
        if self.num_mem_blocks > len(users):
            raise ValueError(f"num_mem_blocks={self.num_mem_blocks} exceeds the {len(users)} layers that share them.")
        layers = [self.per_layer_config[index] for index in users]
        # All but what a layer has beside the block.
        attributes = dict.fromkeys(self.per_layer_attributes or ())
        groups = settings_of(type(self))
        attributes = {*attributes} - {*groups} | {
            f"{group}.{key}" for group in attributes.keys() & groups for key in groups[group].keys
        }
        alike = attributes - {*LINEAR_FIELDS, *SHARED_BLOCK_FIELDS}
        for index, layer in zip(users, layers, strict=True):
            self._validate_user(index, layer)
        for field in sorted(alike):
            if len({getattr(layer, field) for layer in layers}) > 1:
                raise ValueError(f"{field} differs between layers with block_type 'shared_block', which share weights.")
        beside = len(users) < sum(layer_type in HYBRID_LAYERS for layer_type in self.layer_types)
        for layer in self.per_layer_config:
            refuse_unless(layer, beside, "a hybrid layer whose block_type is not 'shared_block'", HYBRID_FACTORS)

    def _validate_user(self, index, layer):
        says = f"block_type 'shared_block' of layer {index} needs"
        if self.layer_types[index] not in HYBRID_LAYERS:
            raise ValueError(
                f"{says} layer_types[{index}] 'hybrid' or 'hybrid_sliding', got {self.layer_types[index]!r}."
            )
        if not layer.gated_mlp or self.mlp_layer_types[index] != "dense":
            raise ValueError(f"{says} gated_mlp=True and mlp_layer_types[{index}]='dense'.")
        if layer.attention_types[index] != "grouped_query":
            raise ValueError(f"{says} attention_type='grouped_query', got {layer.attention_types[index]!r}.")
        refuse_unless(layer, False, "layers of a block_type other than 'shared_block'", NOT_SHARED)
