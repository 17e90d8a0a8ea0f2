"""Cache layers of recurrent and convolutional mixers: exact rollback, batch operations."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from transformers.cache_utils import LinearAttentionLayer

from .ops_recurrence_decode import DeferredState


class RecordedStep(NamedTuple):
    """One recorded forward of `tokens` tokens: `replay(before, n)` gives the state after its first n."""

    before: torch.Tensor | None
    tokens: int | None
    replay: Callable | None


class Record:
    """The forwards since recording began, of one convolution and its recurrence, and what was held before them."""

    def __init__(self):
        self.steps: list[RecordedStep] = []
        self.columns = 0
        # Inputs of the convolution in the forward at hand: how long it is.
        self.last_columns: int | None = None

    def add_columns(self, columns: int) -> None:
        """Notes that the convolution was given `columns` more inputs."""
        self.last_columns, self.columns = columns, self.columns + columns

    def window(self, inputs: torch.Tensor, width: int, count: int) -> torch.Tensor:
        """The convolution window `count` tokens ago, `[B, C, K]`, from all inputs held, `[B, C, K + columns]`."""
        tokens = [step.tokens for step in self.steps]
        if count > self.columns:
            refuse_crop(count, f"{self.columns} tokens are recorded")
        if count and tokens and None not in tokens and sum(tokens) != self.columns:
            # A mixer that moves padding out of the way stores windows, not what came in.
            refuse_crop(count, f"its convolution was given {self.columns} columns for {sum(tokens)} tokens")
        end = inputs.shape[-1] - count
        return inputs[..., end - width : end].clone()

    def state(self, state: torch.Tensor | None, count: int) -> torch.Tensor | None:
        """The recurrent state `count` tokens ago, from the present one; None before the first token."""
        if not count or state is None:
            return state
        if any(step.tokens is None for step in self.steps):
            refuse_crop(count, "its mixer passed no `num_tokens` to `update_recurrent_state`")
        left = count
        for step in reversed(self.steps):
            if step.tokens > left:
                if step.replay is None:
                    refuse_crop(count, "its mixer passed no `replay`, so only whole forwards can be taken back")
                return step.replay(step.before, step.tokens - left)
            state, left = step.before, left - step.tokens
            if not left:
                return state
        refuse_crop(count, f"{count - left} tokens are recorded")


def refuse_crop(count: int, reason: str) -> NoReturn:
    """Raises RuntimeError for a rollback by `count` tokens that cannot be exact."""
    raise RuntimeError(f"crop({-count}): {reason}; the recurrent state before them cannot be restored.")


class DeferringStates(LinearAttentionLayer):
    """Recurrent states some of whose writes are deferred (see `ops_recurrence_decode`).

    Reading `recurrent_states` completes them; they stay complete until the next single token.
    """

    @property
    def recurrent_states(self) -> dict[int, torch.Tensor | None]:
        for deferred in self.deferred.values():
            deferred.flush()
        return self._recurrent_states

    @recurrent_states.setter
    def recurrent_states(self, states: dict[int, torch.Tensor | None]) -> None:
        self._recurrent_states = states

    def deferred_state(self, state_idx: int = 0) -> DeferredState | None:
        """The state `[B, H, K, V]` with buffers for deferred writes; None where the plain step has to update it."""
        state, deferred = self._recurrent_states[state_idx], self.deferred.get(state_idx)
        # The dict may hold another tensor by now.
        if deferred is None or deferred.state is not state:
            if state.device.type != "cpu" or state.requires_grad or not state.is_contiguous():
                return None
            deferred = self.deferred[state_idx] = DeferredState(state)
        return deferred

    def __getstate__(self) -> dict:
        """For copies and pickles: complete states, without buffers."""
        states = self.recurrent_states
        return self.__dict__ | {"_recurrent_states": states, "deferred": {}}


class BatchRows:
    """The rows of a batch repeated, selected and put in another order."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.map_states(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row `repeats` times."""
        self.map_states(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        self.map_states(lambda states: states[indices])

    def map_states(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Applies a function of the batch axis to every state. What was recorded before is of other rows: dropped."""
        for states in (self.conv_states, self.recurrent_states):
            for index, held in states.items():
                if held is None:
                    continue
                mapped = function(held)
                if mapped.shape == held.shape and not self.record_past and not torch.is_grad_enabled():
                    held.copy_(mapped)
                else:
                    states[index] = mapped
        self.clear_records()


class RecurrentLayer(BatchRows, DeferringStates):
    """Convolution windows `[B, C, K]` and recurrent states of any shape `[B, ...]`.

    Beyond transformers' LinearAttentionLayer:

    - a mixer without a convolution finds its state again: `update_recurrent_state` marks it as present;
    - while recording, `crop` restores the state exactly: each forward leaves the state before it and a function
      `replay(state, n)` that computes the state after its first n tokens. Where that is missing, `crop` raises;
    - a state keeps the dtype in which the mixer hands it over;
    - with gradients enabled no tensor is overwritten;
    - the writes of single tokens may be deferred.
    """

    # Neither yes nor no: up to 5.19 transformers asks the first layer that is not sliding how many keys full attention
    # has.
    is_sliding = None

    def __init__(self, number_of_states: int = 1, **kwargs: Any):
        self.deferred = {}
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        self.replayable = True
        self.clear_records()

    def clear_records(self) -> None:
        """From here on nothing recorded before can be taken back."""
        self.records = {index: Record() for index in range(self.number_of_states)}

    def activate_past_recording(self) -> None:
        """From here on keeps what `crop` needs. While `record_past`, a mixer must not change states in place."""
        if not self.record_past:
            self.clear_records()
        LinearAttentionLayer.activate_past_recording(self)

    @property
    def is_croppable(self) -> bool:
        """Whether a rollback of any length can be exact: every forward so far was of one token or can be replayed."""
        if any(self.is_recurrent_states_initialized.values()):
            return self.replayable
        return any(self.is_conv_states_initialized.values())

    def lazy_initialization(
        self,
        conv_states: torch.Tensor | None = None,
        recurrent_states: torch.Tensor | None = None,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:
        LinearAttentionLayer.lazy_initialization(
            self, conv_states, recurrent_states, state_idx=state_idx, conv_kernel_size=conv_kernel_size
        )
        if self.device is None:
            known = recurrent_states if conv_states is None else conv_states
            self.dtype, self.device = known.dtype, known.device

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Takes `[B, C, t]` inputs of a convolution of K taps; returns them behind the window, `[B, C, K + t]`.

        The first call returns the inputs alone. What is kept is the last K, `[B, C, K]`, zeros before the first token.
        """
        held, columns = self.conv_states[state_idx], conv_states.shape[-1]
        first = held is None or not self.has_previous_state[state_idx]
        if first and held is not None and held.shape[:-1] != conv_states.shape[:-1]:
            # Reset, and now another batch size: no tensor fits any more.
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
            self.records[state_idx].add_columns(columns)
            self.conv_states[state_idx] = F.pad(full, (width, 0)) if first else full
        elif torch.is_grad_enabled():
            self.conv_states[state_idx] = F.pad(full, (width, 0))[..., -width:]
        else:
            last = full if full.shape[-1] >= width else F.pad(full, (width - full.shape[-1], 0))
            self.conv_states[state_idx].copy_(last[..., -width:])
        return full

    def update_recurrent_state(
        self,
        recurrent_states: torch.Tensor,
        state_idx: int = 0,
        replay: Callable | None = None,
        num_tokens: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Takes the state `[B, ...]` after this forward's `num_tokens` tokens; returns the one that is kept.

        `num_tokens` None: as many as the convolution was given. `replay(before, n)`, `before` None at the start, is
        what `crop` needs to take back a part of a forward. Raises RuntimeError if the state held was changed in place
        while the past is recorded.
        """
        held = self.recurrent_states[state_idx]
        record = self.records[state_idx]
        columns, record.last_columns = record.last_columns, None
        num_tokens = columns if num_tokens is None else num_tokens
        self.replayable = self.replayable and (replay is not None or num_tokens == 1)
        if self.record_past:
            before = held if self.has_previous_state[state_idx] else None
            if before is not None and before.data_ptr() == recurrent_states.data_ptr():
                raise RuntimeError(
                    "A recurrent state was changed in place while its past is recorded (`record_past`): the mixer must "
                    "return a new tensor there."
                )
            record.steps.append(RecordedStep(before, num_tokens, replay))
        if held is None:
            self.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
            held = self.recurrent_states[state_idx]
        self.has_previous_state[state_idx] = True
        same = held.shape == recurrent_states.shape and held.dtype == recurrent_states.dtype
        if same and not self.record_past and not torch.is_grad_enabled():
            if held is not recurrent_states:
                held.copy_(recurrent_states)
        else:
            self.recurrent_states[state_idx] = recurrent_states
        return self.recurrent_states[state_idx]

    def crop(self, tokens_to_remove: int) -> None:
        """Goes back by `-tokens_to_remove` tokens; only the state of then is kept, nothing recorded.

        Raises RuntimeError, and changes nothing, for a positive number and where that state cannot be restored: past
        not recorded, fewer tokens recorded, or a part of a forward that came without `replay`.
        """
        self.commit(self.plan(tokens_to_remove))

    def plan(self, tokens_to_remove: int) -> dict[int, tuple[torch.Tensor | None, torch.Tensor | None]]:
        """What `commit` takes: {number of a state: (convolution window, recurrent state)}, None for what is not there.
        Raises as `crop` does."""
        if not self.record_past or tokens_to_remove > 0:
            raise RuntimeError(
                f"crop({tokens_to_remove}) on a recurrent layer: call `activate_past_recording` before the tokens that "
                "may be removed, and pass minus their number."
            )
        planned, count = {}, -tokens_to_remove
        for index, record in self.records.items():
            window = None
            if self.is_conv_states_initialized[index]:
                window = record.window(self.conv_states[index], self.conv_kernel_size[index], count)
            planned[index] = window, record.state(self.recurrent_states[index], count)
        return planned

    def commit(self, planned: dict) -> None:
        """Puts in place what `plan` has found."""
        for index, (window, state) in planned.items():
            if window is not None:
                self.conv_states[index] = window
            if state is not None:
                self.recurrent_states[index] = state
            elif self.is_recurrent_states_initialized[index]:
                # Back before the first token.
                self.recurrent_states[index] = torch.zeros_like(self.recurrent_states[index])
                self.has_previous_state[index] = False
        self.clear_records()

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        self.clear_records()
