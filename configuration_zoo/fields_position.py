"""Position embeddings: rotary, learned, sinusoidal, ALiBi, relative."""

from dataclasses import dataclass

from .field_kinds import (
    LONGEST,
    Number,
    Table,
    choice,
    count,
    flag,
    length,
    per_layer,
    positive,
    setting,
    settings,
    size,
)
from .field_settings import set_fields
from .fields_checks import for_each_layer, refuse_unless, require
from .vocabulary import (
    ABSOLUTE_POSITIONS,
    ATTENDING_LAYERS,
    HYBRID_LAYERS,
    NO_MIXER_LAYERS,
    PER_HEAD_ATTENTIONS,
    POSITION_BIASES,
    POSITION_EMBEDDINGS,
    RECURRENT_LAYERS,
)

ROPE_CHANNELS = ("first", "last")
SINUSOID_LAYOUTS = ("interleaved", "halves", "closed_halves")
ROPE_KEYS = ("position_config.rope_channels", "position_config.rope_values")
# The scalings of transformers' modeling_rope_utils that a decoder can use.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
TEMPERATURE_LAYERS = ("all", "rope", "no_rope")
# What transformers fills in.
NO_SCALING = {"rope_theta": 10000.0, "rope_type": "default"}


@dataclass(kw_only=True, repr=False)
class PositionFields:
    """Position information: rotary, absolute, relative, linear bias, or none."""

    position_embedding_type: str = choice(
        POSITION_EMBEDDINGS,
        "rope",
        meaning='The kind of position embedding. "transformer_xl": each layer scores distances with projections of '
        'its own; "relative": T5\'s bias by bucket.',
        source="Su et al. 2021, arXiv 2104.09864 (rope); Press et al. 2022, arXiv 2108.12409 (alibi); Dai et al. "
        "2019, arXiv 1901.02860, §3.3; Raffel et al. 2020, arXiv 1910.10683, §2.1",
    )
    max_position_embeddings: int = length(
        4096,
        meaning="The longest sequence: rows of a learned position table, and the length that rope scaling refers to.",
        source="transformers",
    )
    rope_parameters: dict | None = setting(
        Table(),
        None,
        needs="rotation",
        neutral=(NO_SCALING,),
        meaning="The dict of transformers with rope_type, rope_theta, partial_rotary_factor, factor ...: one for all "
        "layers, or one for each layer type, where None means no rotation.",
        source="Su et al. 2021, arXiv 2104.09864; scalings: transformers' modeling_rope_utils",
    )
    rope_interleave: bool | None = flag(
        None,
        needs="rotation",
        meaning="Channels (2j, 2j + 1) rotate together instead of (j, j + d/2). None: no, with rope.",
        source="Su et al. 2021, arXiv 2104.09864 (yes; GPT-J); GPT-NeoX, arXiv 2204.06745 (no)",
    )
    no_rope_layers: list[int] | None = per_layer(
        Number(whole=True, least=0, most=1),
        period=(1, 0),
        needs="rope",
        meaning="One entry for each layer: 1 rotates, 0 does not. A number n: every n-th does not. None: every layer "
        "rotates.",
        source="Kazemnejad et al. 2023, arXiv 2305.19466; SmolLM3's name",
    )
    position_config: dict | None = settings(
        "Details of rotary, learned, sinusoidal and ALiBi positions.",
        offset=count(
            most=LONGEST,
            needs="absolute positions",
            meaning="The number of the first position: rows skipped at the start of a learned table. None: 0.",
            source="fairseq's published code (2, as OPT and XGLM have it)",
        ),
        ids_from_mask=flag(
            None,
            needs="absolute positions",
            meaning="Where no positions are given they count the attended tokens, so that padding takes none.",
            source="OPT's published code",
        ),
        sinusoid_layout=choice(
            SINUSOID_LAYOUTS,
            needs="sinusoidal",
            meaning="Order of the sinusoids: sine and cosine alternate (interleaved), sines before cosines (halves), "
            "or so with wave lengths from 1 to 10000 inclusive (closed_halves). None: interleaved.",
            source="Vaswani et al. 2017, §3.5; CTRL, arXiv 1909.05858; tensor2tensor",
        ),
        alibi_scaled=flag(
            None,
            needs="alibi",
            meaning="The bias of ALiBi is multiplied by the attention scale.",
            source="Falcon's published code",
        ),
        rope_channels=choice(
            ROPE_CHANNELS,
            needs="rotation",
            meaning="With a partial_rotary_factor the first channels of a head rotate, or the last. None: first.",
            source="GPT-J's published code (first); DeepSeek-V4 (last)",
        ),
        rope_values=flag(
            None,
            needs="rotation",
            meaning="Values rotate as keys do, and what a query reads of them is rotated back by its own position. "
            "With attention_k_eq_v the values are the keys, normed and rotated, and are cached once.",
            source="VO-RoPE (Su 2025); DeepSeek-V4, §2.3.3",
        ),
    )
    relative_attention_num_buckets: int | None = size(
        needs="relative",
        meaning="Buckets of the relative bias, of which there is one table for all layers. None: 32.",
        source="Raffel et al. 2020, arXiv 1910.10683, §2.1",
    )
    relative_attention_max_distance: int | None = length(
        needs="relative",
        meaning="Distance from which on all share the last bucket. None: 128.",
        source="Raffel et al. 2020, arXiv 1910.10683, §2.1",
    )
    attn_temperature: dict | None = settings(
        "Queries are scaled by their position: by 1 + scale · log(1 + floor((position + offset) / floor_scale)).",
        layers=choice(
            TEMPERATURE_LAYERS,
            needs="temperature",
            meaning="In which layers: in all, in those that rotate, or in those that do not. None: nowhere.",
            source="Nakanishi 2025, arXiv 2501.19399; Llama 4 (Meta 2025)",
        ),
        scale=positive(
            needs="attn_temperature.layers",
            meaning="Strength of the query temperature.",
            source="Llama 4 (Meta 2025)",
        ),
        floor_scale=positive(
            needs="attn_temperature.layers",
            meaning="How many positions a step of the query temperature lasts.",
            source="Llama 4 (Meta 2025)",
        ),
        offset=count(
            most=LONGEST,
            needs="attn_temperature.layers",
            meaning="Added to the position before the steps are counted. None: 0.",
            source="Llama 4's published code (1); Ministral 3's (0)",
        ),
    )

    def resolve_position(self) -> None:
        kind = self.position_embedding_type
        if kind == "rope":
            self.rope_interleave = bool(self.rope_interleave)
        if kind in ABSOLUTE_POSITIONS:
            set_fields(self, {"position_config.offset": self.position_config["offset"] or 0})
        if kind == "sinusoidal":
            layout = self.position_config["sinusoid_layout"] or SINUSOID_LAYOUTS[0]
            set_fields(self, {"position_config.sinusoid_layout": layout})
        if kind == "alibi":
            set_fields(self, {"position_config.alibi_scaled": bool(self.position_config["alibi_scaled"])})
        if kind == "relative":
            self.relative_attention_num_buckets = self.relative_attention_num_buckets or 32
            self.relative_attention_max_distance = self.relative_attention_max_distance or 128
        if self.attn_temperature["layers"] is not None:
            set_fields(self, {"attn_temperature.offset": self.attn_temperature["offset"] or 0})

    @for_each_layer
    def validate_position(self) -> None:
        kind = self.position_embedding_type
        rope_fields = ("rope_parameters", "rope_interleave", "no_rope_layers", *ROPE_KEYS)
        refuse_unless(self, kind == "rope", "position_embedding_type='rope'", rope_fields)
        refuse_unless(
            self, kind == "sinusoidal", "position_embedding_type='sinusoidal'", ("position_config.sinusoid_layout",)
        )
        refuse_unless(self, kind == "alibi", "position_embedding_type='alibi'", ("position_config.alibi_scaled",))
        relative = ("relative_attention_num_buckets", "relative_attention_max_distance")
        refuse_unless(self, kind == "relative", "position_embedding_type='relative'", relative)
        absolute = ("position_config.offset", "position_config.ids_from_mask")
        refuse_unless(self, kind in ABSOLUTE_POSITIONS, "learned or sinusoidal positions", absolute)
        temperature = ("attn_temperature.scale", "attn_temperature.floor_scale", "attn_temperature.offset")
        if self.attn_temperature["layers"] is None:
            refuse_unless(self, False, "attn_temperature.layers", temperature)
        else:
            require(self, "attn_temperature.layers", temperature)
        if kind == "transformer_xl" and self.attentions - {"grouped_query"}:
            raise ValueError("position_embedding_type='transformer_xl' needs attention_type='grouped_query'.")
        if kind in POSITION_BIASES and set(self.layer_types) <= {
            *RECURRENT_LAYERS,
            *NO_MIXER_LAYERS,
        }:
            raise ValueError(f"position_embedding_type={kind!r} needs a softmax attention layer in layer_types.")
        if kind == "transformer_xl" and any(layer_type in HYBRID_LAYERS for layer_type in self.layer_types):
            raise ValueError("position_embedding_type='transformer_xl' needs layer_types without hybrid layers.")
        widths = {self.key_width(index) for index in self.softmax_layers}
        if self.position_config["alibi_scaled"] and len(widths) > 1:
            raise ValueError(
                "position_config.alibi_scaled=True needs heads of one width, so one attention_type for all layers."
            )
        self._validate_rotations()
        self._validate_rotated_values()

    def _validate_rotations(self):
        for index, entry in enumerate(self.no_rope_layers or ()):
            if entry not in (0, 1):
                raise ValueError(f"no_rope_layers[{index}]={entry} must be 1 (rotates) or 0 (does not).")
        still = [
            layer_type
            for layer_type, entry in zip(self.layer_types, self.no_rope_layers or (), strict=False)
            if entry == 0
        ]
        if still and not any(layer_type in ATTENDING_LAYERS for layer_type in still):
            raise ValueError(
                f"no_rope_layers={self.no_rope_layers} only means something with a layer of layer_types with softmax "
                "attention where it has a 0: leave it out or change that."
            )
        if self.relative_attention_num_buckets is not None and self.relative_attention_num_buckets < 4:
            raise ValueError(
                f"relative_attention_num_buckets={self.relative_attention_num_buckets} must be at least 4: "
                "half of the buckets hold exact distances, half grow with the logarithm."
            )
        if 2 * (self.relative_attention_max_distance or 2) <= (self.relative_attention_num_buckets or 0):
            raise ValueError(
                f"relative_attention_max_distance={self.relative_attention_max_distance} must be above half of "
                f"relative_attention_num_buckets={self.relative_attention_num_buckets}, which hold exact distances."
            )
        for name, table in self.rope_tables.items():
            theta = table.get("rope_theta")
            if not isinstance(theta, (int, float)) or isinstance(theta, bool) or theta <= 0:
                raise ValueError(f"rope_parameters: rope_theta={theta!r} of {name!r} must be a number greater than 0.")
            partial = table.get("partial_rotary_factor", 1.0)
            if not isinstance(partial, (int, float)) or not 0 < partial <= 1:
                raise ValueError(f"rope_parameters: partial_rotary_factor={partial!r} of {name!r} must be in (0, 1].")
            kind = table.get("rope_type", "default")
            if kind not in ROPE_TYPES:
                raise ValueError(f"rope_parameters: rope_type={kind!r} of {name!r} is not one of {list(ROPE_TYPES)}.")

    def _validate_rotated_values(self):
        per_head = bool(self.attentions & {*PER_HEAD_ATTENTIONS})
        refuse_unless(self, per_head, f"an attention_type of {list(PER_HEAD_ATTENTIONS)}", ROPE_KEYS)
        if not self.position_config["rope_values"]:
            return
        if self.value_width != self.head_dim:
            raise ValueError(
                f"position_config.rope_values=True needs v_head_dim={self.v_head_dim} to be head_dim={self.head_dim}."
            )
        if "differential" in self.attentions:
            raise ValueError(
                "position_config.rope_values=True cannot be combined with attention_type='differential', whose heads "
                "read the values of two side by side."
            )
        for field in ("value_norm", "attention_value_scale") if self.attention_k_eq_v else ():
            if getattr(self, field):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} cannot be combined with attention_k_eq_v=True and "
                    "position_config.rope_values=True: there the values are the keys."
                )

    def validate_rotary_widths(self) -> None:
        for index, layer in enumerate(self.per_layer_config):
            table = layer.rope_tables.get(layer.rope_table_of(index))
            if table is None or layer.layer_types[index] not in ATTENDING_LAYERS:
                continue
            partial, kind = table.get("partial_rotary_factor", 1.0), table.get("rope_type", "default")
            whole = layer.rotary_width(index)
            # "proportional" spreads its angles over the whole head.
            width = whole if kind == "proportional" else int(whole * partial)
            least = 4 if kind == "dynamic" else 2
            if width + width % 2 > whole or width + width % 2 < least:
                raise ValueError(
                    f"rope_parameters: {width} of {whole} channels of a head (head_dim, qk_rope_head_dim) "
                    f"would rotate in layer {index} with partial_rotary_factor={partial}; rope_type={kind!r} turns "
                    f"pairs of channels, at least {least // 2}."
                )
            if layer.indexer_types is not None and layer.index_head_dim < width:
                if layer.indexer_types[index] == "full" and layer.attention_types[index] != "latent":
                    raise ValueError(
                        f"index_head_dim={layer.index_head_dim} must be at least {width}, the channels that rotate in "
                        f"layer {index}: the same rotation turns its first ones."
                    )

    def validate_longrope(self) -> None:
        for index, layer in enumerate(self.per_layer_config):
            table = layer.rope_tables.get(layer.rope_table_of(index), {})
            if table.get("rope_type") != "longrope":
                continue
            pairs = int(layer.rotary_width(index) * table.get("partial_rotary_factor", 1.0)) // 2
            for key in ("short_factor", "long_factor"):
                if key in table and len(table[key]) != pairs:
                    raise ValueError(
                        f"rope_parameters: {key} has {len(table[key])} numbers, "
                        f"but {pairs} pairs of channels rotate in layer {index} (head_dim, qk_rope_head_dim)."
                    )

    @property
    def rope_tables(self) -> dict[str, dict]:
        """Rotation name → parameters: layer types for nested `rope_parameters`, else the one name "default"."""
        parameters = self.rope_parameters or {}
        if any(key in self.layer_types for key in parameters):
            return {key: parameters[key] for key in parameters if key in self.layer_types and parameters[key]}
        return {"default": parameters} if parameters else {}

    def turns(self, layer_idx: int) -> bool:
        """Whether `no_rope_layers` lets layer `layer_idx` rotate."""
        return self.no_rope_layers is None or bool(self.no_rope_layers[layer_idx])

    def rope_table_of(self, layer_idx: int) -> str | None:
        """The name of the rotation layer `layer_idx` uses, None where it does not rotate."""
        if not self.turns(layer_idx):
            return None
        tables = self.rope_tables
        return "default" if "default" in tables else next((n for n in tables if n == self.layer_types[layer_idx]), None)

    def rope_changes_between(self, seen: int, length: int) -> bool:
        """Whether keys cached at a length of `seen` > 0 are rotated otherwise at `length`: LongRoPE's long factors."""
        layers = self.per_layer_config if "rope_parameters" in (self.per_layer_attributes or ()) else [self]
        tables = (table for layer in layers for table in layer.rope_tables.values())
        long = (table for table in tables if table.get("rope_type") == "longrope")
        return any(0 < seen <= table["original_max_position_embeddings"] < length for table in long)

    def has_attention_temperature(self, layer_idx: int) -> bool:
        """Whether the queries of layer `layer_idx` are scaled by position."""
        if self.attn_temperature["layers"] is None:
            return False
        rotates = self.rope_table_of(layer_idx) is not None
        return {"all": True, "rope": rotates, "no_rope": not rotates}[self.attn_temperature["layers"]]
