"""Every channel mixer by its word in `mlp_layer_types`."""

from .mlp_dense import make_dense_mlp
from .mlp_sparse import SparseMLP

MLPS = {
    "dense": make_dense_mlp,
    "sparse": SparseMLP,
}


def make_mlp(config, layer_idx):
    """The channel mixer of layer `layer_idx`."""
    return MLPS[config.mlp_layer_types[layer_idx]](config, layer_idx)
