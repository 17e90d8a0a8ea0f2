"""Residual topologies: how a layer's mixer and MLP join the residual stream.

pre_norm           x ─┬─ norm ── f ──────── + ─     output_norm    x ─┬─ f ── norm ── + ─
                      └──────────────────── ┘                        └───────────── ┘
sandwich_norm      x ─┬─ norm ── f ── norm ── + ─   post_norm      x ─┬─ f ── + ── norm ─
                      └───────────────────── ┘                       └────── ┘
pre_norm_residual  x ── norm ─┬─ f ── + ─           parallel       x ─┬─ norm ─┬─ mixer ── + ─
                              └────── ┘                              │        └─ mlp ──── +
                                                                     └─────────────────── ┘
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from configuration_zoo import ZooConfig

from .attention_sparse_indexer import SharedIndices
from .block_altup import LAUREL, AltUp
from .block_attention_residual import AttentionResidualLayer
from .block_gated_norm import GatedAttnNormLayer, GatedNormLayer
from .block_hyper_connections import CONNECTIONS
from .block_layer import NORM_SLOTS, ZooDecoderLayer
from .block_per_layer_input import AltUpInput
from .block_shared import Adapters, SharedBlock
from .mixer import asked_part
from .norms import make_norm
from .ops_attention_bands import AttentionMask
from .ops_cross_layer import FinishedBlocks, SharedKeyValues, Shortcuts
from .registry import MLPS


class SubNormLayer(ZooDecoderLayer):
    """x + W_o norm(attention(norm(x))), then x + W_down norm(inner(norm(x))): a norm also in front of the projection
    that writes to the residual stream, `sub_norm` of attention and of MLP (Sub-LN, Wang et al. 2022; BitNet)."""


class OutputNormLayer(ZooDecoderLayer):
    """x + norm(mixer(x)), then x + norm(mlp(x)) (OLMo 2, EXAONE 4)."""

    norms = ("attn_output_norm", "mlp_output_norm")
    ends_in_norm = True


class SandwichNormLayer(ZooDecoderLayer):
    """x + norm(mixer(norm(x))), then x + norm(mlp(norm(x))) (Ding et al. 2021; Gemma 2, Grok-1)."""

    norms = NORM_SLOTS
    ends_in_norm = True

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.laurel = asked_part(LAUREL, config)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        normed = self.attn_norm(hidden_states)
        hidden_states = hidden_states + self.mix(normed, context)
        if self.laurel is not None:
            hidden_states = self.laurel(hidden_states, normed)
        return hidden_states + self.feed(self.mlp_norm(hidden_states), context)


class ScaledSandwichLayer(SandwichNormLayer):
    """s · (y + norm(mlp(norm(y)) or norm(mlp(norm(y))) + norm(experts(norm(y))))), y = x + norm(mixer(norm(x))).

    A sparse layer has its experts beside the MLP, between norms of their own, and routes by y itself; s is one number
    per layer, kept but not trained (Gemma 4).
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.register_buffer("layer_scalar", torch.ones(1))
        self.moe = None
        if config.mlp_layer_types[layer_idx] == "sparse":
            self.moe, self.mlp = self.mlp, MLPS["dense"](config, layer_idx)
            for slot in ("mlp_branch_norm", "moe_norm", "moe_output_norm"):
                setattr(self, slot, make_norm(config, config.hidden_size))

    def initialize(self, std: float) -> None:
        init.ones_(self.layer_scalar)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.mix(self.attn_norm(hidden_states), context)
        fed = self.mlp(self.mlp_norm(hidden_states))
        if self.moe is not None:
            routed = self.run_mlp(self.moe, self.moe_norm(hidden_states), context, router_input=hidden_states)
            fed = self.mlp_branch_norm(fed) + self.moe_output_norm(routed)
        return hidden_states + self.scaled(self.mlp_output_norm(fed))

    def forward(self, hidden_states: torch.Tensor, *shared: Any, **context: Any) -> torch.Tensor:
        return super().forward(hidden_states, *shared, **context) * self.layer_scalar


def weighted_sum(x: torch.Tensor, output: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """α x + β output."""
    return x + output if alpha == beta == 1 else x * alpha + output * beta


class PostNormLayer(ZooDecoderLayer):
    """norm(αx + β mixer(x)), then norm(αx + β mlp(x)) (Vaswani et al. 2017; GPT-1, OPT 350m; α: DeepNet)."""

    norms = ("attn_output_norm", "mlp_output_norm")

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mixer_factors, self.mlp_factors = config.residual_factors_of(layer_idx)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        mixed = self.scaled(self.mixer(hidden_states, context))
        hidden_states = self.attn_output_norm(weighted_sum(hidden_states, mixed, *self.mixer_factors))
        fed = self.scaled(self.run_mlp(self.mlp, hidden_states, context))
        return self.mlp_output_norm(weighted_sum(hidden_states, fed, *self.mlp_factors))


class PreNormResidualLayer(ZooDecoderLayer):
    """αn + β mixer(n), n = norm(x), then the same for the MLP: the residual starts at the norm (BLOOM's variant;
    MiniMax-01)."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mixer_factors, self.mlp_factors = config.residual_factors_of(layer_idx)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        hidden_states = self.attn_norm(hidden_states)
        mixed = self.mix(hidden_states, context)
        hidden_states = self.mlp_norm(weighted_sum(hidden_states, mixed, *self.mixer_factors))
        return weighted_sum(hidden_states, self.feed(hidden_states, context), *self.mlp_factors)


def residual_first(x: torch.Tensor, mixed: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
    """(x + mixer) + mlp (Command R, StableLM)."""
    return x + mixed + fed


def branches_first(x: torch.Tensor, mixed: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
    """x + (mixer + mlp) (GPT-J, GPT-NeoX, Phi)."""
    return x + (mixed + fed)


PARALLEL_SUMS = {"residual_first": residual_first, "branches_first": branches_first}


class ParallelLayer(ZooDecoderLayer):
    """x + mixer(norm(x)) + mlp(norm(x)) with one norm (Wang & Komatsuzaki 2021; PaLM, Command R)."""

    norms = ("attn_norm",)

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.sum = PARALLEL_SUMS[config.precision["parallel_sum_order"]]

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        normed = self.attn_norm(hidden_states)
        return self.sum(hidden_states, self.mix(normed, context), self.feed(normed, context))


class ParallelTwoNormsLayer(ParallelLayer):
    """x + mixer(norm₁(x)) + mlp(norm₂(x)) (Black et al. 2022; Falcon 40B)."""

    norms = ("attn_norm", "mlp_norm")

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        mixed = self.mix(self.attn_norm(hidden_states), context)
        return self.sum(hidden_states, mixed, self.feed(self.mlp_norm(hidden_states), context))


class MixerOnlyLayer(ZooDecoderLayer):
    """x + mixer(norm(x)) (Mamba 2, Nemotron-H)."""

    norms = ("attn_norm",)
    branches = ("mixer",)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        return hidden_states + self.mix(self.attn_norm(hidden_states), context)


class SharedBlockLayer(MixerOnlyLayer):
    """x + mixer(norm(x + W block([x; x₀]))): a block that layers share stands before the mixer (Zamba).

    `shared_block` and `start` (x₀, `[B, T, D]`) come from the model; what the layer adds to the block's projections is
    its own. `attention_mask` is one mask per part, {layer type: mask}.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        self.adapters = Adapters(config)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def join(
        self,
        hidden_states: torch.Tensor,
        shared_block: SharedBlock,
        start: torch.Tensor,
        attention_mask: dict[str, AttentionMask] | None = None,
        **context: Any,
    ) -> torch.Tensor:
        masks = dict(attention_mask or {})
        recurrent_mask = masks.pop("linear_attention", None)
        own = {"layer_idx": self.layer_idx, "attention_mask": next(iter(masks.values()), None)}
        given = self.linear(shared_block(hidden_states, start, self.adapters, **own, **context))
        context["attention_mask"] = recurrent_mask
        return hidden_states + self.mix(self.attn_norm(hidden_states + given), context)


class MlpOnlyLayer(ZooDecoderLayer):
    """x + mlp(norm(x)) (Nemotron-H)."""

    norms = ("mlp_norm",)
    branches = ("mlp",)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        return hidden_states + self.feed(self.mlp_norm(hidden_states), context)


class ShortcutLayer(ZooDecoderLayer):
    """Pre-norm with a dense MLP in every layer; the experts of a sparse layer read what its MLP reads, and join the
    residual stream at the end of the next layer, x + mixer + mlp + experts of the layer before.

    (Shortcut-connected experts, Cai et al. 2024, arXiv 2404.05019; LongCat-Flash, arXiv 2509.01322, §2.2.) Raises
    ValueError for a sparse layer called without `shortcuts`.
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        self.moe = None
        if config.mlp_layer_types[layer_idx] == "sparse":
            self.moe, self.mlp = self.mlp, MLPS["dense"](config, layer_idx)

    def join(self, hidden_states: torch.Tensor, shortcuts: Shortcuts | None = None, **context: Any) -> torch.Tensor:
        """Raises ValueError for a sparse layer without `shortcuts`."""
        hidden_states = hidden_states + self.mix(self.attn_norm(hidden_states), context)
        normed = self.mlp_norm(hidden_states)
        late = shortcuts.take(self.layer_idx - 1) if shortcuts is not None else None
        if self.moe is not None:
            if shortcuts is None:
                raise ValueError(
                    f"Layer {self.layer_idx} of block_type 'shortcut' needs `shortcuts`, one object for all layers."
                )
            shortcuts.put(self.layer_idx, self.scaled(self.run_mlp(self.moe, normed, context)))
        hidden_states = hidden_states + self.feed(normed, context)
        return hidden_states if late is None else hidden_states + late.to(hidden_states.device)


class HyperConnectionLayer(ZooDecoderLayer):
    """N streams `[B, T, N, D]` in place of one; mixer and MLP each read a weighted sum of them, normed, and their
    output joins all of them while these mix, or do not (hyper-connections, Zhu et al. 2024; mHC, Xie et al. 2025;
    DeepSeek-V4, Hy4)."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        connection = CONNECTIONS[config.hc_sinkhorn_iters > 0]
        self.attn_hc, self.mlp_hc = connection(config), connection(config)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        read, *weights = self.attn_hc(hidden_states)
        hidden_states = self.attn_hc.write(hidden_states, self.mix(self.attn_norm(read), context), *weights)
        read, *weights = self.mlp_hc(hidden_states)
        return self.mlp_hc.write(hidden_states, self.feed(self.mlp_norm(read), context), *weights)


class AltUpLayer(SandwichNormLayer):
    """N streams `[B, T, N, D]`, of which a sandwich-norm layer computes one: before it all are predicted from each
    other, behind it corrected by what it changed (AltUp, Baykal et al. 2023; Gemma 3n)."""

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.altup = AltUp(config)
        if self.per_layer_input is not None:
            self.per_layer_input = AltUpInput(config)

    def join(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        predicted = self.altup.predict(hidden_states)
        return self.altup.correct(predicted, super().join(self.altup.computed(predicted), **context))


BLOCKS = {
    "pre_norm": ZooDecoderLayer,
    "sub_norm": SubNormLayer,
    "gated_norm": GatedNormLayer,
    "gated_attn_norm": GatedAttnNormLayer,
    "output_norm": OutputNormLayer,
    "sandwich_norm": SandwichNormLayer,
    "scaled_sandwich_norm": ScaledSandwichLayer,
    "post_norm": PostNormLayer,
    "pre_norm_residual": PreNormResidualLayer,
    "parallel": ParallelLayer,
    "parallel_two_norms": ParallelTwoNormsLayer,
    "mixer_only": MixerOnlyLayer,
    "mlp_only": MlpOnlyLayer,
    "shared_block": SharedBlockLayer,
    "shortcut": ShortcutLayer,
    "hyper_connection": HyperConnectionLayer,
    "altup": AltUpLayer,
    "attention_residual": AttentionResidualLayer,
}


def make_block(config: ZooConfig, layer_idx: int) -> ZooDecoderLayer:
    """Layer `layer_idx` of a model; where layers differ in a number, built from that layer's own view of the config."""
    return BLOCKS[config.block_types[layer_idx]](config.per_layer_config[layer_idx], layer_idx)


# The objects in which layers of one forward leave something for later ones: by the field that asks for one, or the
# word of block_type or attention_type, its name among the arguments of a layer and its class.
CROSS_LAYER_STATE = {
    "indexer_types": ("shared_indices", SharedIndices),
    "num_kv_shared_layers": ("shared_key_values", SharedKeyValues),
}
CROSS_WORD_STATE = {
    "shortcut": ("shortcuts", Shortcuts),
    "attention_residual": ("finished_blocks", FinishedBlocks),
    "value_residual": ("shared_key_values", SharedKeyValues),
}


def make_cross_layer_state(config: ZooConfig) -> dict[str, type] | None:
    """{name: class} of those that a model needs, made for each forward; None for none."""
    states = [state for field, state in CROSS_LAYER_STATE.items() if getattr(config, field)]
    states += [
        state for word, state in CROSS_WORD_STATE.items() if word in config.block_type or word in config.attentions
    ]
    return dict(states) or None
