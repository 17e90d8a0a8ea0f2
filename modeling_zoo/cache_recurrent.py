"""Cache layers of recurrent and convolutional mixers: exact rollback, batch operations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import LinearAttentionLayer

from .ops_recurrence_decode import DeferredState


class RecordedStep(NamedTuple):
    """One recorded forward of `tokens` tokens: `replay(before, n)` gives the state after its first n."""

    before: torch.Tensor | None
    tokens: int | None
    replay: Callable | None


class RecurrentLayer(LinearAttentionLayer):
    """Convolution windows `[B, C, K]` and recurrent states of any shape `[B, ...]`, as transformers' layer, and:

    - a mixer without a convolution reads its state back too: `update_recurrent_state` marks it as present;
    - `batch_repeat_interleave` and `batch_select_indices`;
    - `crop` while recording restores the state exactly, from what each update leaves behind: the state before it, and
      the `replay(state, n)` that the mixer passes to redo its first n tokens. Where that is missing, it raises;
    - a state keeps the dtype the mixer hands over; with gradients enabled nothing is overwritten in place;
    - a mixer can let the writes of single tokens wait (`deferred_state`); whoever asks for `recurrent_states` gets them
      complete. A tensor taken from there is complete until the next such token.
    """

    # Neither: transformers up to 5.19 asks the first layer that is not sliding how many keys full attention has.
    is_sliding = None

    def __init__(self, number_of_states=1, **kwargs):
        self.deferred = {}
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        self.replayable = True
        self._forget_steps()

    @property
    def recurrent_states(self):
        for deferred in self.deferred.values():
            deferred.flush()
        return self._recurrent_states

    @recurrent_states.setter
    def recurrent_states(self, states):
        self._recurrent_states = states

    def deferred_state(self, state_idx=0):
        """The state `[B, H, K, V]` with room for writes beside it; None for one that the plain step has to update."""
        state, deferred = self._recurrent_states[state_idx], self.deferred.get(state_idx)
        # Another tensor may have been put in its place.
        if deferred is None or deferred.state is not state:
            if state.device.type != "cpu" or state.requires_grad or not state.is_contiguous():
                return None
            deferred = self.deferred[state_idx] = DeferredState(state)
        return deferred

    def __getstate__(self):
        """For copies and files: complete states, without the room beside them."""
        states = self.recurrent_states
        return self.__dict__ | {"_recurrent_states": states, "deferred": {}}

    def _forget_steps(self):
        """Nothing recorded can be taken back any more."""
        indices = range(self.number_of_states)
        self.steps = {index: [] for index in indices}
        self.recorded_columns = dict.fromkeys(indices, 0)
        self.last_columns = dict.fromkeys(indices)

    def activate_past_recording(self):
        """From here on leave behind what `crop` needs. A mixer must not change states in place while `record_past`."""
        if not self.record_past:
            self._forget_steps()
        LinearAttentionLayer.activate_past_recording(self)

    @property
    def is_croppable(self):
        """Whether a rollback of any length can be exact: every forward so far was of one token or can be replayed."""
        if any(self.is_recurrent_states_initialized.values()):
            return self.replayable
        return any(self.is_conv_states_initialized.values())

    def lazy_initialization(self, conv_states=None, recurrent_states=None, state_idx=0, conv_kernel_size=None):
        LinearAttentionLayer.lazy_initialization(
            self, conv_states, recurrent_states, state_idx=state_idx, conv_kernel_size=conv_kernel_size
        )
        if self.device is None:
            given = recurrent_states if conv_states is None else conv_states
            self.dtype, self.device = given.dtype, given.device

    def update_conv_state(self, conv_states, state_idx=0, conv_kernel_size=None, **kwargs):
        """Take `[B, C, t]` inputs of a convolution of K taps; returns them behind the window, `[B, C, K + t]`.

        The first call returns the inputs alone. A state that is kept is `[B, C, K]`, zeros before the first token.
        """
        held, columns = self.conv_states[state_idx], conv_states.shape[-1]
        first = held is None or not self.has_previous_state[state_idx]
        if first and held is not None and held.shape[:-1] != conv_states.shape[:-1]:
            # Other rows after a reset: nothing of before fits.
            held = self.recurrent_states[state_idx] = None
            self.is_recurrent_states_initialized[state_idx] = False
        if held is None:
            self.lazy_initialization(
                conv_states=conv_states, state_idx=state_idx, conv_kernel_size=conv_kernel_size or columns
            )
        self.has_previous_state[state_idx] = True
        width = self.conv_kernel_size[state_idx]
        full = conv_states if first else torch.cat([held, conv_states], dim=-1)
        if self.record_past:
            self.last_columns[state_idx] = columns
            self.recorded_columns[state_idx] += columns
            self.conv_states[state_idx] = F.pad(full, (width, 0)) if first else full
        elif torch.is_grad_enabled():
            self.conv_states[state_idx] = F.pad(full, (width, 0))[..., -width:]
        else:
            last = full if full.shape[-1] >= width else F.pad(full, (width - full.shape[-1], 0))
            self.conv_states[state_idx].copy_(last[..., -width:])
        return full

    def update_recurrent_state(self, recurrent_states, state_idx=0, replay=None, num_tokens=None, **kwargs):
        """Take the state `[B, ...]` after this forward's `num_tokens` tokens; returns the one that is kept.

        `replay(state, n)`, state None at the start, is needed where `crop` takes back a part of a forward; its length
        is taken from the convolution where `num_tokens` is not given. RuntimeError if the held state was changed in
        place while the past is recorded.
        """
        held = self.recurrent_states[state_idx]
        columns, self.last_columns[state_idx] = self.last_columns[state_idx], None
        num_tokens = columns if num_tokens is None else num_tokens
        self.replayable = self.replayable and (replay is not None or num_tokens == 1)
        if self.record_past:
            before = held if self.has_previous_state[state_idx] else None
            self._record(state_idx, RecordedStep(before, num_tokens, replay), recurrent_states)
        if held is None:
            self.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
            held = self.recurrent_states[state_idx]
        self.has_previous_state[state_idx] = True
        same = held.shape == recurrent_states.shape and held.dtype == recurrent_states.dtype
        if same and not self.record_past and not torch.is_grad_enabled():
            held.copy_(recurrent_states)
        else:
            self.recurrent_states[state_idx] = recurrent_states
        return self.recurrent_states[state_idx]

    def _record(self, state_idx, step, state):
        if step.before is not None and step.before.data_ptr() == state.data_ptr():
            raise RuntimeError(
                "A recurrent state was changed in place while its past is recorded (`record_past`): the mixer must "
                "return a new tensor there."
            )
        self.steps[state_idx].append(step)

    def crop(self, tokens_to_remove):
        """Go back by `-tokens_to_remove` tokens and keep the working state alone.

        Raises RuntimeError, and changes nothing, for a positive number and where the state of then cannot be restored:
        past not recorded, fewer tokens recorded, or a part of a forward that came without `replay`.
        """
        self.commit(self.plan(tokens_to_remove))

    def plan(self, tokens_to_remove):
        """What `commit` puts in place: {state: (convolution window, recurrent state)}, None where there is none."""
        if not self.record_past or tokens_to_remove > 0:
            raise RuntimeError(
                f"crop({tokens_to_remove}) on a recurrent layer: call `activate_past_recording` before the tokens that "
                "may be removed, and pass minus their number."
            )
        return {
            index: (self._window(index, -tokens_to_remove), self._state(index, -tokens_to_remove))
            for index in range(self.number_of_states)
        }

    def commit(self, planned):
        for index, (window, state) in planned.items():
            if window is not None:
                self.conv_states[index] = window
            if state is not None:
                self.recurrent_states[index] = state
            elif self.is_recurrent_states_initialized[index]:
                # Back before the first token.
                self.recurrent_states[index] = torch.zeros_like(self.recurrent_states[index])
                self.has_previous_state[index] = False
        self._forget_steps()

    def _window(self, index, count):
        """The convolution window `count` tokens ago, `[B, C, K]`."""
        if not self.is_conv_states_initialized[index]:
            return None
        columns, tokens = self.recorded_columns[index], [step.tokens for step in self.steps[index]]
        if count > columns:
            self._refuse(count, f"{columns} tokens are recorded")
        if count and tokens and None not in tokens and sum(tokens) != columns:
            # A mixer that moves padding out of the way stores windows, not what came in.
            self._refuse(count, f"its convolution was given {columns} columns for {sum(tokens)} tokens")
        held, width = self.conv_states[index], self.conv_kernel_size[index]
        end = held.shape[-1] - count
        return held[..., end - width : end].clone()

    def _state(self, index, count):
        """The recurrent state `count` tokens ago; None before the first token."""
        state, steps = self.recurrent_states[index], self.steps[index]
        if not count or state is None:
            return state
        if any(step.tokens is None for step in steps):
            self._refuse(count, "its mixer passed no `num_tokens` to `update_recurrent_state`")
        left = count
        for step in reversed(steps):
            if step.tokens > left:
                if step.replay is None:
                    self._refuse(count, "its mixer passed no `replay`, so only whole forwards can be taken back")
                return step.replay(step.before, step.tokens - left)
            state, left = step.before, left - step.tokens
            if not left:
                return state
        self._refuse(count, f"{count - left} tokens are recorded")

    def _refuse(self, count, reason):
        raise RuntimeError(f"crop({-count}): {reason}; the recurrent state of then cannot be restored.")

    def reset(self):
        LinearAttentionLayer.reset(self)
        self._forget_steps()

    def reorder_cache(self, beam_idx):
        self.map_states(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats):
        """Repeat each row `repeats` times."""
        self.map_states(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        """Keep the rows `indices`."""
        self.map_states(lambda states: states[indices])

    def map_states(self, function):
        """Apply a function of the batch axis to every state; what was recorded before belongs to other rows."""
        for states in (self.conv_states, self.recurrent_states):
            for index, held in states.items():
                if held is None:
                    continue
                mapped = function(held)
                if mapped.shape == held.shape and not self.record_past and not torch.is_grad_enabled():
                    held.copy_(mapped)
                else:
                    states[index] = mapped
        self._forget_steps()
