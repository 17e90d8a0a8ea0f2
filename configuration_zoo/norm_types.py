"""The norms there are, and what the config has to know of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormType:
    """`casts` are the orders in which implementations round, the default first; they differ below float32 only.

    `bias` says whether the norm can have one, and then has one by default. `full_scope` says whether it can normalise
    all heads of queries or keys together (qk_norm_scope="full").
    """

    casts: tuple[str, ...] = ()
    bias: bool = False
    full_scope: bool = False


# The values of norm_type and qk_norm.
NORM_TYPES = {
    "rms_norm": NormType(casts=("cast_then_scale", "scale_then_cast"), full_scope=True),
    "layer_norm": NormType(casts=("native", "float32"), bias=True, full_scope=True),
}
NORMS_WITH_BIAS = tuple(name for name, norm in NORM_TYPES.items() if norm.bias)
