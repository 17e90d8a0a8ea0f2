"""Sizes of the whole model, its embedding and its head."""

from dataclasses import dataclass

from .field_kinds import Items, Number, Record, depth, factor, flag, number, positive, probability, setting, size
from .fields_checks import for_each_layer


@dataclass(kw_only=True, repr=False)
class ModelFields:
    """Vocabulary, width, depth; what happens between tokens and stream at both ends."""

    vocab_size: int = size(
        32000,
        meaning="Rows of the token table: how many tokens there are.",
        source="transformers",
    )
    hidden_size: int = size(
        4096,
        meaning="Width of the residual stream, which every layer reads and adds to.",
        source="transformers",
    )
    num_hidden_layers: int = depth(
        32,
        meaning="How many layers the model has.",
        source="transformers",
    )
    tie_word_embeddings: bool = flag(
        meaning="The matrix of the head is the token table.",
        source="Press & Wolf 2017, arXiv 1608.05859",
    )
    embedding_size: int | None = size(
        meaning="Width of the token table and of the head where it is not hidden_size, with a projection at each end. "
        "None: hidden_size.",
        source="Zhang et al. 2022, OPT, arXiv 2205.01068 (the 350m model)",
    )
    embedding_multiplier: float | int = factor(
        1.0,
        meaning="Factor on the embeddings. precision.embedding_multiplier_in_weight_dtype says where the product is "
        "rounded.",
        source="Vaswani et al. 2017, §3.4; Granite's name",
    )
    logits_scaling: float | int = positive(
        1.0,
        meaning="Logits are divided by this number, before they are capped.",
        source="Granite 3 (IBM 2024)",
    )
    final_logit_softcapping: float | int | None = positive(
        meaning="Logits become cap · tanh(logit / cap). None: no cap.",
        source="Gemma 2, arXiv 2408.00118, §2",
    )
    lm_head_bias: bool = flag(
        meaning="The head has a learned bias on the logits.",
        source="GPT-J (Wang & Komatsuzaki 2021)",
    )
    suppressed_token_ids: list[int] | None = setting(
        Items(Number(whole=True)),
        None,
        meaning="Tokens that are never produced: their logits become the smallest number of the dtype.",
        source="Chameleon, arXiv 2405.09818, as transformers runs it",
    )
    embedding_dropout: float | int = probability(
        meaning="Rate of dropout on the embeddings, in training.",
        source="Vaswani et al. 2017, §5.4",
    )
    residual_dropout: float | int = probability(
        meaning="Rate of dropout on the output of each sub-layer before it joins the residual stream, in training.",
        source="Vaswani et al. 2017, §5.4",
    )
    initializer_range: float | int = positive(
        0.02,
        meaning="Standard deviation of a new matrix, where initializer.type does not say otherwise.",
        source="transformers",
    )
    use_cache: bool = flag(
        True,
        meaning="Whether a forward returns its cache.",
        source="transformers",
    )
    pad_token_id: int | None = number(
        whole=True,
        meaning="The token that pads the shorter rows of a batch.",
        source="transformers",
    )
    bos_token_id: int | list[int] | None = setting(
        Items(Number(whole=True)),
        None,
        meaning="The token that begins a text, or several.",
        source="transformers",
    )
    eos_token_id: int | list[int] | None = setting(
        Items(Number(whole=True)),
        None,
        meaning="The token that ends a text, or several.",
        source="transformers",
    )
    source_config: dict | None = setting(
        Record(),
        None,
        meaning="The config.json this model was converted from, unchanged, so that converting back loses nothing.",
        source="own to zoo",
    )
    source_extras: dict | None = setting(
        Record(),
        None,
        meaning="What the source held beside this model (a vision tower, layers that predict further tokens): how "
        "many `tensors` of which names, how weights kept as they were stored are `quantized`, and the `repository` and "
        "`revision` they came from.",
        source="own to zoo",
    )
    surgery: dict | None = setting(
        Record(),
        None,
        meaning="How this model was made from another by `zoo surgery`, `zoo heal` and `zoo merge`: the `source`, and "
        "the `operations` in their order with values, exactness, calibration, healing and what was measured.",
        source="own to zoo",
    )

    @property
    def output_width(self) -> int:
        """Width of the token table, of the last hidden states and of the head's input."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by, where serving engines that make them from the head look for it."""
        return 1 / self.logits_scaling

    @for_each_layer
    def validate_model(self) -> None:
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
