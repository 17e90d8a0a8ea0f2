"""Rotary position embedding: one table of angles per rotation a model uses, and the two ways channels pair up.

A pair of channels (a, b) at position p turns by p · θ_j: (a cos - b sin, b cos + a sin). GPT-NeoX and Llama pair
channel j with j + d/2 ("half"), GPT-J pairs 2j with 2j + 1 ("interleaved"). The two are the same up to a permutation
of the rows of the query and key projections, which is why published code mixes them up so easily.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .ops_dispatch import is_traced


def rotate_half(x):
    """(x1, x2) → (-x2, x1) for the two halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_pairs(x):
    """(x0, x1, x2, x3, ...) → (-x1, x0, -x3, x2, ...) along the last dimension."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def swap_halves(x):
    """(x1, x2) → (x2, x1) for the two halves of the last dimension."""
    return x.roll(x.shape[-1] // 2, -1)


def swap_pairs(x):
    """(x0, x1, x2, x3, ...) → (x1, x0, x3, x2, ...) along the last dimension."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


# interleave flag → how channels pair, how a row of angles is spread over the channels, and the partner of each channel
# in its place without the sign.
ROTATIONS = {
    False: (rotate_half, lambda angles: torch.cat((angles, angles), dim=-1), swap_halves),
    True: (rotate_pairs, lambda angles: angles.repeat_interleave(2, dim=-1), swap_pairs),
}


class Turn(tuple):
    """(cos, sin) `[B, T, r]` of one call, which keeps what all its layers would make of them: the sign of a rotation
    moved from the states to the sine, x cos + swap(x) (± sin), the same products and sums."""

    def signed(self, interleave):
        """cos and ± sin, `[B, T, 1, r]` each."""
        known = vars(self)
        if interleave not in known:
            cos, sin = self
            rotate, _, swap = ROTATIONS[interleave]
            sin = rotate(swap(sin))
            known[interleave] = cos.unsqueeze(2), sin.unsqueeze(2)
        return known[interleave]


def apply_rotary(x, position_embeddings, interleave=False, lift=False, whole=False):
    """Rotates the first channels of `x` `[B, T, H, d]` by cos and sin `[B, T, r]`, r ≤ d; the rest passes through.

    With `lift` the product is taken in float32. `whole` says that r = d, for who traces without sizes. The result has
    the dtype of `x`.
    """
    if type(position_embeddings) is Turn:
        rotate, (cos, sin) = ROTATIONS[interleave][2], position_embeddings.signed(interleave)
    else:
        rotate = ROTATIONS[interleave][0]
        cos, sin = position_embeddings[0].unsqueeze(2), position_embeddings[1].unsqueeze(2)
    width = cos.shape[-1]
    turning, still = (x, None) if whole or width == x.shape[-1] else (x[..., :width], x[..., width:])
    if lift:
        turning = turning.float()
    # No branch on a dtype: vLLM reads attention from a symbolic trace, which a question to a tensor ends.
    turned = (turning * cos + rotate(turning) * sin).to(x.dtype)
    return turned if still is None else torch.cat((turned, still), dim=-1)


class RopeSettings(SimpleNamespace):
    """What transformers' rope functions read from a config, for one rotation."""

    def standardize_rope_params(self):
        """The parameters already are in transformers' standard form."""


class RotaryEmbedding(nn.Module):
    """cos and sin of position · inv_freq, `[B, T]` → two of `[B, T, r]` (Su et al. 2021).

    The frequencies of every scaling are transformers' own. `settings` holds rope_parameters, head_dim (the width that
    turns) and max_position_embeddings.
    """

    def __init__(self, settings, interleave=False, keep_float32=False):
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

    def computed_buffers(self):
        """What the buffers hold before the first long sequence; no checkpoint has them."""
        self.max_seq_len_cached = self.original_max_seq_len
        inv_freq, _ = self.frequencies()
        return {"inv_freq": inv_freq, "original_inv_freq": inv_freq}

    def frequencies(self):
        """(inv_freq `[r / 2]`, factor on cos and sin) for short sequences."""
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        return compute(self.config, None)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, seq_len=None, layer_type=None):
        """inv_freq_j = θ^(-2j / r), r = head_dim · partial_rotary_factor."""
        parameters = config.rope_parameters
        width = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / width
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x, position_ids):
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        spread = ROTATIONS[self.interleave][1](angles)
        cos, sin = spread.cos(), spread.sin()
        if self.attention_scaling != 1.0:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        dtype = torch.float32 if self.keep_float32 else x.dtype
        return cos.to(dtype), sin.to(dtype)


class Rotations(nn.Module):
    """Every rotation of a model, one table for each that differs in parameters, width, layout or precision; none
    without rotary positions.

    Called like transformers' own rotary modules: x, positions `[B, T]` (and `layer_type` where the parameters are
    nested) → cos, sin `[B, T, r]`. `tables_at` gives all of them; `names` says for each layer which is its own, None
    for a layer that does not rotate. A table has the name `config.rope_tables` gives it; further ones of a name have
    the number of their first layer behind it.
    """

    def __init__(self, config):
        super().__init__()
        self.names, tables, distinct = [], {}, []
        for layer_idx, layer in enumerate(config.per_layer_config):
            name, made = layer.rope_table_of(layer_idx), None
            if name is not None and layer_idx in config.softmax_layers:
                settings = self._settings(layer, layer_idx, name)
                made = next((known for known, same in distinct if same == (name, settings)), None)
                if made is None:
                    made = f"{name}_{layer_idx}" if name in tables else name
                    tables[made] = RotaryEmbedding(*settings)
                    distinct.append((made, (name, settings)))
            self.names.append(made)
        common = config.outside_layers()
        for name in common.rope_tables:
            # Parameters that no layer uses: the module still answers for them.
            if name not in tables:
                tables[name] = RotaryEmbedding(*self._settings(common, (config.softmax_layers or [0])[0], name))
        self.tables = nn.ModuleDict(tables)

    @staticmethod
    def _settings(layer, layer_idx, name):
        """What the table called `name` in layer `layer_idx`, with that layer's view of the config, is made of."""
        longest = layer.max_position_embeddings
        settings = RopeSettings(
            rope_parameters={"original_max_position_embeddings": longest, **layer.rope_tables[name]},
            head_dim=layer.rotary_width(layer_idx),
            hidden_size=layer.hidden_size,
            num_attention_heads=layer.num_attention_heads,
            max_position_embeddings=longest,
        )
        return settings, layer.rope_interleave, layer.rope_dtype == "float32_trig"

    @property
    def inv_freq(self):
        """The frequencies `[r / 2]` of a model that has one rotation."""
        return self.tables["default"].inv_freq

    def forward(self, x, position_ids, layer_type="default"):
        return self.tables[layer_type](x, position_ids)

    def tables_at(self, x, position_ids):
        """{name: (cos, sin)} at these positions."""
        found = {name: table(x, position_ids) for name, table in self.tables.items()}
        return found if is_traced() or torch.is_grad_enabled() else {name: Turn(pair) for name, pair in found.items()}
