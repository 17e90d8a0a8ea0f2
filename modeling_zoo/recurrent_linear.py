"""Linear attention with queries, keys and values: one mixer, whose parts the settings of its mechanism choose.

q, k, v = act(conv(W x))    g = decay(a x)    β = sigmoid(b x)    o = recurrence(q, k, v, β, g)
y = W_o (norm(o) · act(gate(x)))
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .cache_recurrent_view import RecurrentCacheView
from .ops_own_part import all_parts, own_part, split_ways
from .ops_packing import PackedSequences
from .ops_recurrence import delta_rule, linear_attention
from .ops_recurrence_decode import RecurrentState
from .recurrent_convolution import make_convolution
from .recurrent_decays import DECAYS, constant_slopes
from .recurrent_gated_norm import make_output_norm
from .recurrent_mixer import RecurrentMixer, initialize_rates, initialize_time_steps, make_projection, own_output
from .recurrent_rows import TokenRows


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1 > 0 (Katharopoulos et al. 2020)."""
    return F.elu(x) + 1


FEATURE_MAPS = {"elu_plus_one": elu_plus_one, "relu": F.relu, "none": nn.Identity()}


class LinearAttention(RecurrentMixer):
    """S <- Diag(e**g) S + k vᵀ, o = Sᵀq: linear, lightning and gated linear attention, by the decay of the settings.

    q, k of `num_key_heads` heads of `key_head_dim`, v of `num_value_heads` heads of `value_head_dim`. Where a rank has
    some rows of q_proj, k_proj and v_proj, it computes their heads alone.
    """

    # Keys and values that a token writes.
    writes = 1

    has_beta = False
    can_defer = True

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        settings, hidden = self.settings, config.hidden_size
        self.heads = settings.num_value_heads
        self.key_dim = settings.num_key_heads * settings.key_head_dim
        self.value_dim = self.heads * settings.value_head_dim
        self.q_proj = nn.Linear(hidden, self.key_dim, bias=settings.bias)
        self.k_proj = nn.Linear(hidden, self.writes * self.key_dim, bias=settings.bias)
        self.v_proj = nn.Linear(hidden, self.writes * self.value_dim, bias=settings.bias)
        self.conv1d = make_convolution(settings, self.key_dim + self.writes * (self.key_dim + self.value_dim))
        self.feature_map = FEATURE_MAPS[settings.feature_map]
        self.add_decay(config, layer_idx)
        if self.has_beta:
            self.b_proj = nn.Linear(hidden, self.writes * self.heads, bias=False)
        if settings.output_gate != "none":
            self.g_proj = make_projection(hidden, self.value_dim, settings.gate_rank)
        self.o_norm = make_output_norm(settings)
        self.o_proj = nn.Linear(self.value_dim, hidden, bias=settings.bias)

    def add_decay(self, config: ZooConfig, layer_idx: int) -> None:
        settings = self.settings
        self.decay = DECAYS.get(settings.decay)
        self.depth = config.num_hidden_layers
        for name, values in self.computed_buffers().items():
            self.register_buffer(name, values, persistent=False)
        if self.decay is None:
            return
        per_channel = settings.decay_granularity == "channel"
        self.decay_width = settings.key_head_dim if per_channel else None
        width = self.heads * (self.decay_width or 1)
        self.a_proj = make_projection(config.hidden_size, width, settings.decay_rank)
        dtype = torch.float32 if settings.float32_parameters else None
        self.dt_bias = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.A_log = nn.Parameter(torch.zeros(self.heads, dtype=dtype)) if settings.decay != "log_sigmoid" else None

    def computed_buffers(self) -> dict[str, torch.Tensor]:
        """Rates that are not learned; no checkpoint has them."""
        if self.settings.decay != "constant":
            return {}
        return {"slopes": torch.tensor(constant_slopes(self.heads, self.layer_idx, self.depth))}

    def initialize(self, std: float) -> None:
        for name, values in self.computed_buffers().items():
            init.copy_(getattr(self, name), values)
        if self.decay is None:
            return
        if self.A_log is None:
            init.zeros_(self.dt_bias)
        else:
            initialize_rates(self.A_log)
            initialize_time_steps(self.dt_bias, self.settings)

    def log_decay(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """g `[B, T, H]` or `[B, T, H, K]`, float32; None for no decay."""
        if self.settings.decay == "constant":
            return -own_part(self.slopes, self.v_proj).expand(*hidden_states.shape[:2], -1)
        if self.decay is None:
            return None
        projected = own_output(self.a_proj(hidden_states), self.a_proj, self.v_proj).float()
        bias = own_part(self.dt_bias, self.v_proj).float()
        rate = None if self.A_log is None else own_part(self.A_log, self.v_proj).float()
        if self.decay_width is not None:
            projected, bias = (x.unflatten(-1, (-1, self.decay_width)) for x in (projected, bias))
            rate = None if rate is None else rate.unsqueeze(-1)
        log_decay = self.decay(projected, rate, bias, self.settings)
        return log_decay.to(hidden_states.dtype) if self.settings.decay_dtype == "activation" else log_decay

    def beta(self, hidden_states: torch.Tensor, rows: TokenRows) -> torch.Tensor | None:
        """The strength of a write, `[B, T, H]`, 0 where there is no token; None for 1."""
        if rows.valid is None:
            return None
        return rows.valid.unsqueeze(-1).expand(-1, -1, self.heads // split_ways(self.v_proj)).float()

    def recurrence(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor,
        beta: torch.Tensor | None,
        log_decay: torch.Tensor | None,
        state: RecurrentState,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, RecurrentState]:
        scale = self.settings.multiplier
        return linear_attention(query, key, value, beta, log_decay, state, scale=scale, packed=packed)

    def split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """`[B, T, C]` → q and k together `[B, T, 2, H', K]`, None, v `[B, T, H, V]`."""
        settings, ways = self.settings, split_ways(self.v_proj)
        pair, value = mixed.split([2 * self.key_dim // ways, self.value_dim // ways], dim=-1)
        pair = self.feature_map(pair.view(*pair.shape[:2], 2, -1, settings.key_head_dim))
        return pair, None, value.view(*value.shape[:2], -1, settings.value_head_dim)

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        sources = self.q_proj, self.k_proj, self.v_proj
        mixed = self.conv1d(torch.cat([source(hidden_states) for source in sources], dim=-1), cache, rows, sources)
        query, key, value = self.split(mixed)
        log_decay = self.log_decay(hidden_states)
        log_decay = None if log_decay is None else rows.mask_padding(log_decay)
        beta = self.beta(hidden_states, rows)
        output = cache.recur(self.recurrence, (query, key, value, beta, log_decay), rows.packed, self.can_defer)
        return self.output(output.flatten(-2).to(hidden_states.dtype), hidden_states)

    def output(self, output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Norm, gate and output projection, `[B, T, H · V]` → `[B, T, D]`; a norm over all heads sees those of all
        ranks."""
        whole = self.settings.output_norm == "full"
        gate = self.g_proj(hidden_states) if self.settings.output_gate != "none" else None
        if whole:
            return self.o_proj(self.o_norm(all_parts(output, self.v_proj), gate))
        gate = None if gate is None else own_output(gate, self.g_proj, self.v_proj)
        return self.o_proj(self.o_norm(output, gate, self.v_proj))


class DeltaAttention(LinearAttention):
    """S <- Diag(e**g) S + β k (v - Sᵀk)ᵀ, o = Sᵀq: DeltaNet (Schlag et al. 2021), Gated DeltaNet (Yang et al. 2024) and
    Kimi delta attention (Moonshot 2025), by the decay of the settings.

    β in (0, 1), or (0, 2) with `allow_neg_eigval` (Grazzi et al. 2024).
    """

    has_beta = True

    def beta(self, hidden_states: torch.Tensor, rows: TokenRows) -> torch.Tensor:
        beta = self.b_proj(hidden_states).sigmoid()
        return rows.mask_padding(beta * 2.0 if self.settings.allow_neg_eigval else beta)

    def recurrence(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor,
        beta: torch.Tensor,
        log_decay: torch.Tensor | None,
        state: RecurrentState,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, RecurrentState]:
        scale, normalize = self.settings.multiplier, self.settings.qk_norm == "l2"
        inputs = (query, key, value, beta, log_decay, state)
        return delta_rule(*inputs, scale=scale, normalize=normalize, packed=packed)
