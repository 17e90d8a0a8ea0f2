"""What the fields of a recurrence need of one another to be read."""

from transformers import PreTrainedConfig

from .field_needs import UnreadField

TIME_STEP_FIELDS = (
    "linear_attn_config.time_step_min",
    "linear_attn_config.time_step_max",
    "linear_attn_config.time_step_floor",
)
# Decays whose bias starts as a time step; None: a state space model, which has time steps of its own.
STEPPING_DECAYS = (None, "softplus", "bounded_sigmoid")


def has_output_norm(mechanism: str, values: dict) -> bool:
    return values.get("linear_attn_config.output_norm") != "none"


def has_some_norm(mechanism: str, values: dict) -> bool:
    return has_output_norm(mechanism, values) or values.get("linear_attn_config.step_norm", "none") != "none"


def has_output_gate(mechanism: str, values: dict) -> bool:
    return values.get("linear_attn_config.output_gate") != "none"


def has_both(mechanism: str, values: dict) -> bool:
    return has_output_norm(mechanism, values) and has_output_gate(mechanism, values)


def has_time_steps(mechanism: str, values: dict) -> bool:
    return values.get("linear_attn_config.decay") in STEPPING_DECAYS


def has_keys(mechanism: str, values: dict) -> bool:
    return mechanism != "rg_lru"


# Fields -> whether a mechanism with these values reads them, and what that takes.
LINEAR_NEEDS = {
    ("linear_attn_config.norm_eps",): (
        has_some_norm,
        "a linear_attn_config.output_norm or linear_attn_config.step_norm other than 'none'",
    ),
    ("precision.linear_norm",): (has_output_norm, "a linear_attn_config.output_norm other than 'none'"),
    ("linear_attn_config.norm_before_gate",): (
        has_both,
        "a linear_attn_config.output_norm and a linear_attn_config.output_gate other than 'none'",
    ),
    ("linear_attn_config.gate_rank",): (has_output_gate, "a linear_attn_config.output_gate other than 'none'"),
    TIME_STEP_FIELDS: (has_time_steps, "a linear_attn_config.decay of 'softplus' or 'bounded_sigmoid'"),
    ("linear_num_key_heads", "linear_key_head_dim"): (has_keys, "a linear_attention_type other than 'rg_lru'"),
}


def refuse_unread_linear(config: PreTrainedConfig, mechanisms: dict[str, tuple[dict, dict]]) -> None:
    """Raises UnreadField for a field whose value no mechanism reads, though one lists it.

    `mechanisms`: name -> (what the config means for it, what a config that sets nothing would mean for it).
    """
    for fields, (reads, reason) in LINEAR_NEEDS.items():
        for field in fields:
            listing = [(name, *both) for name, both in mechanisms.items() if field in both[0]]
            value = getattr(config, field)
            if value is None or any(reads(name, values) for name, values, _ in listing):
                continue
            if all(value != plain[field] for _, _, plain in listing):
                raise UnreadField(field, value, reason)
