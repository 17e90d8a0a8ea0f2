"""Every token mixer by name; the only file that imports them all."""

from .attention import GroupedQueryAttention
from .kv_sharing import SharedKeyValueAttention
from .latent_attention import LatentAttention
from .linear_mixers import LINEAR_MIXERS, HybridMixer
from .relative_attention import TransformerXLAttention
from .sparse_attention import IndexedAttention

MIXERS = {
    "grouped_query": GroupedQueryAttention,
    "shared_key_value": SharedKeyValueAttention,
    "latent": LatentAttention,
    "indexed": IndexedAttention,
    "transformer_xl": TransformerXLAttention,
    "hybrid": HybridMixer,
    **LINEAR_MIXERS,
}


def make_mixer(config, layer_idx):
    """The mixer of layer `layer_idx`, by the name that `config.mixer_types` resolves from its word and its
    mechanism."""
    return MIXERS[config.mixer_types[layer_idx]](config, layer_idx)
