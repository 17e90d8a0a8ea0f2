"""Every token mixer and every channel mixer by name; the only file that imports them all."""

from .attention import GroupedQueryAttention
from .attention_kv_sharing import SharedKeyValueAttention
from .attention_latent import LatentAttention
from .attention_relative import TransformerXLAttention
from .attention_sparse import IndexedAttention
from .mlp_dense import make_dense_mlp
from .mlp_sparse import SparseMLP
from .platform_vllm import served_class
from .recurrent_hybrid import LINEAR_MIXERS, HybridMixer

MIXERS = {
    "grouped_query": GroupedQueryAttention,
    "shared_key_value": SharedKeyValueAttention,
    "latent": LatentAttention,
    "indexed": IndexedAttention,
    "transformer_xl": TransformerXLAttention,
    "hybrid": HybridMixer,
    **LINEAR_MIXERS,
}
# By their names in mlp_layer_types.
MLPS = {
    "dense": make_dense_mlp,
    "sparse": SparseMLP,
}


def make_mixer(config, layer_idx):
    """The mixer of layer `layer_idx`, by the name that `config.mixer_types` resolves from its word and its
    mechanism."""
    name = config.mixer_types[layer_idx]
    return served_class(MIXERS[name], name, config)(config, layer_idx)


def make_mlp(config, layer_idx):
    """The channel mixer of layer `layer_idx`."""
    return MLPS[config.mlp_layer_types[layer_idx]](config, layer_idx)
