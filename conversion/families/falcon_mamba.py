"""Falcon-Mamba 7B (Zuo et al. 2024): Mamba with RMS norms that have no weight on time steps, B and C."""

from dataclasses import replace

from .mamba import FAMILY as MAMBA
from .mamba import VARIANTS

FAMILY = replace(
    MAMBA,
    fields=MAMBA.fields | {"mixer_rms_eps": "linear_attn_config.norm_eps"},
    fixed=MAMBA.fixed | {"linear_attn_config.step_norm": "rms_norm_without_weight"},
    tiny=[VARIANTS[0], VARIANTS[1] | {"mixer_rms_eps": 1e-3}],
)
