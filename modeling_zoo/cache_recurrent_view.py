"""What one recurrent mixer sees of a cache: the window of its convolution and its state."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.utils.generic import maybe_autocast

from .ops_dispatch import is_traced
from .ops_packing import PackedSequences
from .ops_recurrence_decode import DeferredState

# (*inputs, state, packed) -> (output, state)
Recurrence = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class RowLayout(Protocol):
    """How the tokens of a batch stand in their rows: `TokenRows`, as far as a cache has to know."""

    moved: bool
    valid: torch.Tensor | None
    packed: PackedSequences | None


class RecurrentCacheView:
    """The states of one mixer in a cache, transformers' or zoo's; `cache` None: nothing is kept.

    Raises ValueError for a cache whose layer holds no recurrent state.
    """

    def __init__(self, cache: Cache | None, layer_idx: int, state_idx: int = 0):
        self.cache, self.layer_idx, self.state_idx = cache, layer_idx, state_idx
        layers = [] if cache is None else cache.layers
        self.layer = layers[layer_idx] if layer_idx < len(layers) else None
        # Not `recurrent_states`: reading that flushes a deferred state.
        if cache is not None and not hasattr(self.layer, "is_recurrent_states_initialized"):
            found = "missing" if self.layer is None else f"a {type(self.layer).__name__}"
            raise ValueError(
                f"Layer {layer_idx} of the cache is {found}, which holds no recurrent state: build the cache from the "
                "model's config, as in DynamicCache(config=model.config). Prefix tuning, which writes keys and values "
                "only, cannot be used with recurrent layers: use prompt tuning or LoRA."
            )
        # Before this forward: what it stores itself must not count.
        self.has_history = self.layer is not None and bool(self.layer.has_previous_state[state_idx])
        self.recording = bool(getattr(self.layer, "record_past", False))
        # A traced graph cannot ask for the mode.
        if self.has_history and not is_traced() and not torch.is_inference_mode_enabled():
            self.copy_inference_tensors()

    def copy_inference_tensors(self) -> None:
        """Replaces states that were made in inference mode: outside of it they can neither be written to nor take part
        in a gradient, their copies can."""
        layer, index, own = self.layer, self.state_idx, vars(self.layer)
        states = layer.conv_states, own.get("_recurrent_states") or own["recurrent_states"]
        if not any(kept[index] is not None and kept[index].is_inference() for kept in states):
            return
        for kept in (layer.conv_states, layer.recurrent_states):
            kept[index] = None if kept[index] is None else kept[index].clone()

    # -- the convolution -------------------------------------------------------------------------------------------

    def conv_window(self, taps: int) -> torch.Tensor | None:
        """The last `taps` inputs of the convolution `[B, C, K]`, None before the first token."""
        if not self.has_history:
            return None
        held = self.layer.conv_states[self.state_idx][..., -taps:]
        return F.pad(held, (taps - held.shape[-1], 0))

    def held_window(self, inputs: torch.Tensor, taps: int) -> torch.Tensor | None:
        """The window `[B, C, K]` in the cache, to be moved on in place by one more input `[B, 1, C]`.

        None where the cache has to be updated by `store_conv_inputs`: before the first token, for several tokens, while
        the past is recorded, with gradients.
        """
        if not self.has_history or self.recording or inputs.shape[1] != 1 or torch.is_grad_enabled():
            return None
        held = self.layer.conv_states[self.state_idx]
        return held if held.shape[-1] == taps and held.dtype == inputs.dtype else None

    def store_conv_inputs(self, inputs: torch.Tensor, taps: int, rows: RowLayout) -> None:
        """Keeps the last `taps` inputs of a convolution: those held and these, `[B, T, C]` in the layout `rows`."""
        if self.cache is None:
            return
        inputs = inputs.transpose(1, 2)
        if rows.moved:
            before = self.conv_window(taps)
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

    # -- the state -------------------------------------------------------------------------------------------------

    def recur(
        self, recurrence: Recurrence, inputs: tuple, packed: PackedSequences | None = None, can_defer: bool = False
    ) -> torch.Tensor:
        """The output of `recurrence(*inputs, state, packed)` -> (output, state), from the stored state on; stores the
        new one.

        The inputs are `[B, T, ...]`, or None but for the first. `can_defer`: the recurrence takes a DeferredState for a
        single token. Autocast is off, which would round the state for every product.
        """
        device = inputs[0].device.type
        deferred = self.deferred_state() if can_defer and inputs[0].shape[1] == 1 else None
        with maybe_autocast(device_type=device, enabled=False):
            output, state = recurrence(*inputs, self.recurrent_state() if deferred is None else deferred, packed)
        if deferred is not None:
            return output

        def replay(before, tokens):
            # A recurrence may write into the state it is given.
            before = None if before is None else before.clone()
            with maybe_autocast(device_type=device, enabled=False):
                return recurrence(*[None if x is None else x[:, :tokens] for x in inputs], before, None)[1]

        self.store_recurrent_state(state, replay, output.shape[1])
        return output

    def recurrent_state(self) -> torch.Tensor | None:
        """The state, None before the first token; a copy where it must not be changed in place."""
        state = self.layer.recurrent_states[self.state_idx] if self.has_history else None
        if state is not None and (self.recording or torch.is_grad_enabled()):
            return state.clone()
        return state

    def deferred_state(self) -> DeferredState | None:
        """The state of a layer that defers the writes of single tokens (on a CPU, without gradients); None where
        `recurrent_state` has to be used."""
        if not self.has_history or self.recording or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        deferred_state = getattr(self.layer, "deferred_state", None)
        return None if deferred_state is None else deferred_state(self.state_idx)

    def store_recurrent_state(self, state: torch.Tensor, replay: Callable, tokens: int) -> None:
        """Keeps the state after this forward's `tokens` tokens; `replay(before, n)` computes it after the first n."""
        if self.cache is None:
            return
        self.cache.update_recurrent_state(
            state, self.layer_idx, state_idx=self.state_idx, replay=replay, num_tokens=tokens
        )
        # transformers' own layer marks its state as present only through a convolution, and takes its device from it.
        self.layer.has_previous_state[self.state_idx] = True
        if self.layer.device is None:
            self.layer.dtype, self.layer.device = state.dtype, state.device
