"""ZooConfig: what a model is, one field per concept."""

import os
import sys
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from .config_file import about_unknown, completed, written
from .field_kinds import nearest
from .field_needs import refuse_unread
from .field_settings import SettingsAccess, add_key_properties, choices_of, described
from .field_words import repeat_patterns, takes_words
from .fields_attention import AttentionFields
from .fields_block import BlockFields
from .fields_checks import check_lengths, for_each_layer
from .fields_experts import ExpertFields
from .fields_factors import FactorFields
from .fields_hyper_connections import HyperConnectionFields
from .fields_kv_sharing import KeyValueSharingFields
from .fields_latent import LatentFields
from .fields_linear import LinearFields
from .fields_mlp import MlpFields
from .fields_model import ModelFields
from .fields_multi_token import MultiTokenFields
from .fields_multipliers import MultiplierFields
from .fields_norm import NormFields
from .fields_per_layer import PerLayerFields, layers_of
from .fields_per_layer_input import PerLayerInputFields
from .fields_position import PositionFields
from .fields_precision import PrecisionFields
from .fields_shared_blocks import SharedBlockFields
from .fields_training import TrainingFields
from .fields_value_residual import ValueResidualFields
from .first_layers import build_without_unread, first_layers
from .layer_mixers import LayerMixers
from .layer_type_names import register_layer_types
from .other_words import FIELD_WORDS, about_value
from .parallel_plans import ParallelPlans
from .rope_keys import LEGACY_ROPE_KEYS, keep_theta, merge_rope_keys

logger = logging.get_logger(__name__)
register_layer_types()

# How alike (difflib's ratio) an unknown key of a file and a field must be for the key to be a misspelling.
MISSPELT = 0.85
# Keys that transformers, PEFT and serving engines put into a config of any model.
PLATFORM_KEYS = (
    "attn_implementation",
    "auto_map",
    "classifier_dropout",
    "experts_implementation",
    "is_causal",
    "is_decoder",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "tie_last_hidden_states",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "use_bfloat16",
    "zoo_version",
)


class DocstringWithFields:
    """`ZooConfig.__doc__`: the text of the class and, from the installed package, every field; made when it is read."""

    def __init__(self, text: str | None):
        self.text = text

    def __get__(self, config: PreTrainedConfig | None, config_class: type[PreTrainedConfig]) -> str | None:
        help_text = ZooConfig._installed("help_text")
        return self.text if self.text is None or help_text is None else help_text(self.text)


@takes_words
@strict
class ZooConfig(
    ModelFields,
    AttentionFields,
    LatentFields,
    LinearFields,
    SharedBlockFields,
    PositionFields,
    NormFields,
    BlockFields,
    HyperConnectionFields,
    KeyValueSharingFields,
    ValueResidualFields,
    FactorFields,
    PerLayerInputFields,
    ExpertFields,
    MlpFields,
    MultiTokenFields,
    MultiplierFields,
    PrecisionFields,
    TrainingFields,
    SettingsAccess,
    PerLayerFields,
    LayerMixers,
    ParallelPlans,
    PreTrainedConfig,
):
    """A decoder, described by one name or number per concept.

    `ZooConfig(num_hidden_layers=12, layer_types="3*linear_attention, full_attention", ...)`; `zoo flags` lists the
    fields, which stand by concept in `fields_<concept>.py` with meaning, source and checks. What is left at None is
    derived from the rest, now and when config.json is read again. A bad value, a contradiction or a name that does not
    exist raises at construction (`huggingface_hub.errors.StrictDataclassError`, or ValueError) with the field, the
    value and what is allowed.
    """

    model_type = "zoo"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "rms_norm_eps": "norm_eps",
        "layer_norm_eps": "norm_eps",
        "layer_norm_epsilon": "norm_eps",
        "norm_epsilon": "norm_eps",
        "rope_interleaved": "rope_interleave",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("zoo_version", None)
        kwargs = self._apply_aliases(kwargs)
        self._refuse_unknown(kwargs)
        repeat_patterns(self)
        check_lengths(self)
        layers = layers_of(kwargs.pop("per_layer_config", None), self.num_hidden_layers)
        given = dict(vars(self))
        self._resolve()
        rotates = self.position_embedding_type == "rope"
        if not rotates:
            self._refuse_rotation(kwargs)
        kwargs = merge_rope_keys(kwargs | {"rope_parameters": deepcopy(self.rope_parameters)}, self.layer_types)
        self.rope_parameters = kwargs.pop("rope_parameters")
        super().__post_init__(**kwargs)
        if not rotates:
            self.rope_parameters = None
        if self.use_bidirectional_attention:
            # The name under which transformers' masks look for it; left unset where every model is causal.
            self.is_causal = False
        self._set_layers(layers, given)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "ZooConfig | tuple[ZooConfig, dict]":
        """As transformers', but a field named beside the file takes part in derivation and checks like one in it.

        A key of the file that is no field is kept as an attribute with a warning, and refused if it looks misspelt.
        Fewer layers than the file names are its first ones.
        """
        names = cls._names()
        beside = names - {"dtype"} | {*LEGACY_ROPE_KEYS, "per_layer_config"}
        given = {key: kwargs.pop(key) for key in list(kwargs) if key in beside}
        for alias in [key for key in given if key in cls.attribute_map]:
            given[cls.attribute_map[alias]] = given.pop(alias)
        keep_theta(config_dict.get("rope_parameters"), given.get("rope_parameters"))
        before, depth = config_dict.get("num_hidden_layers"), given.get("num_hidden_layers")
        fewer = isinstance(before, int) and isinstance(depth, int) and 0 < depth < before
        if fewer:
            config_dict = first_layers(cls, completed(cls, config_dict), before, depth)
        config_dict = {**config_dict, **given}
        unknown = [key for key in cls._unknown(config_dict) if not cls._is_refused(key, names)]
        notes = {key: config_dict.pop(key) for key in unknown}

        # transformers formats what it has read for a line of its log, at half the cost of reading it: not if it is off.
        unlogged = not logging.get_logger(PreTrainedConfig.__module__).isEnabledFor(logging.INFO)

        def build(values):
            return super(ZooConfig, cls).from_dict(values | {"_is_being_read": unlogged}, **kwargs)

        returned = build_without_unread(build, config_dict, set(given)) if fewer else build(config_dict)
        config = returned[0] if isinstance(returned, tuple) else returned
        vars(config).pop("_is_being_read", None)
        for sentence in about_unknown(notes, config_dict.get("zoo_version")):
            logger.warning(sentence)
        for key, value in notes.items():
            setattr(config, key, value)
        return returned

    def match_num_hidden_layers(self) -> None:
        """Where num_hidden_layers was lowered on an existing config, shortens its per-layer lists to match."""
        before = len(self.layer_types)
        if self.num_hidden_layers < before:
            values = {**self.to_dict(), "num_hidden_layers": before}
            fresh = type(self).from_dict(values, num_hidden_layers=self.num_hidden_layers)
            own = {field.name for field in fields(self)}
            self.per_layer_config = None
            vars(self).update({name: value for name, value in vars(fresh).items() if name in own})
            self.per_layer_config = fresh.to_dict().get("per_layer_config") or None

    @classmethod
    def preset(cls, name: str, tiny: bool = False, **fields: Any) -> "ZooConfig":
        """A published architecture by name (`zoo presets` lists them), `fields` on top; raises ValueError for no such
        name.

        `tiny` keeps its concepts and takes sizes that run anywhere.
        """
        if (preset := cls._installed("preset")) is None:
            raise ValueError(f"preset {name!r}: presets come with the installed package, not with a model folder.")
        return cls.from_dict(preset(name, tiny), **fields)

    @staticmethod
    def _installed(name: str):
        """A function of the installed package (its `hook`), None for the copy of this file in a model folder."""
        package = sys.modules.get(ZooConfig.__module__.rpartition(".")[0])
        return package.hook(name) if hasattr(package, "hook") else None

    @classmethod
    def _names(cls) -> set[str]:
        return {field.name for field in fields(cls)} | {*described(cls)} | set(cls.attribute_map)

    @classmethod
    def _is_refused(cls, key: str, names: set[str]) -> bool:
        """Whether an unknown key of a file looks misspelt, is another word for a field, or is derived from fields."""
        derived = getattr(cls, key, None)
        computed = isinstance(derived, property) and derived.fset is None
        return computed or key.lower() in FIELD_WORDS or bool(get_close_matches(key, names, cutoff=MISSPELT))

    @classmethod
    def _unknown(cls, given: dict) -> list[str]:
        known = cls._names() | {*PLATFORM_KEYS, *LEGACY_ROPE_KEYS}
        unknown = [key for key in given if not key.startswith("_") and key not in known]
        # Settings of generation that old folders keep in config.json; transformers drops them.
        return [key for key in unknown if key not in GenerationConfig().to_dict()] if unknown else []

    def _apply_aliases(self, kwargs: dict) -> dict:
        keys = described(type(self))
        for name in [key for key in kwargs if key in self.attribute_map or key in keys]:
            setattr(self, name, kwargs.pop(name))
        return kwargs

    def _refuse_unknown(self, kwargs: dict) -> None:
        for key in self._unknown(kwargs):
            says = nearest(key, self._names()) + about_value(kwargs[key], choices_of(type(self)))
            raise ValueError(f"{key}={kwargs[key]!r} is not a field of ZooConfig.{says}")

    def _refuse_rotation(self, kwargs: dict) -> None:
        given = {"rope_parameters": self.rope_parameters} | {key: kwargs.get(key) for key in LEGACY_ROPE_KEYS}
        for key in [key for key in given if given[key] is not None]:
            raise ValueError(
                f"{key}={given[key]!r} only means something with position_embedding_type='rope', "
                f"got {self.position_embedding_type!r}."
            )

    def _resolve(self) -> None:
        """Derives what was left out, step by step: each reads what was given and what the steps before it settled."""
        self.resolve_layer_types()  # from block_type and sliding_window
        self.resolve_mlp_layer_types()  # from block_type and num_experts
        self.resolve_latent()  # widths of latent attention, among them head_dim
        self.resolve_attention()  # head_dim of any other attention
        self.resolve_factors()  # from head_dim
        self.resolve_linear()  # as many heads as attention has, as wide
        self.resolve_shared_blocks()
        self.resolve_position()
        self.resolve_norm()
        self.resolve_hyper_connections()
        self.resolve_block()
        self.resolve_per_layer_input()
        self.resolve_mlp()
        self.resolve_experts()  # as wide as a dense MLP
        self.resolve_multi_token()  # like the last layer
        self.resolve_precision()  # what the concepts above round by default
        self.resolve_training()

    def standardize_rope_params(self) -> None:
        """transformers' own. An older one leaves a theta beside tables by layer type and asks for one of every type."""
        tables = {key: table for key, table in (self.rope_parameters or {}).items() if key in (self.layer_types or ())}
        if not tables or hasattr(self, "nested_rope_parameter_keys"):
            return super().standardize_rope_params()
        self.rope_parameters = {**dict.fromkeys(self.layer_types), **tables}
        super().standardize_rope_params()
        self.rope_parameters = {key: self.rope_parameters[key] for key in tables}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json and `repr` show: what differs and cannot be derived (config_file.py), and zoo's version."""
        return {} if vars(self).get("_is_being_read") else written(self, super().to_diff_dict())

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the table of the installed package, None for the copy in a model folder."""
        as_table = self._installed("as_table")
        return None if as_table is None else as_table(self)

    def advice(self) -> list[dict[str, Any]]:
        """What published models agree on beside this config, a note for each thing (`zoo advise`); raises ValueError
        where only a model folder's copy of this file is there."""
        if (advice := self._installed("advice")) is None:
            raise ValueError("advice comes with the installed package, not with a model folder.")
        return advice(self)

    def validate_needs(self) -> None:
        refuse_unread(self)

    @for_each_layer
    def validate_rope(self) -> None:
        try:
            PreTrainedConfig.validate_rope(self)
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes config.json and, from the installed package, the code that goes with it and the complete auto_map.

        The hook is here because every way to save a model comes through it after an upload has taken its time stamps.
        A copy that was itself loaded as remote code leaves the copying of its files to transformers.
        """
        self.match_num_hidden_layers()
        if (export_code := self._installed("export_code")) is not None:
            export_code(self, save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self.write_card(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def write_card(self, folder: str | os.PathLike) -> None:
        """Puts the card of the installed package where transformers has left an empty one before an upload."""
        if (replace_empty_card := self._installed("replace_empty_card")) is not None:
            replace_empty_card(folder, self)


add_key_properties(ZooConfig)
ZooConfig.__doc__ = DocstringWithFields(ZooConfig.__doc__)
