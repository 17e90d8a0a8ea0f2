"""The guides in the order in which they are read, and the flags that none of them has to explain."""

from .concept import Concept
from .concepts_attention import ATTENTION
from .concepts_stream import STREAM
from .concepts_training import TRAINING

ORDER = (
    "norms", "norm-placement", "parallel-layers", "hyper-connections", "attention-residuals", "altup", "gated-mlps",
    "experts",
    "grouped-query-attention", "latent-attention", "rope", "positions", "nope", "qk-norm", "soft-capping",
    "gates-and-sinks", "windows", "sparse-patterns", "sparse-attention", "other-softmaxes", "factored-attention",
    "shared-keys-and-values", "value-residual",
    "hybrids", "shared-blocks", "embedding-and-head", "per-layer-inputs", "multi-token-prediction", "z-loss",
    "hyperparameters", "initialisation", "multipliers",
)  # fmt: skip
EVERY = {concept.slug: concept for concept in (*STREAM, *ATTENTION, *TRAINING)}
CONCEPTS: dict[str, Concept] = {slug: EVERY[slug] for slug in ORDER}
# What a file or a run needs, not an architecture.
NO_CONCEPT = {
    "source_config", "source_extras", "surgery", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip


def flags_of(concept: Concept, every: dict[str, dict]) -> list[str]:
    """The names of its flags, those that end in a dot taken for all keys of their dict."""
    found = []
    for name in concept.flags:
        found += [key for key in every if key.startswith(name)] if name.endswith(".") else [name]
    return found
