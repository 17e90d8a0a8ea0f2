"""What mixes tokens: the contract that attention, recurrences and convolutions share."""

from torch import nn

from configuration_zoo import ZooConfig


class TokenMixer(nn.Module):
    """What mixes tokens in a layer: attention, a recurrence or a convolution.

    Called as `mixer(hidden_states, *, position_embeddings, attention_mask, past_key_values, **kwargs)`, `[B, T, D]`,
    and gives (output `[B, T, D]`, weights or None).
    """

    def __init__(self, config: ZooConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
