"""Every token mixer by name; the only file that imports them all."""

from .attention import GroupedQueryAttention

MIXERS = {
    "grouped_query": GroupedQueryAttention,
}


def make_mixer(config, layer_idx):
    """The mixer of layer `layer_idx`, by the name that `config.mixer_types` resolves from its word and its
    mechanism."""
    return MIXERS[config.mixer_types[layer_idx]](config, layer_idx)
