"""Rows of tokens cut over processes: accelerate's context parallel (torch's ring attention) and sequence parallel
(DeepSpeed's Ulysses).

Both let torch's attention read the keys of other processes, drop its mask for a causal one, and exchange nothing else.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig

# Attention that reads other tokens by torch's attention alone, with keys that a causal mask hides.
BY_PLAIN_ATTENTION = (
    "grouped_query", "latent", "value_residual", "multi_matrix_factorization", "tensor_product", "grouped_tied",
)  # fmt: skip
# What else a plain causal attention would leave out, or what reads tokens ahead.
NOT_PLAIN = (
    "sparse_attention_pattern", "use_bidirectional_attention", "attention_sinks", "attn_logit_softcapping",
    "num_mtp_layers",
)  # fmt: skip
BIASES = ("alibi", "relative", "transformer_xl")


def sequence_ties(config: "ZooConfig") -> list[str]:
    """What a cut row would change, "field=value" each."""
    words = [*dict.fromkeys(word for word in config.layer_types if word not in ("full_attention", "moe"))]
    found = [f"layer_types={words}"] if words else []
    others = sorted(config.attentions - {*BY_PLAIN_ATTENTION})
    found += [f"attention_type={name!r}" for name in others]
    if config.position_embedding_type in BIASES:
        found.append(f"position_embedding_type={config.position_embedding_type!r}")
    layers = config.per_layer_config if config.is_heterogeneous else [config]
    for field in NOT_PLAIN:
        values = [value for value in (getattr(layer, field) for layer in layers) if value]
        found += [f"{field}={values[0]!r}"] if values else []
    return found


def cut_over() -> str | None:
    """What cuts rows in this process, "cp_size=2" or "sp_size=2" of accelerate's ParallelismConfig; None for
    nothing."""
    state = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
    # What every Accelerator of the process shares. Gone: nothing is refused here.
    layout = getattr(state, "_shared_state", {}).get("parallelism_config")
    sizes = [(name, getattr(layout, name, None) or 1) for name in ("cp_size", "sp_size")]
    return next((f"{name}={size}" for name, size in sizes if size > 1), None)


def refuse_cut_rows(config: "ZooConfig") -> None:
    """Raises ValueError where rows are cut that this model has to read whole."""
    setting = cut_over()
    ties = sequence_ties(config) if setting is not None else []
    if ties:
        raise ValueError(
            f"{setting} cuts rows of tokens over processes, which {ties[0]} does not allow: leave it at 1 and use "
            "tp_size or fsdp_size."
        )
