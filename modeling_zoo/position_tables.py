"""Positions that are not rotations: tables and waves added to the residual stream, and biases added to the scores."""

import math

import torch
from torch import nn

from configuration_zoo import ZooConfig


class LearnedPositions(nn.Embedding):
    """position_ids `[B, T]` → rows `[B, T, D]` of a learned table; the first `position_config.offset` rows are reserved
    (GPT-2, OPT)."""

    def __init__(self, config: ZooConfig):
        self.offset = config.position_config["offset"]
        super().__init__(config.max_position_embeddings + self.offset, config.hidden_size)

    def forward(self, position_ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return super().forward(position_ids + self.offset)


def interleaved_waves(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """sin(p / 10000^(2j/D)) and cos of the same in alternate channels (Vaswani et al. 2017, §3.5)."""
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float) / dim
    angles = positions[..., None].float() * (1.0 / 10000.0**exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :dim]


def halved_waves(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """The same waves, every sine before every cosine (CTRL)."""
    waves = interleaved_waves(positions, dim)
    return torch.cat((waves[..., 0::2], waves[..., 1::2]), dim=-1)


def closed_waves(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines before cosines, of p / 10000^(j/(D/2 - 1)): the last wave is exactly 10000 times the first (tensor2tensor,
    XGLM)."""
    count = dim // 2
    step = math.log(10000.0) / max(count - 1, 1)
    rates = torch.exp(torch.arange(count, device=positions.device, dtype=torch.float) * -step)
    angles = positions[..., None].float() * rates
    return nn.functional.pad(torch.cat((angles.sin(), angles.cos()), dim=-1), (0, dim % 2))


WAVES = {"interleaved": interleaved_waves, "halves": halved_waves, "closed_halves": closed_waves}


class SinusoidalPositions(nn.Module):
    """Positions `[B, T]`, counted from `position_config.offset` → waves `[B, T, D]` of geometrically growing length."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.dim = config.hidden_size
        self.offset = config.position_config["offset"]
        self.waves = WAVES[config.position_config["sinusoid_layout"]]

    def forward(self, position_ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`like` gives the dtype."""
        return self.waves(position_ids + self.offset, self.dim).to(like.dtype)


class NoPositions(nn.Module):
    """Nothing is added to the residual stream."""

    def __init__(self, config: ZooConfig):
        super().__init__()

    def forward(self, position_ids: torch.Tensor, like: torch.Tensor) -> int:
        return 0


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> torch.Tensor:
    """Slope 2^(-8 i / n) of head i for the nearest power of two n ≤ num_heads, odd powers of the 2n series for the
    rest `[H]`."""
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = torch.arange(1, power + 1, device=device, dtype=torch.float32) * (-8.0 / power)
    if num_heads > power:
        odd = torch.arange(1, 2 * (num_heads - power), 2, device=device, dtype=torch.float32)
        exponents = torch.cat((exponents, odd * (-4.0 / power)))
    return torch.exp2(exponents)


class AlibiBias(nn.Module):
    """slope_h · (key position - last query position), `[B or 1, H, 1, K]` (Press et al. 2022).

    A shift that all keys of a row share leaves the softmax unchanged, so the query's own position need not enter; it
    does beside sinks, which do not shift: `[B or 1, H, T, K]`. With `precision.alibi` the slope and its product with
    the absolute position are rounded to that dtype (Falcon). Where every token sees every other, it is
    -slope_h · |query position - key position|, `[1, H, T, K]` (MosaicBERT).
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        scaled = config.position_config["alibi_scaled"]
        self.scale = config.key_width((config.softmax_layers or [0])[0]) ** -0.5 if scaled else 1.0
        self.round_dtype = getattr(torch, config.precision["alibi"]) if config.precision["alibi"] else None
        self.two_sided = config.use_bidirectional_attention
        self.per_query = config.attention_sinks is not None
        self.num_heads = config.num_attention_heads

    def distances(
        self, query_positions: torch.Tensor, key_positions: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Key positions up to a shift per row, `[B or 1, 1 or T, K]`. Padding is not counted where the mask `[B, K]`
        says which it is."""
        if self.two_sided:
            return -(query_positions[:, None] - key_positions).abs()[None]
        own = query_positions if self.per_query else query_positions[-1:]
        keys, queries = key_positions[None], own[None]
        if attention_mask is not None and attention_mask.shape[-1] == keys.shape[-1]:
            counted = attention_mask.long().cumsum(-1) - 1
            keys = counted.masked_fill(attention_mask == 0, 0)
            queries = counted[:, own - key_positions[0]] if self.per_query else counted[:, -1:]
        shifted = self.round_dtype is None or self.per_query
        return keys[:, None] - queries[:, :, None] if shifted else keys[:, None]

    def forward(
        self,
        like: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        distances = self.distances(query_positions, key_positions, attention_mask)
        dtype = self.round_dtype or torch.float32
        slopes = alibi_slopes(self.num_heads, like.device)
        bias = slopes[:, None, None].to(dtype) * distances[:, None].to(dtype)
        return bias.to(like.dtype) * self.scale


class RelativeBias(nn.Module):
    """One learned scalar per head and bucket of the distance back, `[1, H, T, K]` (Raffel et al. 2020, §2.1).

    Half of the buckets hold the distances 0 … n/2 - 1, the other half grows with the logarithm up to `max_distance`.
    Ahead of the query, where only a bidirectional model looks, every key has distance 0.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.relative_attention_bias = nn.Embedding(self.num_buckets, config.num_attention_heads)

    def buckets(self, distance: torch.Tensor) -> torch.Tensor:
        """Distances back `[...]` → bucket numbers `[...]`."""
        exact = self.num_buckets // 2
        distance = distance.clamp(min=0)
        growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = exact + (growth * (self.num_buckets - exact)).long()
        return torch.where(distance < exact, distance, far.clamp(max=self.num_buckets - 1))

    def forward(
        self,
        like: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        distance = query_positions[:, None] - key_positions[None, :]
        bias = self.relative_attention_bias(self.buckets(distance))
        return bias.permute(2, 0, 1).unsqueeze(0).to(like.dtype)


class Distances(nn.Module):
    """How far each key is behind each query, `[T, K]`, for attention that makes scores of distances itself
    (Transformer-XL)."""

    def __init__(self, config: ZooConfig):
        super().__init__()

    def forward(
        self,
        like: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        return query_positions[:, None] - key_positions[None, :]


ADDED_POSITIONS = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rope": NoPositions,
    "alibi": NoPositions,
    "relative": NoPositions,
    "transformer_xl": NoPositions,
    "none": NoPositions,
}
POSITION_BIASES = {"alibi": AlibiBias, "relative": RelativeBias, "transformer_xl": Distances}
