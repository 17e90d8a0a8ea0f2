"""Sizes of the whole model, its embedding and its head."""

from dataclasses import dataclass

from .field_kinds import Items, Number, Record, depth, factor, flag, number, positive, probability, setting, size
from .fields_checks import for_each_layer


@dataclass(kw_only=True, repr=False)
class ModelFields:
    """Vocabulary, width, depth; what happens between tokens and stream at both ends."""

    # Tokens in the table.
    vocab_size: int = size(32000)
    # Width of the residual stream.
    hidden_size: int = size(4096)
    # Depth.
    num_hidden_layers: int = depth(32)
    # The head's matrix is the token table.
    tie_word_embeddings: bool = flag()
    # Width of the embedding and head where it differs from hidden_size, with a projection at each end (OPT 350m).
    embedding_size: int | None = size()
    # Scale of the embeddings (precision.embedding_multiplier_in_weight_dtype says where it is rounded).
    embedding_multiplier: float | int = factor(1.0)
    # Logits are divided by this (Granite), then capped: cap · tanh(logit / cap) (Gemma 2).
    logits_scaling: float | int = positive(1.0)
    final_logit_softcapping: float | int | None = positive()
    # A learned bias of the logits.
    lm_head_bias: bool = flag()
    # Tokens that can never be produced: their logits become the smallest number (Chameleon).
    suppressed_token_ids: list[int] | None = setting(Items(Number(whole=True)), None)
    # Dropout on the embeddings and on each sub-layer's output.
    embedding_dropout: float | int = probability()
    residual_dropout: float | int = probability()
    # Standard deviation of a new matrix, where initializer_type does not say otherwise.
    initializer_range: float | int = positive(0.02)
    # Whether a forward returns its cache, as in transformers.
    use_cache: bool = flag(True)
    # Tokens that fill a batch, begin a text and end it (one or several).
    pad_token_id: int | None = number(whole=True)
    bos_token_id: int | list[int] | None = setting(Items(Number(whole=True)), None)
    eos_token_id: int | list[int] | None = setting(Items(Number(whole=True)), None)
    # The config.json this model was converted from, word for word, so that the way back loses nothing.
    source_config: dict | None = setting(Record(), None)
    # What it held beside this model (a vision tower, layers that predict further tokens), for the way back: how many
    # `tensors` of which names, and the `repository` and `revision` they came from.
    source_extras: dict | None = setting(Record(), None)

    @property
    def output_width(self) -> int:
        """Width of the token table, of the last hidden states and of the head's input."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by, where serving engines that make them from the head look for it."""
        return 1 / self.logits_scaling

    @for_each_layer
    def validate_model(self):
        sizes = {"vocab_size": self.vocab_size, "vocab_size_per_layer_input": self.vocab_size_per_layer_input}
        for field, rows in sizes.items():
            # One below 0 counts from the end, as in torch's table.
            if None not in (rows, self.pad_token_id) and not -rows <= self.pad_token_id < rows:
                raise ValueError(
                    f"pad_token_id={self.pad_token_id} is outside the table of {field}={rows}: name a token that is in "
                    "it, or leave pad_token_id out."
                )
        for token in self.suppressed_token_ids or ():
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"suppressed_token_ids has {token}, outside the vocabulary of {self.vocab_size}.")
