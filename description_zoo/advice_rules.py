"""The rules of `zoo advise`: what is read off a config, where published models have it, and what to set.

A value of None says that a rule does not apply: a ratio of feed-forward widths to a model of experts alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from configuration_zoo import ZooConfig

from .advice_values import (
    aspect_ratio,
    balance,
    biases,
    full_share,
    gated_ratio,
    has_dense,
    head_ratio,
    heads_per_key,
    held_scores,
    misaligned,
    most_ranks,
    once,
    plain_ratio,
    quarter,
    split_sizes,
    to_64,
)

Value = float | int | str
Bounds = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Rule:
    """One thing that published models agree on. `inside`: pairs of limits, of which a number has to lie in one, or the
    words that are; `remedy`: what to set, for a config that is outside; `is_published`: whether a value is one that
    the publishers state, rather than what stands where they say nothing."""

    topic: str
    value: Callable[[ZooConfig], Value | None]
    inside: Bounds | Callable[[str], bool]
    range: str
    says: str
    source: str
    remedy: Callable[[ZooConfig], str]
    is_published: Callable[[Value], bool] | None = None

    def is_inside(self, value: Value) -> bool:
        if callable(self.inside):
            return self.inside(value)
        return any(least <= value <= most for least, most in self.inside)


RULES = (
    Rule(
        "feed-forward ratio (gated)",
        gated_ratio,
        ((2.5, 4.0),),
        "2.5 to 4, 8/3 for the parameters of a plain one",
        "A gated MLP has three matrices: 8/3 of the width costs what two of 4 times do.",
        "Shazeer 2020, arXiv 2002.05202; Kaplan et al. 2020, arXiv 2001.08361, figure 5: loss is flat from 1 to 10",
        lambda config: f"intermediate_size={to_64(config.hidden_size * 8 / 3)}",
    ),
    Rule(
        "feed-forward ratio (plain)",
        plain_ratio,
        ((3.5, 4.5),),
        "4",
        "Four times the width, since the first Transformer.",
        "Vaswani et al. 2017, arXiv 1706.03762; Kaplan et al. 2020, arXiv 2001.08361, figure 5: loss is flat from 1 to "
        "10",
        lambda config: f"intermediate_size={4 * config.hidden_size}",
    ),
    Rule(
        "gated MLP",
        lambda config: f"{'gated' if config.gated_mlp else 'plain'} {config.hidden_act}" if has_dense(config) else None,
        lambda value: value.startswith("gated"),
        "gated",
        "A gate is worth its third matrix at the same number of parameters.",
        "Shazeer 2020, arXiv 2002.05202; Narang et al. 2021, arXiv 2102.11972",
        lambda config: f"gated_mlp=True, hidden_act='silu', intermediate_size={to_64(config.hidden_size * 8 / 3)}",
    ),
    Rule(
        "heads x head_dim / width",
        head_ratio,
        ((0.75, 1.5),),
        "0.75 to 1.5, mostly 1",
        "Heads together are as wide as the residual stream; a head below 64 has too low a rank.",
        "Vaswani et al. 2017, arXiv 1706.03762, §3.2.2; Bhojanapalli et al. 2020, arXiv 2002.07028",
        lambda config: f"head_dim={config.hidden_size // config.num_attention_heads}",
    ),
    Rule(
        "aspect ratio (width / layers)",
        aspect_ratio,
        ((100.0, 200.0),),
        "100 to 200",
        "Loss hardly depends on it around 100; deep models wait for their layers, wide ones split over devices.",
        "Kaplan et al. 2020, arXiv 2001.08361, figure 5; Tay et al. 2021, arXiv 2109.10686",
        lambda config: (
            f"hidden_size={128 * config.num_hidden_layers} at this depth, or "
            f"num_hidden_layers={max(1, round(config.hidden_size / 128))} at this width"
        ),
    ),
    Rule(
        "vocabulary",
        lambda config: config.vocab_size,
        ((30_000, 51_200), (98_304, 262_400)),
        "30,000 to 51,200 for one language, 98,304 to 262,400 for many and for code",
        "Larger tables shorten text, most of all in languages that a small one cuts into bytes.",
        "Computed from the presets",
        lambda config: "vocab_size=32000 for one language, 131072 or more for many",
    ),
    Rule(
        "dropout and weight decay",
        lambda config: float(max(config.attention_dropout, config.residual_dropout, config.embedding_dropout)),
        ((0.0, 0.0),),
        "dropout 0; weight decay 0.1 in training (`weight_decay: 0.1` is the default of `zoo train`)",
        "One pass over the data does not overfit; weight decay is kept for how it acts with the learning rate.",
        "Chowdhery et al. 2022, arXiv 2204.02311, §5; Andriushchenko et al. 2023, arXiv 2310.04415",
        lambda config: "attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0",
    ),
    Rule(
        "place of norms",
        lambda config: once(config.block_types),
        lambda value: not {"post_norm", "pre_norm_residual"} & {*value.split(", ")},
        "off the residual stream: before, after, or around every sub-layer",
        "With norms on the residual stream, gradients need a slow start of the learning rate to stay small.",
        "Xiong et al. 2020, arXiv 2002.04745",
        lambda config: "block_type='pre_norm', or 'sandwich_norm' for norms on both sides",
    ),
    Rule(
        "norm",
        lambda config: config.norm_type,
        lambda value: value.startswith("rms_norm"),
        "rms_norm",
        "As good as LayerNorm with one pass less over memory and no bias.",
        "Zhang and Sennrich 2019, arXiv 1910.07467; Narang et al. 2021, arXiv 2102.11972",
        lambda config: "norm_type='rms_norm'",
    ),
    Rule(
        "biases",
        biases,
        lambda value: value == "none",
        "none",
        "Without biases large models train more steadily; Qwen kept them on q, k and v until it had QK norms.",
        "Chowdhery et al. 2022, arXiv 2204.02311, §2",
        lambda config: "attention_bias=False, attention_out_bias=False, mlp_bias=False, lm_head_bias=False",
    ),
    Rule(
        "z-loss",
        lambda config: float(config.output_z_loss_coef or 0.0),
        ((1e-6, 1e-3),),
        "0.000001 to 0.001, 0.0001 in PaLM",
        "coefficient x (ln Z)^2 keeps the normaliser of the logits near 1, and with it the logits small.",
        "Chowdhery et al. 2022, arXiv 2204.02311, §5; few publishers say it",
        lambda config: "output_z_loss_coef=1e-4",
        lambda value: value > 0,
    ),
    Rule(
        "size of scores",
        held_scores,
        lambda value: value != "nothing",
        "QK norm, or a soft cap where the kernels have one",
        "Scores that grow saturate the softmax and end runs at high learning rates; a cap rules out fused kernels.",
        "Dehghani et al. 2023, arXiv 2302.05442; Wortsman et al. 2023, arXiv 2309.14322; Gemma 2, arXiv 2408.00118",
        lambda config: "qk_norm='rms_norm'",
    ),
    Rule(
        "query heads per key-value head",
        heads_per_key,
        ((2.0, 16.0),),
        "2 to 16, mostly 4 to 8",
        "Groups of 8 read an eighth of the cache and lose next to nothing; a single head of keys and values does.",
        "Ainslie et al. 2023, arXiv 2305.13245",
        lambda config: f"num_key_value_heads={quarter(config.num_attention_heads)}",
    ),
    Rule(
        "share of layers with full attention",
        full_share,
        ((1 / 8, 1 / 2),),
        "1 in 8 to 1 in 2 for long contexts",
        "Windows or states in most layers keep cache and time down; some full layers carry what is far away.",
        "Gemma 3, arXiv 2503.19786; Kimi Linear, arXiv 2510.26692",
        lambda config: (
            "layer_types='3*sliding_attention, full_attention', sliding_window=4096, and perhaps NoPE on the full ones"
        ),
    ),
    Rule(
        "balance of experts",
        balance,
        lambda value: value != "nothing",
        "a loss x 0.001 to 0.01, or DeepSeek-V3's bias",
        "Without it a few experts get all tokens, the others learn nothing. Releases often leave it out.",
        "Fedus et al. 2021, arXiv 2101.03961, §2.2; DeepSeek-V3, arXiv 2412.19437, §2.1.2",
        lambda config: "router_aux_loss_coef=0.01, or use_score_correction_bias=True",
        lambda value: value != "nothing",
    ),
    Rule(
        "multiples of 64",
        misaligned,
        lambda value: value == "all",
        "all sizes, better of 128",
        "Products whose sizes are not multiples of 64 leave a part of the matrix units of a GPU idle.",
        "Anthony et al. 2024, arXiv 2401.14489",
        lambda config: ", ".join(f"{name}={to_64(getattr(config, name))}" for name in misaligned(config).split(", ")),
    ),
    Rule(
        "ranks of tensor parallelism",
        most_ranks,
        ((8, 128),),
        "8 or more, the GPUs of a machine",
        "Heads and widths that 8 does not divide cannot be split over the 8 GPUs of one machine.",
        "Shoeybi et al. 2019, arXiv 1909.08053",
        lambda config: ", ".join(
            f"a multiple of 8 for {name}={size}" for name, size in split_sizes(config).items() if size % 8
        ),
    ),
)
