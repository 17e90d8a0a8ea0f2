"""What latent attention finds in a cache, and how its one key for all heads looks to an attention function."""

import torch


class SharedKeyView:
    """A mixer as an attention function should see it while all its heads read one key."""

    def __init__(self, mixer, heads):
        self.mixer = mixer
        self.num_key_value_groups = heads

    def __getattr__(self, name):
        return getattr(self.mixer, name)


def refuse_expanded(past_key_values, layer_idx):
    """Raises ValueError for a cache that somebody has filled with keys and values per head."""
    layers = getattr(past_key_values, "layers", ())
    keys = getattr(layers[layer_idx], "keys", None) if layer_idx < len(layers) else None
    if isinstance(keys, torch.Tensor) and keys.dim() == 4 and keys.shape[1] != 1:
        raise ValueError(
            f"Layer {layer_idx} of the cache holds keys of {keys.shape[1]} heads, but latent attention caches one "
            "latent for all of them. Prefix tuning, which writes keys and values per head, cannot be used with "
            "attention_type='latent': use prompt tuning or LoRA."
        )


def shared_parts(latent, rope_key, past_key_values, layer_idx):
    """What all heads read, as few parts as possible: `[B, S, c + r]` where the cache holds them side by side, else
    `[B, S, c]` and `[B, S, r]`."""
    layers = getattr(past_key_values, "layers", ())
    whole = getattr(layers[layer_idx], "latent_and_rope", None) if layer_idx < len(layers) else None
    if whole is not None and whole.shape[2] == latent.shape[2]:
        return (whole[:, 0],)
    return tuple(part[:, 0] for part in (latent, rope_key) if part.shape[-1])
