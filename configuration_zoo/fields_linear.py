"""Recurrences and short convolutions in place of attention: linear attention, state space models, gated units."""

from dataclasses import dataclass
from types import SimpleNamespace

from .field_kinds import WIDEST, Choice, Number, choice, factor, flag, items, number, per_layer, positive, size
from .fields_checks import even_share, for_each_layer, refuse_unless
from .linear_needs import refuse_unread_linear
from .vocabulary import PLAIN_ACTIVATIONS, RECURRENCES, WITH_RECURRENCE

# What each mechanism reads, and what a field that is left at None means to it.
CONVOLUTION = {"linear_bias": False, "linear_conv_kernel_dim": 4, "linear_conv_bias": False, "linear_act": "silu"}
OUTPUT = {
    "linear_output_norm": "head",
    "linear_norm_before_gate": True,
    "precision.linear_norm": "cast_then_scale",
    "linear_norm_eps": None,
    "linear_output_gate": "silu",
}
TIME_STEPS = {"time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4}
DECAY = {
    "linear_decay": "softplus",
    "linear_decay_granularity": "head",
    "linear_decay_rank": None,
    "precision.linear_decay": "float32",
    "linear_lower_bound": None,
    "linear_decay_normalizer": None,
} | TIME_STEPS
HEADS = dict.fromkeys(
    ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
)
ADDITIVE = CONVOLUTION | OUTPUT | HEADS | {"linear_gate_rank": None, "linear_attention_multiplier": None}
ADDITIVE |= {"linear_feature_map": "none", "precision.linear_float32_parameters": False}
DELTA = ADDITIVE | {"linear_qk_norm": "l2", "linear_allow_neg_eigval": False}
STATE_SPACE = CONVOLUTION | OUTPUT | TIME_STEPS | HEADS | {"linear_conv_bias": True, "linear_norm_before_gate": False}

LINEAR_MECHANISMS = {
    "gated_delta_net": DELTA | DECAY,
    "kimi_delta_attention": DELTA | DECAY
    | {"linear_decay_granularity": "channel", "precision.linear_norm": "float32", "linear_output_gate": "sigmoid"},
    "delta_net": DELTA,
    "linear_attention": ADDITIVE,
    "gated_linear_attention": ADDITIVE | DECAY
    | {"linear_decay": "log_sigmoid", "linear_decay_granularity": "channel", "linear_decay_rank": 16,
       "linear_decay_normalizer": 16.0, "linear_conv_kernel_dim": 0, "linear_act": "none"},
    "lightning_attention": ADDITIVE
    | {"linear_decay": "constant", "linear_conv_kernel_dim": 0, "linear_attention_multiplier": 1.0,
       "linear_output_norm": "full", "linear_output_gate": "sigmoid"},
    "mamba2": STATE_SPACE
    | {"linear_output_norm": "group", "time_step_limit": None, "mup_multipliers.linear_in": None,
       "mup_multipliers.linear_out": None, "mup_multipliers.linear_sections": None},
    "mamba": STATE_SPACE | {"linear_output_norm": "none", "linear_step_norm": "none", "time_step_rank": None},
    "rg_lru": CONVOLUTION | OUTPUT | HEADS
    | {"linear_bias": True, "linear_conv_bias": True, "linear_act": "none", "linear_output_norm": "none",
       "linear_output_gate": "gelu_pytorch_tanh"},
    "short_conv": CONVOLUTION | {"linear_conv_kernel_dim": 3, "linear_act": "none"},
}  # fmt: skip
CHOICES = {
    "linear_decay": ("softplus", "bounded_sigmoid", "log_sigmoid", "constant"),
    "linear_decay_granularity": ("head", "channel"),
    "linear_qk_norm": ("l2", "none"),
    "linear_feature_map": ("none", "elu_plus_one", "relu"),
    "linear_output_norm": ("head", "group", "full", "none"),
    "linear_step_norm": ("none", "rms_norm", "rms_norm_without_weight"),
    "linear_act": ("none", *PLAIN_ACTIVATIONS),
    "linear_output_gate": ("none", *PLAIN_ACTIVATIONS),
}
# Names of a mixer's settings that are keys of dicts.
SHORT = {
    "precision.linear_norm": "norm_cast",
    "precision.linear_decay": "decay_dtype",
    "precision.linear_float32_parameters": "float32_parameters",
    "mup_multipliers.linear_in": "in_multiplier",
    "mup_multipliers.linear_out": "out_multiplier",
    "mup_multipliers.linear_sections": "section_multipliers",
}
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
    linear_bias: bool | None = flag(
        None,
        meaning="The projections into and out of the mixer have biases.",
        source="Mamba's published code",
    )
    linear_conv_kernel_dim: int | None = number(
        whole=True,
        most=WIDEST,
        meaning="Taps of the causal convolution on what is projected, 0 for none.",
        source="Mamba, arXiv 2312.00752, §3.4; H3, arXiv 2212.14052",
    )
    linear_conv_bias: bool | None = flag(
        None,
        meaning="The convolution has a bias.",
        source="Mamba's published code",
    )
    linear_act: str | None = choice(
        CHOICES["linear_act"],
        meaning="Activation after the convolution.",
        source="Mamba, arXiv 2312.00752, §3.4",
    )
    linear_qk_norm: str | None = choice(
        CHOICES["linear_qk_norm"],
        meaning="Whether queries and keys are L2-normalised.",
        source="Yang et al. 2024, arXiv 2406.06484, §3.4",
    )
    linear_feature_map: str | None = choice(
        CHOICES["linear_feature_map"],
        meaning="Map that makes queries and keys positive.",
        source="Katharopoulos et al. 2020, arXiv 2006.16236, §3.2.1",
    )
    linear_attention_multiplier: float | int | None = factor(
        meaning="Scale of the outputs. None: linear_key_head_dim ** -0.5.",
        source="own to zoo",
    )
    linear_decay: str | None = choice(
        CHOICES["linear_decay"],
        meaning="How the state forgets: softplus as in Mamba, bounded_sigmoid, log_sigmoid as in gated linear "
        "attention, or a constant per head. modeling_zoo/recurrent_decays.py has the formulas.",
        source="Mamba, arXiv 2312.00752; Yang et al. 2023, arXiv 2312.06635; Qin et al. 2024, arXiv 2401.04658",
    )
    linear_decay_granularity: str | None = choice(
        CHOICES["linear_decay_granularity"],
        meaning="The decay is one number per head or one per channel of the keys.",
        source="Gated DeltaNet, arXiv 2412.06464 (head); Kimi Linear, arXiv 2510.26692 (channel)",
    )
    linear_decay_rank: int | None = size(
        meaning="Width of the narrow projection that the decay comes through. None: one projection, without a narrow "
        "one.",
        source="Yang et al. 2023, arXiv 2312.06635, §4.4",
    )
    linear_lower_bound: float | int | None = number(
        meaning="The bound of a bounded_sigmoid decay, below 0.",
        source="Ling 3's published code",
    )
    linear_decay_normalizer: float | int | None = positive(
        meaning="The divisor of a log_sigmoid decay. None: 16.",
        source="Yang et al. 2023, arXiv 2312.06635, §4.4",
    )
    linear_allow_neg_eigval: bool | None = flag(
        None,
        meaning="Writes have a strength in (0, 2) instead of (0, 1), so that the state can flip a direction.",
        source="Grazzi et al. 2024, arXiv 2411.12537",
    )
    linear_output_norm: str | None = choice(
        CHOICES["linear_output_norm"],
        meaning="RMS norm of the output over each head, each group of heads, all of it, or none.",
        source="Mamba-2, arXiv 2405.21060, §7.1 (group); RetNet, arXiv 2307.08621 (head)",
    )
    linear_norm_before_gate: bool | None = flag(
        None,
        meaning="The output is normalised before it is gated, instead of after.",
        source="Mamba-2's published code (after); Gated DeltaNet's (before)",
    )
    linear_norm_eps: float | int | None = positive(
        meaning="Epsilon of the norms in the mixer. None: norm_eps.",
        source="own to zoo",
    )
    linear_output_gate: str | None = choice(
        CHOICES["linear_output_gate"],
        meaning='Activation of the gate on the output, "none" for no gate.',
        source="Mamba, arXiv 2312.00752, §3.4; RetNet, arXiv 2307.08621",
    )
    linear_gate_rank: int | None = size(
        meaning="Width of the narrow projection that the gate comes through. None: one projection, without a narrow "
        "one.",
        source="Kimi Linear, arXiv 2510.26692",
    )
    time_step_limit: list[float | int | None] | None = items(
        Number(least=0),
        2,
        meaning="Bounds [low, high] of a state space model's time steps, None for open.",
        source="Mamba-2's published code",
    )
    time_step_rank: int | None = size(
        meaning="Width of the projection that the time steps come through. None: hidden_size / 16, rounded up.",
        source="Mamba, arXiv 2312.00752, §3.6",
    )
    linear_step_norm: str | None = choice(
        CHOICES["linear_step_norm"],
        meaning="Norm on the time steps, B and C of a Mamba layer.",
        source="Jamba, arXiv 2403.19887, §6.4; FalconMamba, arXiv 2410.05355 (without a weight)",
    )
    time_step_min: float | int | None = positive(
        meaning="Least initial time step. None: 0.001.",
        source="Mamba, arXiv 2312.00752, §3.6",
    )
    time_step_max: float | int | None = positive(
        meaning="Largest initial time step. None: 0.1.",
        source="Mamba, arXiv 2312.00752, §3.6",
    )
    time_step_floor: float | int | None = positive(
        meaning="Initial time steps are raised to this number. None: 1e-4.",
        source="Mamba's published code",
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
            for field, value in self._linear_values(mechanisms[0]).items():
                setattr(self, field, value)

    def linear_settings(self, layer_idx: int) -> SimpleNamespace:
        """What the mixer of layer `layer_idx` reads: every field of its mechanism, without `linear_` in front."""
        named = self.linear_attention_type
        mechanism = named[layer_idx] if isinstance(named, list) else named
        values = dict.fromkeys(LINEAR_FIELDS) | self._linear_values(mechanism)
        names = {field: SHORT.get(field, field.removeprefix("linear_")) for field in values}
        return SimpleNamespace(**{names[field]: value for field, value in values.items()})

    def _linear_values(self, mechanism: str) -> dict:
        defaults = LINEAR_MECHANISMS[mechanism]
        own = {field: getattr(self, field) for field in defaults}
        values = {field: defaults[field] if value is None else value for field, value in own.items()}
        if "linear_norm_eps" in values and values["linear_norm_eps"] is None:
            values["linear_norm_eps"] = self.norm_eps
        return values | self._linear_sizes(mechanism, values)

    def _plain_values(self, mechanism: str) -> dict:
        """What is written out for fields that are left out and that the mechanism lists without reading them."""
        keys = {"linear_num_key_heads": 1, "linear_norm_eps": self.norm_eps}
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
            rank = values["time_step_rank"] or -(-self.hidden_size // 16)
            return dict(zip(HEADS, sizes, strict=True)) | {"time_step_rank": rank}
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
        heads, keys = values.get("linear_num_value_heads"), values.get("linear_num_key_heads")
        if heads and keys and heads % keys:
            raise ValueError(f"linear_num_value_heads={heads} must be a multiple of linear_num_key_heads={keys}.")
        taps = values["linear_conv_kernel_dim"]
        if taps < (1 if mechanism == "short_conv" else 0):
            raise ValueError(f"linear_conv_kernel_dim={taps} is too small for linear_attention_type={mechanism!r}.")
        if values["linear_conv_bias"] and not taps and self.linear_conv_bias:
            raise ValueError("linear_conv_bias=True needs a convolution: linear_conv_kernel_dim above 0.")
        least, most = values.get("time_step_min"), values.get("time_step_max")
        if least is not None and not values["time_step_floor"] <= most >= least:
            raise ValueError(
                f"time_step_min={least} and time_step_floor={values['time_step_floor']} must not exceed "
                f"time_step_max={most}."
            )
        sections = values.get("mup_multipliers.linear_sections")
        if sections and sections[0] != 1 and values["linear_output_gate"] == "none":
            raise ValueError(
                f"mup_multipliers.linear_sections[0]={sections[0]} is for the gate, which linear_output_gate='none' "
                "leaves out: it has to be 1.0."
            )
        decay, bound = values.get("linear_decay"), values.get("linear_lower_bound")
        if self.precision["linear_float32_parameters"] and not taps and decay in (None, "constant"):
            raise ValueError(
                "precision.linear_float32_parameters=True needs a convolution (linear_conv_kernel_dim above 0) or a "
                f"linear_decay that is learned, got {taps} and {decay!r}."
            )
        if (decay == "bounded_sigmoid") != (bound is not None) or (bound or -1) >= 0:
            raise ValueError(
                f"linear_lower_bound={bound} and linear_decay={decay!r}: 'bounded_sigmoid' needs a bound below 0, any "
                "other decay none."
            )
        if (decay == "log_sigmoid") != (values.get("linear_decay_normalizer") is not None):
            raise ValueError(f"linear_decay_normalizer is needed by linear_decay='log_sigmoid' alone, got {decay!r}.")
        if decay is not None and (decay == "constant") != (mechanism == "lightning_attention"):
            raise ValueError(f"linear_decay={decay!r} cannot be combined with linear_attention_type={mechanism!r}.")
