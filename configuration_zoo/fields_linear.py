"""Recurrences and short convolutions in place of attention: linear attention, state space models, gated units."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .field_kinds import (
    WIDEST,
    Choice,
    Number,
    choice,
    factor,
    flag,
    items,
    number,
    per_layer,
    positive,
    settings,
    size,
)
from .field_settings import set_fields
from .fields_checks import even_share, for_each_layer, refuse_unless
from .linear_needs import refuse_unread_linear
from .vocabulary import PLAIN_ACTIVATIONS, RECURRENCES, WITH_RECURRENCE

CHOICES = {
    "decay": ("softplus", "bounded_sigmoid", "log_sigmoid", "constant"),
    "decay_granularity": ("head", "channel"),
    "qk_norm": ("l2", "none"),
    "feature_map": ("none", "elu_plus_one", "relu"),
    "output_norm": ("head", "group", "full", "none"),
    "step_norm": ("none", "rms_norm", "rms_norm_without_weight"),
    "act": ("none", *PLAIN_ACTIVATIONS),
    "output_gate": ("none", *PLAIN_ACTIVATIONS),
}


def details(**values: Any) -> dict[str, Any]:
    """`{"linear_attn_config.decay": x}` of `decay=x`."""
    return {f"linear_attn_config.{key}": value for key, value in values.items()}


def setting_name(field: str) -> str:
    """What a mixer calls a field in its settings: `decay` of linear_attn_config.decay, `key_head_dim` of
    linear_key_head_dim."""
    return SHORT.get(field, field.rpartition(".")[2].removeprefix("linear_"))


# What each mechanism reads, and what a field that is left at None means to it.
CONVOLUTION = {"linear_conv_kernel_dim": 4} | details(bias=False, conv_bias=False, act="silu")
OUTPUT = details(output_norm="head", norm_before_gate=True, norm_eps=None, output_gate="silu")
OUTPUT |= {"precision.linear_norm": "cast_then_scale"}
TIME_STEPS = details(time_step_min=0.001, time_step_max=0.1, time_step_floor=1e-4)
DECAY = details(decay="softplus", decay_granularity="head", decay_rank=None, lower_bound=None, decay_normalizer=None)
DECAY |= {"precision.linear_decay": "float32"} | TIME_STEPS
HEADS = dict.fromkeys(
    ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
)
ADDITIVE = CONVOLUTION | OUTPUT | HEADS | details(gate_rank=None, multiplier=None, feature_map="none")
ADDITIVE |= {"precision.linear_float32_parameters": False}
DELTA = ADDITIVE | details(qk_norm="l2", allow_neg_eigval=False)
STATE_SPACE = CONVOLUTION | OUTPUT | TIME_STEPS | HEADS | details(conv_bias=True, norm_before_gate=False)

LINEAR_MECHANISMS = {
    "gated_delta_net": DELTA | DECAY,
    "kimi_delta_attention": DELTA | DECAY | details(decay_granularity="channel", output_gate="sigmoid")
    | {"precision.linear_norm": "float32"},
    "delta_net": DELTA,
    "gated_delta_product": DELTA | DECAY | details(num_householder=2),
    "delta_product": DELTA | details(num_householder=2),
    "linear_attention": ADDITIVE,
    "gated_linear_attention": ADDITIVE | DECAY | {"linear_conv_kernel_dim": 0}
    | details(decay="log_sigmoid", decay_granularity="channel", decay_rank=16, decay_normalizer=16.0, act="none"),
    "lightning_attention": ADDITIVE | {"linear_conv_kernel_dim": 0}
    | details(decay="constant", multiplier=1.0, output_norm="full", output_gate="sigmoid"),
    "mamba2": STATE_SPACE | details(output_norm="group", time_step_limit=None)
    | {"mup_multipliers.linear_in": None, "mup_multipliers.linear_out": None, "mup_multipliers.linear_sections": None},
    "mamba": STATE_SPACE | details(output_norm="none", step_norm="none", time_step_rank=None),
    "rg_lru": CONVOLUTION | OUTPUT | HEADS
    | details(bias=True, conv_bias=True, act="none", output_norm="none", output_gate="gelu_pytorch_tanh"),
    "short_conv": CONVOLUTION | {"linear_conv_kernel_dim": 3} | details(act="none"),
}  # fmt: skip
# What a mixer calls settings whose names say more than the key.
SHORT = {
    "precision.linear_norm": "norm_cast",
    "precision.linear_decay": "decay_dtype",
    "precision.linear_float32_parameters": "float32_parameters",
    "mup_multipliers.linear_in": "in_multiplier",
    "mup_multipliers.linear_out": "out_multiplier",
    "mup_multipliers.linear_sections": "section_multipliers",
}
NORM_EPS, STEP_RANK = "linear_attn_config.norm_eps", "linear_attn_config.time_step_rank"
LINEAR_FIELDS = sorted({field for fields in LINEAR_MECHANISMS.values() for field in fields})


@dataclass(kw_only=True, repr=False)
class LinearFields:
    """Mixers with a state of fixed size, for the layers that `layer_types` calls linear_attention, conv or hybrid.

    A field left at None means what the mechanism's own paper does, and is written out where all such layers share one
    mechanism. `linear_settings` is what a mixer reads.
    """

    linear_attention_type: str | list[str | None] | None = per_layer(
        Choice(RECURRENCES),
        needs="recurrent layer",
        meaning="The recurrence or convolution, one name for all layers that have one or one for each layer.",
        source="arXiv 2412.06464 (gated_delta_net), 2510.26692 (kimi_delta_attention), 2406.06484 (delta_net), "
        "2502.10297 (gated_delta_product, delta_product), "
        "2006.16236 (linear_attention), 2312.06635 (gated_linear_attention), 2401.04658 (lightning_attention), "
        "2405.21060 (mamba2), 2312.00752 (mamba), 2402.19427 (rg_lru), LFM2, Liquid AI 2025 (short_conv)",
    )
    linear_num_key_heads: int | None = size(
        meaning="Heads of queries and keys; groups of a state space model; unused in a gated unit.",
        source="Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060, §8",
    )
    linear_num_value_heads: int | None = size(
        meaning="Heads of values, a multiple of those of keys; heads of a state space model; blocks of a gated unit.",
        source="Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060, §8; Griffin, arXiv 2402.19427",
    )
    linear_key_head_dim: int | None = size(
        meaning="Channels of a head of queries and keys; states of a state space model.",
        source="Qwen3-Next (Qwen 2025); Mamba, arXiv 2312.00752",
    )
    linear_value_head_dim: int | None = size(
        meaning="Channels of a head of values; of a head of a state space model; of a block of a gated unit.",
        source="Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060",
    )
    linear_conv_kernel_dim: int | None = number(
        whole=True,
        most=WIDEST,
        meaning="Taps of the causal convolution on what is projected, 0 for none.",
        source="Mamba, arXiv 2312.00752, §3.4; H3, arXiv 2212.14052",
    )
    linear_attn_config: dict | None = settings(
        "How a recurrence or convolution does what linear_attention_type says, key by key; a key that is left out is "
        "what the mechanism's own paper does.",
        bias=flag(
            None,
            meaning="The projections into and out of the mixer have biases.",
            source="Mamba's published code",
        ),
        conv_bias=flag(
            None,
            meaning="The convolution has a bias.",
            source="Mamba's published code",
        ),
        act=choice(
            CHOICES["act"],
            meaning="Activation after the convolution.",
            source="Mamba, arXiv 2312.00752, §3.4",
        ),
        qk_norm=choice(
            CHOICES["qk_norm"],
            meaning="Whether queries and keys are L2-normalised.",
            source="Yang et al. 2024, arXiv 2406.06484, §3.4",
        ),
        feature_map=choice(
            CHOICES["feature_map"],
            meaning="Map that makes queries and keys positive.",
            source="Katharopoulos et al. 2020, arXiv 2006.16236, §3.2.1",
        ),
        multiplier=factor(
            meaning="Scale of the outputs. None: linear_key_head_dim ** -0.5.",
            source="own to zoo",
        ),
        decay=choice(
            CHOICES["decay"],
            meaning="How the state forgets: softplus as in Mamba, bounded_sigmoid, log_sigmoid as in gated linear "
            "attention, or a constant per head. modeling_zoo/recurrent_decays.py has the formulas.",
            source="Mamba, arXiv 2312.00752; Yang et al. 2023, arXiv 2312.06635; Qin et al. 2024, arXiv 2401.04658",
        ),
        decay_granularity=choice(
            CHOICES["decay_granularity"],
            meaning="The decay is one number per head or one per channel of the keys.",
            source="Gated DeltaNet, arXiv 2412.06464 (head); Kimi Linear, arXiv 2510.26692 (channel)",
        ),
        decay_rank=size(
            meaning="Width of the narrow projection that the decay comes through. None: one projection, without a "
            "narrow one.",
            source="Yang et al. 2023, arXiv 2312.06635, §4.4",
        ),
        lower_bound=number(
            meaning="The bound of a bounded_sigmoid decay, below 0.",
            source="Ling 3's published code",
        ),
        decay_normalizer=positive(
            meaning="The divisor of a log_sigmoid decay. None: 16.",
            source="Yang et al. 2023, arXiv 2312.06635, §4.4",
        ),
        allow_neg_eigval=flag(
            None,
            meaning="Writes have a strength in (0, 2) instead of (0, 1), so that the state can flip a direction.",
            source="Grazzi et al. 2024, arXiv 2411.12537",
        ),
        num_householder=size(
            meaning="Keys and values that a delta product writes for each token, one behind the other. None: 2.",
            source="DeltaProduct, Siems et al. 2025, arXiv 2502.10297",
        ),
        output_norm=choice(
            CHOICES["output_norm"],
            meaning="RMS norm of the output over each head, each group of heads, all of it, or none.",
            source="Mamba-2, arXiv 2405.21060, §7.1 (group); RetNet, arXiv 2307.08621 (head)",
        ),
        norm_before_gate=flag(
            None,
            meaning="The output is normalised before it is gated, instead of after.",
            source="Mamba-2's published code (after); Gated DeltaNet's (before)",
        ),
        norm_eps=positive(
            meaning="Epsilon of the norms in the mixer. None: norm_eps.",
            source="own to zoo",
        ),
        output_gate=choice(
            CHOICES["output_gate"],
            meaning='Activation of the gate on the output, "none" for no gate.',
            source="Mamba, arXiv 2312.00752, §3.4; RetNet, arXiv 2307.08621",
        ),
        gate_rank=size(
            meaning="Width of the narrow projection that the gate comes through. None: one projection, without a "
            "narrow one.",
            source="Kimi Linear, arXiv 2510.26692",
        ),
        time_step_limit=items(
            Number(least=0),
            2,
            meaning="Bounds [low, high] of a state space model's time steps, None for open.",
            source="Mamba-2's published code",
        ),
        time_step_rank=size(
            meaning="Width of the projection that the time steps come through. None: hidden_size / 16, rounded up.",
            source="Mamba, arXiv 2312.00752, §3.6",
        ),
        step_norm=choice(
            CHOICES["step_norm"],
            meaning="Norm on the time steps, B and C of a Mamba layer.",
            source="Jamba, arXiv 2403.19887, §6.4; FalconMamba, arXiv 2410.05355 (without a weight)",
        ),
        time_step_min=positive(
            meaning="Least initial time step. None: 0.001.",
            source="Mamba, arXiv 2312.00752, §3.6",
        ),
        time_step_max=positive(
            meaning="Largest initial time step. None: 0.1.",
            source="Mamba, arXiv 2312.00752, §3.6",
        ),
        time_step_floor=positive(
            meaning="Initial time steps are raised to this number. None: 1e-4.",
            source="Mamba's published code",
        ),
    )

    def recurrent_layers(self) -> list[int]:
        """Indices of the layers with a recurrence or a short convolution."""
        return [index for index, layer_type in enumerate(self.layer_types or ()) if layer_type in WITH_RECURRENCE]

    def linear_mechanisms(self) -> list[str]:
        """The distinct mechanisms in use, in order of their first layer."""
        named = self.linear_attention_type
        names = [named[index] if isinstance(named, list) else named for index in self.recurrent_layers()]
        return list(dict.fromkeys(name for name in names if name is not None))

    def resolve_linear(self) -> None:
        mechanisms = self.linear_mechanisms()
        if len(mechanisms) == 1 and mechanisms[0] in LINEAR_MECHANISMS:
            values = self._linear_values(mechanisms[0])
            # An epsilon that is the model's stays left out.
            set_fields(self, values | ({NORM_EPS: None} if values.get(NORM_EPS) == self.norm_eps else {}))

    def linear_settings(self, layer_idx: int) -> SimpleNamespace:
        """What the mixer of layer `layer_idx` reads: all that its mechanism reads, by `setting_name`."""
        named = self.linear_attention_type
        mechanism = named[layer_idx] if isinstance(named, list) else named
        values = dict.fromkeys(LINEAR_FIELDS) | self._linear_values(mechanism)
        return SimpleNamespace(**{setting_name(field): value for field, value in values.items()})

    def _linear_values(self, mechanism: str) -> dict:
        defaults = LINEAR_MECHANISMS[mechanism]
        own = {field: getattr(self, field) for field in defaults}
        values = {field: defaults[field] if value is None else value for field, value in own.items()}
        if NORM_EPS in values and values[NORM_EPS] is None:
            values[NORM_EPS] = self.norm_eps
        return values | self._linear_sizes(mechanism, values)

    def _plain_values(self, mechanism: str) -> dict:
        """What is written out for fields that are left out and that the mechanism lists without reading them."""
        keys = {"linear_num_key_heads": 1, NORM_EPS: self.norm_eps}
        return {field: keys.get(field, default) for field, default in LINEAR_MECHANISMS[mechanism].items()}

    def _linear_sizes(self, mechanism: str, values: dict) -> dict:
        keys, heads, states, width = (values.get(field) for field in HEADS)
        if mechanism == "short_conv":
            return {}
        if mechanism == "mamba2":
            width = width or 64
            sizes = (
                keys or 1,
                heads or self._share(mechanism, 2, "linear_value_head_dim", width),
                states or 128,
                width,
            )
        elif mechanism == "mamba":
            heads = heads or 1
            width = width or self._share(mechanism, 2, "linear_num_value_heads", heads)
            sizes = (keys or 1, heads, states or 16, width)
            rank = values[STEP_RANK] or -(-self.hidden_size // 16)
            return dict(zip(HEADS, sizes, strict=True)) | {STEP_RANK: rank}
        elif mechanism == "rg_lru":
            heads = heads or self.num_attention_heads
            sizes = (keys or 1, heads, states, width or self._share(mechanism, 1, "linear_num_value_heads", heads))
        else:
            heads = heads or self.num_attention_heads
            states = states or self.head_dim
            sizes = (keys or heads, heads, states, width or states)
        return dict(zip(HEADS, sizes, strict=True))

    def _share(self, mechanism: str, times: int, field: str, parts: int) -> int:
        width = times * self.hidden_size
        says = f"{width} channels of {mechanism!r}, from hidden_size={self.hidden_size}, / {field}={parts}"
        return even_share(width, parts, says, "linear_num_value_heads and linear_value_head_dim")

    @for_each_layer
    def validate_linear(self) -> None:
        self._validate_linear_words()
        mechanisms = self.linear_mechanisms()
        for field in LINEAR_FIELDS:
            readers = [name for name, fields in LINEAR_MECHANISMS.items() if field in fields]
            read = any(name in readers for name in mechanisms)
            refuse_unless(self, read, f"a linear_attention_type of {readers}", (field,))
        values = {mechanism: self._linear_values(mechanism) for mechanism in mechanisms}
        for mechanism in mechanisms:
            self._validate_linear_values(mechanism, values[mechanism])
        refuse_unread_linear(self, {name: (values[name], self._plain_values(name)) for name in mechanisms})

    def _validate_linear_words(self):
        layers = self.recurrent_layers()
        named = self.linear_attention_type
        reason = f"a layer of layer_types that is one of {list(WITH_RECURRENCE)}"
        refuse_unless(self, bool(layers), reason, ("linear_attention_type",))
        for index in layers:
            if (named[index] if isinstance(named, list) else named) is None:
                raise ValueError(
                    f"layer_types[{index}]={self.layer_types[index]!r} needs linear_attention_type, "
                    f"one of {sorted(LINEAR_MECHANISMS)}."
                )
        for index, mechanism in enumerate(named if isinstance(named, list) else []):
            if mechanism is not None and mechanism not in self.linear_mechanisms():
                raise ValueError(
                    f"linear_attention_type[{index}]={mechanism!r} only means something with layer_types[{index}] one "
                    f"of {list(WITH_RECURRENCE)}: put None there or change that."
                )

    def _validate_linear_values(self, mechanism: str, values: dict):
        own = {setting_name(field): value for field, value in values.items()}
        heads, keys = own.get("num_value_heads"), own.get("num_key_heads")
        if heads and keys and heads % keys:
            raise ValueError(f"linear_num_value_heads={heads} must be a multiple of linear_num_key_heads={keys}.")
        taps = own["conv_kernel_dim"]
        if taps < (1 if mechanism == "short_conv" else 0):
            raise ValueError(f"linear_conv_kernel_dim={taps} is too small for linear_attention_type={mechanism!r}.")
        if own["conv_bias"] and not taps and self.linear_attn_config["conv_bias"]:
            raise ValueError("linear_attn_config.conv_bias=True needs a convolution: linear_conv_kernel_dim above 0.")
        least, most = own.get("time_step_min"), own.get("time_step_max")
        if least is not None and not own["time_step_floor"] <= most >= least:
            raise ValueError(
                f"linear_attn_config.time_step_min={least} and time_step_floor={own['time_step_floor']} must not "
                f"exceed time_step_max={most}."
            )
        sections = own.get("section_multipliers")
        if sections and sections[0] != 1 and own["output_gate"] == "none":
            raise ValueError(
                f"mup_multipliers.linear_sections[0]={sections[0]} is for the gate, which "
                "linear_attn_config.output_gate='none' leaves out: it has to be 1.0."
            )
        self._validate_decay(mechanism, own)

    def _validate_decay(self, mechanism: str, own: dict):
        decay, bound = own.get("decay"), own.get("lower_bound")
        says = f"linear_attn_config.decay={decay!r}"
        if self.precision["linear_float32_parameters"] and not own["conv_kernel_dim"] and decay in (None, "constant"):
            raise ValueError(
                "precision.linear_float32_parameters=True needs a convolution (linear_conv_kernel_dim above 0) or a "
                f"linear_attn_config.decay that is learned, got {own['conv_kernel_dim']} and {decay!r}."
            )
        if (decay == "bounded_sigmoid") != (bound is not None) or (bound or -1) >= 0:
            raise ValueError(
                f"linear_attn_config.lower_bound={bound} and {says}: 'bounded_sigmoid' needs a bound below 0, any "
                "other decay none."
            )
        if (decay == "log_sigmoid") != (own.get("decay_normalizer") is not None):
            raise ValueError(
                "linear_attn_config.decay_normalizer is needed by linear_attn_config.decay='log_sigmoid' alone, got "
                f"{decay!r}."
            )
        if decay is not None and (decay == "constant") != (mechanism == "lightning_attention"):
            raise ValueError(f"{says} cannot be combined with linear_attention_type={mechanism!r}.")
