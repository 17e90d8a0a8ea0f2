"""`generate(use_mtp=True)`: the model's own prediction layers draft tokens for transformers' assisted generation.

transformers' loop has the model read all drafts in one forward and keeps those it would have chosen itself, so tokens
are the same as without (Leviathan et al. 2023, arXiv 2211.17192; by `do_sample` they follow the same distribution).
transformers' own generator for such layers reads them from the files of a few families; this one has them in the model.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import CandidateGenerator

from .embeddings import shape_logits


class MultiTokenDrafts(CandidateGenerator):
    """Draft k of a round is the choice of prediction layer k at the last position.

    Layer k reads token i + k at position i, so its last k - 1 positions of a round stood on drafts. They are read again
    in the next round, where these tokens are known: each layer's cache goes back by n - 1 tokens first. Raises
    ValueError for a cache that holds tokens, and where transformers is too old.
    """

    requires_model_outputs = True
    model_kwargs_overrides = {"output_hidden_states": -1}

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        logits_processor: LogitsProcessorList | None = None,
        **call: Any,
    ):
        cache = model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            # transformers' loop would read these tokens again.
            raise ValueError(
                f"use_mtp=True starts from an empty cache, and past_key_values has {cache.get_seq_length()} tokens: "
                "leave it out."
            )
        if not hasattr(CandidateGenerator, "requires_model_outputs"):
            raise ValueError(
                "use_mtp=True needs a transformers that hands hidden states to drafts: install a newer version."
            )
        self.model, self.logits_processor = model, logits_processor
        self.do_sample, self.max_length = generation_config.do_sample, generation_config.max_length
        self.depth = model.config.num_mtp_layers
        self.caches = [model.mtp.make_cache() for _ in range(self.depth)]
        for cache in self.caches:
            cache.activate_past_recording()
        # h⁰ of the last n - 1 positions that were read.
        self.read = None

    def get_candidates(
        self,
        input_ids: torch.Tensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = False,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens `[1, T]` → (the same and up to n drafts, their logits `[1, n, V]`); no drafts before the model has
        read the prompt, nor behind the longest sequence asked for."""
        length = input_ids.shape[1]
        wanted = min(self.depth, self.max_length - length - 1)
        if is_first_iteration or wanted < 1:
            return input_ids, None
        last, call = model_outputs.hidden_states[-1], model_kwargs or {}
        last = last.to(self.model.mtp.projections[0].eh_proj.weight.device)
        hidden_states = self.states_to_read(last, n_last_matches + 1, wanted)
        positions = call.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=input_ids.device)[None]
        mask = call.get("attention_mask")
        mask = None if mask is None else mask[:, : length - 1]
        drafts, logits = self.draft(input_ids, hidden_states, positions, mask, wanted)
        return torch.cat([input_ids, *drafts], dim=1), torch.stack(logits, dim=1)

    def states_to_read(self, last: torch.Tensor, known: int, wanted: int) -> torch.Tensor:
        """h⁰ `[1, t, D]` of the positions to read: of the model's last forward those that were kept, behind those of
        the last round that stood on drafts."""
        if self.read is not None:
            for cache in self.caches[:wanted]:
                cache.crop(-self.read.shape[1])
            last = torch.cat([self.read, last[:, :known]], dim=1)
        self.read = last[:, max(0, last.shape[1] - self.depth + 1) :] if self.depth > 1 else last[:, :0]
        return last

    def draft(
        self,
        input_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        wanted: int,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The drafts `[1, 1]` of layers 1 to `wanted` and their logits `[1, V]`."""
        body, sequence, drafts, logits = self.model.model, input_ids, [], []
        count = hidden_states.shape[1]
        positions = positions[:, -count:]
        for depth in range(wanted):
            embeddings = body.embed(body.embed_tokens(sequence[:, -count:]), positions).to(hidden_states.device)
            arguments = (depth, embeddings, hidden_states, positions, mask)
            hidden_states = self.model.mtp(*arguments, past_key_values=self.caches[depth])
            scores = shape_logits(self.model.lm_head(hidden_states[:, -1]), self.model.config).float()
            scores = scores.to(input_ids.device)
            if self.logits_processor is not None:
                scores = self.logits_processor(sequence, scores)
            chosen = scores.softmax(dim=-1).multinomial(1) if self.do_sample else scores.argmax(dim=-1, keepdim=True)
            drafts.append(chosen)
            logits.append(scores)
            sequence = torch.cat([sequence, chosen], dim=1)
            positions = torch.cat([positions[:, 1:], positions[:, -1:] + 1], dim=1)
        return drafts, logits


# By the field that asks for the layers.
DRAFTS = {"num_mtp_layers": MultiTokenDrafts}


def make_drafts(model: PreTrainedModel, **call: Any) -> CandidateGenerator:
    """The drafts of a model; raises ValueError for one without prediction layers."""
    drafts = next((drafts for field, drafts in DRAFTS.items() if getattr(model.config, field)), None)
    if drafts is None:
        raise ValueError("use_mtp=True drafts with prediction layers, and this model has num_mtp_layers=0.")
    return drafts(model, **call)
