"""Every token mixer and every channel mixer by name; the only file that imports them all."""

from collections.abc import Callable

from torch import nn
from transformers.utils.output_capturing import OutputRecorder

from configuration_zoo import ZooConfig

from .attention import GroupedQueryAttention
from .attention_compressed import CompressedSparseAttention, HeavilyCompressedAttention
from .attention_differential import DifferentialAttention
from .attention_forgetting import ForgettingAttention
from .attention_grouped_tied import GroupedTiedAttention
from .attention_kv_sharing import SharedKeyValueAttention
from .attention_latent import LatentAttention
from .attention_matrix_factorization import MatrixFactorizationAttention
from .attention_path import PathAttention
from .attention_relative import TransformerXLAttention
from .attention_sparse import IndexedAttention
from .attention_sparse_blocks import BlockIndexedAttention
from .attention_stick_breaking import StickBreakingAttention
from .attention_tensor_product import TensorProductAttention
from .attention_value_residual import ValueResidualAttention
from .mixer import TokenMixer
from .mlp_dense import make_dense_mlp
from .mlp_routers import Router
from .mlp_sparse import SparseMLP
from .platform_vllm import served_class
from .recurrent_hybrid import HYBRID_ATTENTIONS, LINEAR_MIXERS, PARALLEL_MIXES

MIXERS = {
    "grouped_query": GroupedQueryAttention,
    "shared_key_value": SharedKeyValueAttention,
    "differential": DifferentialAttention,
    "forgetting": ForgettingAttention,
    "stick_breaking": StickBreakingAttention,
    "path": PathAttention,
    "value_residual": ValueResidualAttention,
    "multi_matrix_factorization": MatrixFactorizationAttention,
    "tensor_product": TensorProductAttention,
    "grouped_tied": GroupedTiedAttention,
    "latent": LatentAttention,
    "indexed": IndexedAttention,
    "heavily_compressed": HeavilyCompressedAttention,
    "compressed_sparse": CompressedSparseAttention,
    "block_indexed": BlockIndexedAttention,
    "transformer_xl": TransformerXLAttention,
    **LINEAR_MIXERS,
}
# By their names in mlp_layer_types.
MLPS = {
    "dense": make_dense_mlp,
    "sparse": SparseMLP,
}
# What such a layer has to record.
RECORDED = {"sparse": {"router_logits": OutputRecorder(Router, index=0)}}


def make_mixers(config: ZooConfig, layer_idx: int) -> dict[str, TokenMixer]:
    """The mixers of layer `layer_idx` under the names they have in it: attention is `self_attn`, a recurrence or a
    convolution `linear_attn`, and a hybrid layer has both."""
    attention, recurrence = config.attention_mixers[layer_idx], config.recurrent_mixers[layer_idx]
    mixers = {}
    if attention is not None and recurrence is None:
        mixers["self_attn"] = served_class(MIXERS[attention], attention, config)
    elif attention is not None:
        mixers["self_attn"] = HYBRID_ATTENTIONS[config.layer_types[layer_idx]]
    if recurrence is not None:
        mixers["linear_attn"] = LINEAR_MIXERS[recurrence]
    return {name: mixer_class(config, layer_idx) for name, mixer_class in mixers.items()}


def parallel_mix(config: ZooConfig, layer_idx: int) -> Callable | None:
    """What joins the two mixers of a hybrid layer; None for a layer with one."""
    has_both = config.attention_mixers[layer_idx] is not None and config.recurrent_mixers[layer_idx] is not None
    return PARALLEL_MIXES.get(config.layer_types[layer_idx]) if has_both else None


def make_mlp(config: ZooConfig, layer_idx: int) -> nn.Module:
    """The channel mixer of layer `layer_idx`."""
    return MLPS[config.mlp_layer_types[layer_idx]](config, layer_idx)
