"""Rotary position embedding: pair j of the channels of a query or key at position p is rotated by the angle p · θ_j.

    (a, b) → (a cos(p θ_j) - b sin(p θ_j), b cos(p θ_j) + a sin(p θ_j)),   θ_j = rope_theta^(-2j / r)

So the score of a query and a key depends on how far apart they are alone (Su et al. 2021, RoFormer, §3.2). The modules
here hold the angles, one table for each rotation of a model; `ops_rotary` rotates.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from configuration_zoo import ZooConfig

from .ops_rotary import REPEAT, share_tables


class RopeSettings(SimpleNamespace):
    """What transformers' rope functions read from a config, for one rotation."""

    def standardize_rope_params(self) -> None:
        """The parameters already are in transformers' standard form."""


class RotaryEmbedding(nn.Module):
    """cos and sin of position · inv_freq, `[B, T]` → two of `[B, T, r]` (Su et al. 2021).

    The frequencies of every scaling are transformers' own. `settings` holds rope_parameters, head_dim (the width that
    rotates) and max_position_embeddings; `keep_float32` leaves cos and sin in float32.
    """

    def __init__(self, settings: RopeSettings, interleave: bool = False, keep_float32: bool = False):
        super().__init__()
        self.config = settings
        self.interleave = interleave
        self.keep_float32 = keep_float32
        self.rope_type = settings.rope_parameters["rope_type"]
        self.max_seq_len_cached = settings.max_position_embeddings
        self.original_max_seq_len = settings.max_position_embeddings
        inv_freq, self.attention_scaling = self.frequencies()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def computed_buffers(self) -> dict[str, torch.Tensor]:
        """What the buffers hold before the first long sequence; no checkpoint has them."""
        self.max_seq_len_cached = self.original_max_seq_len
        inv_freq, _ = self.frequencies()
        return {"inv_freq": inv_freq, "original_inv_freq": inv_freq}

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """(inv_freq `[r / 2]`, factor on cos and sin) for short sequences."""
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        return compute(self.config, None)

    @staticmethod
    def compute_default_rope_parameters(
        config: RopeSettings,
        device: torch.device | None = None,
        seq_len: int | None = None,
        layer_type: str | None = None,
    ) -> tuple[torch.Tensor, float]:
        """inv_freq_j = θ^(-2j / r), r = head_dim · partial_rotary_factor."""
        parameters = config.rope_parameters
        width = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / width
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` gives the device and the dtype alone."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        angles = REPEAT[self.interleave](angles)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1.0:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        dtype = torch.float32 if self.keep_float32 else x.dtype
        return cos.to(dtype), sin.to(dtype)


class Rotations(nn.Module):
    """Every rotation of a model, one table for each that differs in parameters, width, layout or precision; none
    without rotary positions.

    Called like transformers' own rotary modules: x, positions `[B, T]` (and `layer_type` where the parameters are
    nested) → cos, sin `[B, T, r]`. `tables_at` gives all of them; `names` holds the name of each layer's table, None
    for a layer that does not rotate. A table has the name `config.rope_tables` gives it; where layers differ in what is
    behind one name, the number of the first layer is appended.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.names, tables, contents = [], {}, {}
        for layer_idx, layer in enumerate(config.per_layer_config):
            name, table = layer.rope_table_of(layer_idx), None
            if name is not None and layer_idx in config.softmax_layers:
                content = name, self._arguments(layer, layer_idx, name)
                table = next((known for known, other in contents.items() if other == content), None)
                if table is None:
                    table = f"{name}_{layer_idx}" if name in tables else name
                    tables[table], contents[table] = RotaryEmbedding(*content[1]), content
            self.names.append(table)
        common = config.outside_layers()
        for name in common.rope_tables:
            # Parameters that no layer uses: the module still answers for them.
            if name not in tables:
                tables[name] = RotaryEmbedding(*self._arguments(common, (config.softmax_layers or [0])[0], name))
        self.tables = nn.ModuleDict(tables)

    @staticmethod
    def _arguments(layer, layer_idx, name):
        """The arguments of the `RotaryEmbedding` called `name` in layer `layer_idx`; `layer` is that layer's config."""
        longest = layer.max_position_embeddings
        settings = RopeSettings(
            rope_parameters={"original_max_position_embeddings": longest, **layer.rope_tables[name]},
            head_dim=layer.rotary_width(layer_idx),
            hidden_size=layer.hidden_size,
            num_attention_heads=layer.num_attention_heads,
            max_position_embeddings=longest,
        )
        return settings, layer.rope_interleave, layer.precision["rope"] == "float32_trig"

    @property
    def inv_freq(self) -> torch.Tensor:
        """The frequencies `[r / 2]` of a model that has one rotation."""
        return self.tables["default"].inv_freq

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str = "default"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tables[layer_type](x, position_ids)

    def tables_at(self, x: torch.Tensor, position_ids: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
        """{name: tables for `apply_rotary`} at these positions."""
        return {name: share_tables(*table(x, position_ids), table.interleave) for name, table in self.tables.items()}
