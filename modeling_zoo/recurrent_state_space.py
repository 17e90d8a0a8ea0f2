"""State space mixers, the real-gated linear recurrent unit and the gated short convolution."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .cache_recurrent_view import RecurrentCacheView
from .norms import RMSNorm
from .ops_own_part import own_part
from .ops_packing import PackedSequences
from .ops_recurrence_decode import RecurrentState
from .ops_state_space import gated_linear_unit, grouped_selective_scan, state_space_duality
from .recurrent_convolution import make_convolution
from .recurrent_gated_norm import make_output_norm
from .recurrent_mixer import RecurrentMixer, initialize_rates, initialize_time_steps
from .recurrent_rows import TokenRows


class StateSpaceDuality(RecurrentMixer):
    """z, x, B, C, Δ = W x;  x, B, C = act(conv(x, B, C));  y = SSD(x, softplus(Δ + b), B, C);  W_o norm(y · act(z)).

    Mamba-2 (Dao and Gu 2024). `num_value_heads` heads of `value_head_dim` share the B and C of `num_key_heads` groups
    of `key_head_dim` states; Δ stays within `time_step_limit`. Multipliers on input, output and the five sections
    z, x, B, C, Δ (Falcon-H1; muP).
    """

    can_defer = True

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        settings, hidden = self.settings, config.hidden_size
        self.heads = settings.num_value_heads
        self.inner = self.heads * settings.value_head_dim
        self.states = settings.num_key_heads * settings.key_head_dim
        self.gate_width = 0 if settings.output_gate == "none" else self.inner
        self.sections = [self.gate_width, self.inner, self.states, self.states, self.heads]
        self.in_proj = nn.Linear(hidden, sum(self.sections), bias=settings.bias)
        self.conv1d = make_convolution(settings, self.inner + 2 * self.states)
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.o_norm = make_output_norm(settings)
        self.o_proj = nn.Linear(self.inner, hidden, bias=settings.bias)
        for name, values in self.computed_buffers().items():
            self.register_buffer(name, values, persistent=False)

    def computed_buffers(self) -> dict[str, torch.Tensor]:
        """The multipliers, spread over their sections; no checkpoint has them."""
        if self.settings.section_multipliers is None:
            return {}
        pairs = zip(self.sections, self.settings.section_multipliers, strict=True)
        return {"section_scale": torch.cat([torch.full((size,), float(factor)) for size, factor in pairs])}

    def initialize(self, std: float) -> None:
        initialize_rates(self.A_log)
        initialize_time_steps(self.dt_bias, self.settings)
        init.ones_(self.D)
        for name, values in self.computed_buffers().items():
            init.copy_(getattr(self, name), values)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`[B, T, D]` -> z, [x|B|C] and Δ."""
        settings = self.settings
        if settings.in_multiplier is not None:
            hidden_states = hidden_states * settings.in_multiplier
        projected = self.in_proj(hidden_states)
        if settings.section_multipliers is not None:
            projected = projected * self.section_scale.to(projected.dtype)
        return projected.split([self.gate_width, self.inner + 2 * self.states, self.heads], dim=-1)

    def time_step(self, projected: torch.Tensor) -> torch.Tensor:
        """Δ = softplus(projected + dt_bias) within `time_step_limit`, `[B, T, H]`."""
        low, high = self.settings.time_step_limit or (None, None)
        steps = F.softplus(projected + self.dt_bias.to(projected.dtype))
        return steps if low is None and high is None else steps.clamp(min=low, max=high)

    def recurrence(
        self,
        inputs: torch.Tensor,
        time_step: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        state: RecurrentState,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, RecurrentState]:
        A = -torch.exp(self.A_log.float())
        return state_space_duality(inputs, time_step, A, B, C, self.D.float(), state, packed)

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        settings = self.settings
        gate, mixed, time_step = self.project(hidden_states)
        inputs, B, C = self.conv1d(mixed, cache, rows).split([self.inner, self.states, self.states], dim=-1)
        inputs = inputs.unflatten(-1, (-1, settings.value_head_dim))
        B, C = (states.unflatten(-1, (-1, settings.key_head_dim)) for states in (B, C))
        time_step = rows.mask_padding(self.time_step(time_step))
        output = cache.recur(self.recurrence, (inputs, time_step, B, C), rows.packed, self.can_defer)
        output = self.o_proj(self.o_norm(output.flatten(-2), gate).to(hidden_states.dtype))
        return output if settings.out_multiplier is None else output * settings.out_multiplier


def make_step_norm(settings: SimpleNamespace, size: int) -> nn.Module:
    """The norm on Δ, B or C of a selective scan: none, with a weight (Jamba) or without (Falcon-Mamba)."""
    if settings.step_norm == "none":
        return nn.Identity()
    affine = settings.step_norm == "rms_norm"
    return RMSNorm(size, settings.norm_eps, affine=affine, cast="cast_then_scale")


class GroupedLinear(nn.Module):
    """y_g = W_g x_g + b_g, groups apart: `[..., G, inputs]` -> `[..., G, outputs]`."""

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.in_features = inputs
        self.weight = nn.Parameter(torch.zeros(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(groups, outputs)) if bias else None

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, mean=0.0, std=std)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = torch.einsum("...gi,goi->...go", x, self.weight)
        return output if self.bias is None else output + self.bias


def make_grouped_linear(groups: int, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """A linear map for each group of channels, a plain one for a single group."""
    plain = groups == 1
    return nn.Linear(inputs, outputs, bias=bias) if plain else GroupedLinear(groups, inputs, outputs, bias)


class SelectiveScan(RecurrentMixer):
    """x, z = W x;  x = act(conv(x));  Δ, B, C = W_x x;  y = scan(x, softplus(W_Δ Δ + b), B, C);  W_o (y · act(z)).

    Mamba (Gu and Dao 2023): `num_value_heads · value_head_dim` channels with `key_head_dim` states each, Δ of rank
    `time_step_rank`; `num_key_heads` groups of channels with Δ, B and C of their own (Zamba, Glorioso et al. 2024).
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        settings, hidden = self.settings, config.hidden_size
        self.inner = settings.num_value_heads * settings.value_head_dim
        states, rank = settings.key_head_dim, settings.time_step_rank
        self.split_sizes = [rank, states, states]
        self.groups, width = settings.num_key_heads, self.inner // settings.num_key_heads
        self.gate_width = 0 if settings.output_gate == "none" else self.inner
        self.in_proj = nn.Linear(hidden, self.inner + self.gate_width, bias=settings.bias)
        self.conv1d = make_convolution(settings, self.inner)
        self.x_proj = make_grouped_linear(self.groups, width, rank + 2 * states)
        self.dt_proj = make_grouped_linear(self.groups, rank, width, bias=True)
        self.dt_norm = make_step_norm(settings, rank)
        self.b_norm = make_step_norm(settings, states)
        self.c_norm = make_step_norm(settings, states)
        self.A_log = nn.Parameter(torch.zeros(self.inner, states))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.o_norm = make_output_norm(settings)
        self.o_proj = nn.Linear(self.inner, hidden, bias=settings.bias)

    def initialize(self, std: float) -> None:
        rates = torch.arange(1, self.A_log.shape[1] + 1, dtype=torch.float32)
        init.copy_(self.A_log, rates.log().expand_as(self.A_log))
        init.ones_(self.D)
        bound = self.dt_proj.in_features**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        initialize_time_steps(self.dt_proj.bias, self.settings)

    def recurrence(
        self,
        inputs: torch.Tensor,
        time_step: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        state: torch.Tensor | None,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        A = -torch.exp(self.A_log.float())
        return grouped_selective_scan(inputs, time_step, A, B, C, self.D.float(), state, packed)

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        inputs, gate = self.in_proj(hidden_states).split([self.inner, self.gate_width], dim=-1)
        inputs = self.conv1d(inputs, cache, rows)
        grouped = inputs.unflatten(-1, (self.groups, -1))
        time_step, B, C = self.x_proj(grouped).split(self.split_sizes, dim=-1)
        time_step = rows.mask_padding(F.softplus(self.dt_proj(self.dt_norm(time_step)).flatten(-2)))
        B, C = self.b_norm(B), self.c_norm(C)
        output = cache.recur(self.recurrence, (inputs, time_step, B, C), rows.packed)
        return self.o_proj(self.o_norm(output, gate).to(hidden_states.dtype))


class BlockDiagonalLinear(nn.Module):
    """y_h = x_h W_h + b_h, heads apart: `[..., H · w]` -> the same."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, mean=0.0, std=self.weight.shape[1] ** -0.5)
        init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, source: nn.Module) -> torch.Tensor:
        """`x` is what `source` gives, of which a rank may have some heads."""
        weight, bias = own_part(self.weight, source), own_part(self.bias, source)
        heads = x.unflatten(-1, bias.shape)
        return (torch.einsum("...hw,hwv->...hv", heads, weight) + bias).flatten(-2)


class GatedLinearUnit(RecurrentMixer):
    """u = conv(W_x x);  a = e**(-8 σ(W_r u) softplus(Λ));  h <- a h + sqrt(1 - a²) σ(W_i u) u;  W_o (h · act(W_g x)).

    The RG-LRU of Griffin (De et al. 2024, §2.4): `num_value_heads` blocks of `value_head_dim` channels.
    """

    decay_scale = 8.0

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        settings, hidden = self.settings, config.hidden_size
        shape = (settings.num_value_heads, settings.value_head_dim)
        inner = math.prod(shape)
        self.in_proj = nn.Linear(hidden, inner, bias=settings.bias)
        self.g_proj = nn.Linear(hidden, inner, bias=settings.bias) if settings.output_gate != "none" else None
        self.conv1d = make_convolution(settings, inner)
        self.input_gate = BlockDiagonalLinear(*shape)
        self.recurrence_gate = BlockDiagonalLinear(*shape)
        self.recurrent_param = nn.Parameter(torch.zeros(inner))
        self.o_norm = make_output_norm(settings)
        self.o_proj = nn.Linear(inner, hidden, bias=settings.bias)

    @torch.no_grad()
    def initialize(self, std: float) -> None:
        # a² between 0.9² and 0.999² where the gate is open.
        init.uniform_(self.recurrent_param, 0.9**2, 0.999**2)
        rate = -self.recurrent_param.log() / (2 * self.decay_scale)
        init.copy_(self.recurrent_param, rate.expm1().log())

    def recurrence(
        self,
        inputs: torch.Tensor,
        log_decay: torch.Tensor,
        first: torch.Tensor,
        valid: torch.Tensor | None,
        state: torch.Tensor | None,
        packed: PackedSequences | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return gated_linear_unit(inputs, log_decay, state, first, valid, packed)

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        source = self.in_proj
        inputs = self.conv1d(source(hidden_states), cache, rows, (source,))
        openness = torch.sigmoid(self.recurrence_gate(inputs, source))
        log_decay = -self.decay_scale * openness * F.softplus(own_part(self.recurrent_param, source))
        gated = inputs * torch.sigmoid(self.input_gate(inputs, source))
        first = rows.first(inputs, cache.has_history)
        output = cache.recur(self.recurrence, (gated, log_decay, first, rows.valid), rows.packed)
        gate = None if self.g_proj is None else self.g_proj(hidden_states)
        return self.o_proj(self.o_norm(output.to(hidden_states.dtype), gate, source))


class ShortConvolutionMixer(RecurrentMixer):
    """B, C, x = W x;  y = W_o (C · conv(B · x)) (LFM2, Liquid AI 2025)."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        settings, hidden = self.settings, config.hidden_size
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=settings.bias)
        self.conv1d = make_convolution(settings, hidden)
        self.o_proj = nn.Linear(hidden, hidden, bias=settings.bias)

    def mix(self, hidden_states: torch.Tensor, cache: RecurrentCacheView, rows: TokenRows) -> torch.Tensor:
        B, C, inputs = self.in_proj(hidden_states).chunk(3, dim=-1)
        return self.o_proj(C * self.conv1d(B * inputs, cache, rows))
