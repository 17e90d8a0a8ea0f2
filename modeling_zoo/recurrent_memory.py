"""What a recurrent mixer reads from a cache and leaves there: the window of its convolution and its state."""

import torch
import torch.nn.functional as F

from .ops_dispatch import is_traced


class Memory:
    """The place of one mixer in a cache, or nowhere (`cache` None).

    Works with transformers' own linear-attention layers and with zoo's, which also restore a state on `crop`.
    """

    def __init__(self, cache, layer_idx, state_idx=0):
        self.cache, self.layer_idx, self.state_idx = cache, layer_idx, state_idx
        layers = [] if cache is None else cache.layers
        self.layer = layers[layer_idx] if layer_idx < len(layers) else None
        # Not `recurrent_states`: asking for it ends the wait of a delayed state.
        if cache is not None and not hasattr(self.layer, "is_recurrent_states_initialized"):
            found = "missing" if self.layer is None else f"a {type(self.layer).__name__}"
            raise ValueError(
                f"Layer {layer_idx} of the cache is {found}, which holds no recurrent state: build the cache from the "
                "model's config, as in DynamicCache(config=model.config). Prefix tuning, which writes keys and values "
                "only, cannot be used with recurrent layers: use prompt tuning or LoRA."
            )
        # Before this forward; what it stores itself must not count.
        self.has_history = self.layer is not None and bool(self.layer.has_previous_state[state_idx])
        self.recording = bool(getattr(self.layer, "record_past", False))
        # A graph cannot ask for the mode.
        if self.has_history and not is_traced() and not torch.is_inference_mode_enabled():
            self.thaw()

    def thaw(self):
        """States made in inference mode can be written into there alone, and enter no gradient: copies can."""
        layer, index, own = self.layer, self.state_idx, vars(self.layer)
        states = layer.conv_states, own.get("_recurrent_states") or own["recurrent_states"]
        if not any(kept[index] is not None and kept[index].is_inference() for kept in states):
            return
        for kept in (layer.conv_states, layer.recurrent_states):
            kept[index] = None if kept[index] is None else kept[index].clone()

    def window(self, taps):
        """The last `taps` inputs of the convolution `[B, C, K]`, None before the first token."""
        if not self.has_history:
            return None
        held = self.layer.conv_states[self.state_idx][..., -taps:]
        return F.pad(held, (taps - held.shape[-1], 0))

    def slide(self, inputs, taps):
        """The window behind one more input `[B, 1, C]`, which the cache keeps; None where that takes more than a step:
        before the first token, while recording, with gradients."""
        if not self.has_history or self.recording or inputs.shape[1] != 1 or torch.is_grad_enabled():
            return None
        held = self.layer.conv_states[self.state_idx]
        if held.shape[-1] != taps or held.dtype != inputs.dtype:
            return None
        # All in one row: two plain copies, where a shift within each channel would be many short ones.
        window = held.roll(-1)
        window.select(-1, -1).copy_(inputs.squeeze(1))
        return held.copy_(window)

    def state(self):
        """The recurrent state, None before the first token; a copy where it must not be changed in place."""
        state = self.layer.recurrent_states[self.state_idx] if self.has_history else None
        if state is not None and (self.recording or torch.is_grad_enabled()):
            return state.clone()
        return state

    def delayed_state(self):
        """The state of a layer that lets the writes of single tokens wait, on a CPU; None where `state` is due."""
        if not self.has_history or self.recording or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        delayed_state = getattr(self.layer, "delayed_state", None)
        return None if delayed_state is None else delayed_state(self.state_idx)

    def store_window(self, inputs, taps, rows):
        """Keep the last `taps` of the inputs `[B, T, C]` of a convolution, behind what is there."""
        if self.cache is None:
            return
        inputs = inputs.transpose(1, 2)
        if rows.moved:
            before = self.window(taps)
            before = inputs.new_zeros(*inputs.shape[:2], taps) if before is None else before.to(inputs.dtype)
            last = rows.valid.sum(1, keepdim=True) + torch.arange(taps, device=inputs.device)
            line = torch.cat([before, inputs], dim=-1)
            inputs = line.gather(2, last.unsqueeze(1).expand(-1, inputs.shape[1], -1))
        elif not self.recording:
            inputs = inputs[..., -taps:]
        if rows.packed is not None:
            # Of the last sequence only.
            behind = torch.arange(inputs.shape[-1] - 1, -1, -1, device=inputs.device)
            inputs = inputs.masked_fill((behind > rows.packed.places[:, -1:]).unsqueeze(1), 0.0)
        self.cache.update_conv_state(inputs, self.layer_idx, state_idx=self.state_idx, conv_kernel_size=taps)

    def store_state(self, state, replay, tokens):
        """Keep the state after this forward's `tokens` tokens; `replay(state, n)` redoes the first n of them."""
        if self.cache is None:
            return
        self.cache.update_recurrent_state(
            state, self.layer_idx, state_idx=self.state_idx, replay=replay, num_tokens=tokens
        )
        # transformers' own layer marks its state as present only through a convolution, and takes its device from it.
        self.layer.has_previous_state[self.state_idx] = True
        if self.layer.device is None:
            self.layer.dtype, self.layer.device = state.dtype, state.device
