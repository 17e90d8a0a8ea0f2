"""Sizes of the whole model, its embedding and its head."""

from dataclasses import dataclass

from .fields_checks import check_positive, check_probability, for_each_layer


@dataclass(kw_only=True, repr=False)
class ModelFields:
    """Vocabulary, width, depth; what happens between tokens and stream at both ends."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    tie_word_embeddings: bool = False
    # Width of the embedding and head where it differs from hidden_size, with a projection at each end (OPT 350m).
    embedding_size: int | None = None
    # Scale of the embeddings; in the weight's dtype it belongs to the table and skips `inputs_embeds` (Gemma).
    embedding_multiplier: float | int = 1.0
    embedding_multiplier_in_weight_dtype: bool = False
    # Logits are divided by this (Granite), then capped: cap · tanh(logit / cap) (Gemma 2).
    logits_scaling: float | int = 1.0
    final_logit_softcapping: float | int | None = None
    lm_head_bias: bool = False
    # Tokens that can never be produced: their logits become the smallest number (Chameleon).
    suppressed_token_ids: list[int] | None = None
    # Dropout on the embeddings and on each sub-layer's output.
    embedding_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    # The config.json this model was converted from, word for word, so that the way back loses nothing.
    source_config: dict | None = None

    @property
    def output_width(self) -> int:
        """Width of the token table, of the last hidden states and of the head's input."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @for_each_layer
    def validate_model(self):
        check_positive(self, "vocab_size", "hidden_size", "num_hidden_layers", "embedding_size", "initializer_range")
        check_positive(self, "logits_scaling", "final_logit_softcapping")
        check_probability(self, "embedding_dropout", "residual_dropout")
        if self.embedding_multiplier == 0:
            raise ValueError("embedding_multiplier=0 would erase every token: use a number other than 0.")
        for token in self.suppressed_token_ids or ():
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"suppressed_token_ids has {token}, outside the vocabulary of {self.vocab_size}.")
