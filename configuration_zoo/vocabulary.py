"""Every name of a layer type and of what a layer is made of, once. The fields take these words, the checks and
derivations of the config read them, and the registries of the model have one row for each.

Words of one line of `layer_types` are transformers' own: masks and caches of the whole ecosystem follow them.
"""

from dataclasses import dataclass

# -- layer_types: how far a layer sees -----------------------------------------------------------------------------

FULL, SLIDING, CHUNKED, INDEXED = "full_attention", "sliding_attention", "chunked_attention", "indexed_attention"
COMPRESSED_SPARSE, HEAVILY_COMPRESSED = "compressed_sparse_attention", "heavily_compressed_attention"
LINEAR, CONV = "linear_attention", "conv"
HYBRID, HYBRID_SLIDING = "hybrid", "hybrid_sliding"
# transformers' name, whatever the MLP: a layer without a mixer, which caches nothing.
NO_MIXER = "moe"

# A window of tokens, and beside it entries that each stand for several older ones.
COMPRESSED_LAYERS = (COMPRESSED_SPARSE, HEAVILY_COMPRESSED)
SOFTMAX_LAYERS = (FULL, SLIDING, CHUNKED, INDEXED, *COMPRESSED_LAYERS)
# A recurrence or a convolution alone; one beside attention.
RECURRENT_LAYERS = (LINEAR, CONV)
HYBRID_LAYERS = (HYBRID, HYBRID_SLIDING)
NO_MIXER_LAYERS = (NO_MIXER,)
LAYER_TYPES = SOFTMAX_LAYERS + RECURRENT_LAYERS + HYBRID_LAYERS + NO_MIXER_LAYERS
# Layers with softmax attention, and those with a recurrence or a convolution, alone or beside each other.
ATTENDING_LAYERS = SOFTMAX_LAYERS + HYBRID_LAYERS
WITH_RECURRENCE = RECURRENT_LAYERS + HYBRID_LAYERS
# Layers whose keys and values a later one can read, and that can read them.
SHARING_LAYERS = (FULL, SLIDING, CHUNKED)
# Layers that see a number of tokens -> the field with that number.
WINDOW_FIELDS = {
    **dict.fromkeys((SLIDING, HYBRID_SLIDING, *COMPRESSED_LAYERS), "sliding_window"), CHUNKED: "attention_chunk_size",
}  # fmt: skip

# -- attention_type, linear_attention_type: by which mechanism -----------------------------------------------------

ATTENTION_TYPES = (
    "grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual",
    "multi_matrix_factorization", "tensor_product", "grouped_tied", "latent",
)  # fmt: skip
# Those with keys and values per head.
PER_HEAD_ATTENTIONS = (
    "grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual",
    "multi_matrix_factorization",
)  # fmt: skip
# Those with queries, or keys and values, of factors of a lower rank; those that cache what keys and values are made of.
FACTORED_ATTENTIONS = ("multi_matrix_factorization", "tensor_product")
COMPOSED_ATTENTIONS = ("tensor_product", "grouped_tied")
# Those whose scores depend on the keys between a key and its query.
ORDERED_ATTENTIONS = ("forgetting", "stick_breaking", "path")
RECURRENCES = (
    "gated_delta_net",
    "kimi_delta_attention",
    "delta_net",
    "gated_delta_product",
    "delta_product",
    "linear_attention",
    "gated_linear_attention",
    "lightning_attention",
    "mamba2",
    "mamba",
    "rg_lru",
    "short_conv",
)
# What chooses the keys of an indexed layer, and the patterns over a full one.
INDEXER_TYPES = ("full", "shared", "none")
SPARSE_PATTERNS = ("none", "strided", "fixed", "banded")

# -- mlp_layer_types, hidden_act: the channel mixer ----------------------------------------------------------------

MLP_LAYER_TYPES = ("dense", "sparse")
# transformers' ACT2FN without the one whose parameter it never initialises (prelu), and elu.
ACTIVATIONS = (
    "elu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
# Those without parameters of their own.
# Those with numbers that learn.
LEARNED_ACTIVATIONS = ("xielu",)
PLAIN_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name not in ("elu", "xielu"))

# -- block_type: the residual topology -----------------------------------------------------------------------------

BLOCK_TYPES = (
    "pre_norm",
    "sub_norm",
    "gated_norm",
    "gated_attn_norm",
    "post_norm",
    "output_norm",
    "sandwich_norm",
    "scaled_sandwich_norm",
    "pre_norm_residual",
    "parallel",
    "parallel_two_norms",
    "mixer_only",
    "mlp_only",
    "shared_block",
    "shortcut",
    "hyper_connection",
    "altup",
    "attention_residual",
)
# Blocks whose residual is a norm's output, not the bare stream.
WEIGHTED_BLOCKS = ("post_norm", "pre_norm_residual")
GATED_NORM_BLOCKS = ("gated_norm", "gated_attn_norm")
# Blocks that can have a low-rank map beside attention.
LAUREL_BLOCKS = ("sandwich_norm", "altup")
# Blocks with several residual streams.
STREAM_BLOCKS = ("hyper_connection", "altup")
# Blocks that read or write more than the one stream between layers.
WHOLE_STACK_BLOCKS = (*STREAM_BLOCKS, "attention_residual")
PARALLEL_BLOCKS = ("parallel", "parallel_two_norms")
# Blocks whose mixers and MLPs read the residual stream through a norm alone.
PRE_NORM_BLOCKS = (
    "pre_norm", "sub_norm", *GATED_NORM_BLOCKS, "sandwich_norm", *PARALLEL_BLOCKS, "mixer_only", "mlp_only",
    "shared_block", "shortcut",
)  # fmt: skip

# -- mtp.projection: whose norms and projection stand around the layers that predict further tokens ------------------

MTP_PROJECTIONS = ("one_per_depth", "one_for_all")

# -- position_embedding_type ---------------------------------------------------------------------------------------

POSITION_EMBEDDINGS = ("rope", "learned", "sinusoidal", "alibi", "relative", "transformer_xl", "none")
ABSOLUTE_POSITIONS = ("learned", "sinusoidal")
# Those that are added to the scores of attention.
POSITION_BIASES = ("alibi", "relative", "transformer_xl")

# -- norm_type, qk_norm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NormType:
    """What the config has to know of a norm.

    `casts` are the orders in which implementations round, the default first; they differ below float32 only. `bias`
    says whether the norm can have one, and then has one by default. `full_scope` says whether it can normalise all
    heads of queries or keys together (qk_norm_config.scope "full").
    """

    casts: tuple[str, ...] = ()
    bias: bool = False
    full_scope: bool = False


NORM_TYPES = {
    "rms_norm": NormType(casts=("cast_then_scale", "scale_then_cast"), full_scope=True),
    "layer_norm": NormType(casts=("native", "float32"), bias=True, full_scope=True),
}
NORMS_WITH_BIAS = tuple(name for name, norm in NORM_TYPES.items() if norm.bias)
