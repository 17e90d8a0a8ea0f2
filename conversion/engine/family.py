"""What a family file holds: `conversion/families/<model_type>.py` is one family of checkpoints, as data.

How to write one (a `-` in the model_type is a `_` in the file name):

    from .family import COMMON_FIELDS, Family, restore_rope, rope
    from .rules import Rule, Split, renames

    QKV = "model.layers.{i}.self_attn."

    FAMILY = Family(
        fields=COMMON_FIELDS | {"rms_norm_eps": "norm_eps", "attention_bias": "attention_bias"},   # theirs -> ours
        fixed={"norm_type": "rms_norm", "block_type": "pre_norm"},                                 # constants of ours
        derive=lambda theirs: {"rope_parameters": rope(theirs)},        # whatever is not a plain renaming
        restore=lambda ours: {"rope_parameters": restore_rope(ours)},   # and its inverse, their keys
        rules=[                              # tensors: the first match wins; without a match a name stays
            *renames({"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}),
            Rule(QKV + "qkv.{w}", [QKV + f"{x}_proj.{{w}}" for x in "qkv"], Split("q", "k", "v")),
            Drop("model.layers.{i}.self_attn.rotary_emb.inv_freq"),
        ],
        tiny=[dict(hidden_size=48, ...), dict(...)],    # THEIR arguments; every option that matters
    )

- `theirs` in `derive` is transformers' own config object, so defaults, aliases and old spellings are already resolved;
  `prepare(dict) -> dict` mends config.json first if transformers would refuse it; `section="text_config"` takes a part.
- A field whose attribute `theirs` does not have is skipped; ZooConfig then derives it (head_dim, key-value heads).
- `fields` is used in both directions. Nothing is compared by hand: an export is imported again, and any field of
  ZooConfig that differs is refused by name. So `restore` only has to invert `derive`.
- `rules` may be a function of the ZooConfig; one rule can also be limited with `where=` (see `rules`).
- `prefixes={"language_model.model.": "model."}` are replaced before the rules and put back after them;
  `also_prefixes` are taken off where a source has them, and come back to that source alone; the longest counts;
  `base_prefix="transformer."` where the body is not called `model.`.
- A tensor zoo does not have: `Drop` (a buffer that can be recomputed) or `Keep` (anything else); both come
  back bit-equal. If the family's files must hold such buffers, `buffers(ours, config.json) -> {name: function that
  makes the tensor}` works them out for a model that came from elsewhere.
- A new operation: subclass `EachOp` (one tensor), `Permutation` (an order of rows) or `Op` (any number of tensors).
- A model_type that transformers has no class for, alive as published code alone: `config_class=published_config("name",
  hidden_size=4096, ...)` with the keys and defaults of that code (`internlm2.py` shows it), and a slow reference in
  `tests/support/published_models.py`, which is the oracle then.
- A second model_type with the same layout is a file with the one line `from .deepseek_v3 import FAMILY  # noqa: F401`.
- `tests/conversion/test_conversion.py` finds the file by itself and runs every `tiny` against transformers' own model.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig

from .rules import Rule

# The config object that `derive` is given, the one that `restore` is given, and the keys that both give.
Theirs, Ours, Keys = PreTrainedConfig, ZooConfig, dict[str, Any]

# Fields that transformers spells the same in nearly every family (through `attribute_map` where the file does not).
COMMON_FIELDS = {
    name: name
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act", "initializer_range",
        "attention_dropout", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
        "dtype",
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of foreign checkpoints: its config and its tensors, each there <-> here."""

    fields: dict[str, str] = field(default_factory=lambda: dict(COMMON_FIELDS))  # their name -> ZooConfig's name
    fixed: dict[str, Any] = field(default_factory=dict)  # ZooConfig fields every model of the family has
    derive: Callable[[Theirs], Keys] | None = None  # their config object -> further ZooConfig arguments
    restore: Callable[[Ours], Keys] | None = None  # ZooConfig -> their keys: the inverse of `derive`
    prepare: Callable[[Keys], Keys] | None = None  # config.json -> the dict transformers' config class is given
    section: str | None = None  # key of config.json under which the text model stands ("text_config")
    ties_at_top: bool = True  # with a section: its class ties the head by the flag beside it, not by the one inside
    reads: str | None = None  # model_type whose config class reads the dict; the file name when None
    config_class: type[PreTrainedConfig] | None = None  # where transformers has none: `published_config.py`
    rules: Sequence[Rule] | Callable[[Ours], Sequence[Rule]] = ()  # or a function of the ZooConfig
    buffers: Callable[[Ours, Keys], dict[str, Callable]] | None = None  # see the docstring above
    prefixes: dict[str, str] = field(default_factory=dict)  # beginning of their names -> beginning for the rules
    also_prefixes: dict[str, str] = field(default_factory=dict)  # the same, of some sources only
    base_prefix: str = "model."  # put before every name but the head's when a file of the bare body has none of it
    architecture: str | None = None  # `architectures` on export; transformers' causal language model when None
    oracle: str | None = None  # transformers class the tests compare with; AutoModelForCausalLM's choice when None
    tiny: Sequence[dict[str, Any]] = ()  # small variants for the tests, in their arguments

    def rules_for(self, config: Ours) -> list[Rule]:
        """The tensor rules of a model with this ZooConfig."""
        return list(self.rules(config) if callable(self.rules) else self.rules)


def rope(theirs: Theirs, partial: bool = False) -> Keys:
    """Their standardised `rope_parameters`; `partial=False` for code that ignores `partial_rotary_factor`.

    In transformers the unscaled rotary embedding of the Llama line rotates the whole head whatever the factor says,
    while every scaled type honours it.
    """
    parameters = deepcopy(theirs.rope_parameters) or {}
    for one in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if not partial and one.get("rope_type", "default") == "default":
            one.pop("partial_rotary_factor", None)
    return parameters


def restore_rope(ours: Ours) -> Keys:
    """Their `rope_parameters` from zoo's: the same dictionary."""
    return deepcopy(ours.rope_parameters)
