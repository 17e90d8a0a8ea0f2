# ruff: noqa: F401  What the exporter puts around this class needs the imports as well.
"""What an exported configuration has around its fields: the short forms of the package's machinery, as text.

Never shipped itself and never imported: export_config.py reads this file, takes apart what stands under an `if` of a
name in capitals, and puts the fields, derivations and checks of one model into the class.
"""

from copy import copy, deepcopy
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from configuration_zoo.field_settings import SettingsAccess, add_key_properties, described, nested, settings_of, spread
from configuration_zoo.layer_type_names import register_layer_types
from configuration_zoo.rope_keys import LEGACY_ROPE_KEYS, keep_theta, merge_rope_keys
from configuration_zoo.version import __version__

from .export_config_kinds import (
    build_without_unread,
    check_lengths,
    first_layers,
    merge_rope_scaling,
    nearest,
    not_here,
    refuse_other,
    repeat_patterns,
    said_in,
    takes_words,
)

# What a model may have: dicts of settings | lists over layers in its config.json | several kinds of layers |
# rotations | one for each kind of layer | no mask that hides what comes later.
GROUPS = LISTS = MIXED = ROTATES = NESTED = BIDIRECTIONAL = True
WRITTEN, LEFT_OUT, PRESENT, SAID, PLATFORM_KEYS, READ_BY = (), {}, (), {}, (), {}

logger = logging.get_logger(__name__)
# How alike (difflib's ratio) an unknown key of a file and a field must be for the key to be a misspelling.
MISSPELT = 0.85


class ZooConfig(PreTrainedConfig):
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
        if kwargs.get("per_layer_config"):
            raise not_here("per_layer_config", kwargs["per_layer_config"])
        for key in [key for key in kwargs if key in self._names()]:
            setattr(self, key, kwargs.pop(key))
        for key in self._unknown(kwargs):
            raise ValueError(f"{key}={kwargs[key]!r} is not a field of ZooConfig.{nearest(key, self._names())}")
        if MIXED:
            repeat_patterns(self)
        check_lengths(self)
        self._resolve()
        if ROTATES:
            kwargs["rope_parameters"] = deepcopy(self.rope_parameters)
            if NESTED:
                kwargs = merge_rope_keys(kwargs, self.layer_types)
            else:
                kwargs = merge_rope_scaling(kwargs)
            self.rope_parameters = kwargs.pop("rope_parameters")
        else:
            turned = {"rope_parameters": self.rope_parameters} | {key: kwargs.get(key) for key in LEGACY_ROPE_KEYS}
            for key in [key for key in turned if turned[key] is not None]:
                raise not_here(key, turned[key])
        super().__post_init__(**kwargs)
        if not ROTATES:
            self.rope_parameters = None
        if BIDIRECTIONAL:
            self.is_causal = False

    def __setattr__(self, name: str, value: Any) -> None:
        group, _, key = name.partition(".")
        if group in LEFT_OUT:
            refuse_other(group, {key: value} if key else value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', but a field named beside the file takes part in derivation and checks like one in it.

        A key of the file that is no field is kept as an attribute with a warning, and refused if it looks misspelt.
        Fewer layers than the file names are its first ones.
        """
        names = cls._names()
        given = {key: kwargs.pop(key) for key in list(kwargs) if key in names - {"dtype"} | {*LEGACY_ROPE_KEYS}}
        given = {cls.attribute_map.get(key, key): value for key, value in given.items()}
        if ROTATES:
            held, fresh = config_dict.get("rope_parameters"), given.get("rope_parameters")
            if NESTED:
                keep_theta(held, fresh)
            elif fresh and "rope_theta" in (held or ()) and "rope_theta" not in fresh:
                raise ValueError(
                    f"rope_parameters={fresh!r} leaves out rope_theta, which is {held['rope_theta']!r}: give it."
                )
        before, depth = config_dict.get("num_hidden_layers"), given.get("num_hidden_layers")
        fewer = isinstance(before, int) and isinstance(depth, int) and 0 < depth < before
        if LISTS and fewer:
            config_dict = {**cls(**deepcopy(config_dict)).to_dict(), **config_dict}
            lists = [field.name for field in fields(cls) if getattr(field.metadata.get("kind"), "per_layer", False)]
            config_dict = first_layers(config_dict, lists, depth)
        config_dict = {**config_dict, **given}
        missing = [name for name in (*SAID, *PRESENT) if said_in(config_dict, name) is None]
        for name in missing:
            if MIXED and name in READ_BY:
                continue
            raise not_here(name, None)
        alike = [key for key in cls._unknown(config_dict) if not get_close_matches(key, names, cutoff=MISSPELT)]
        notes = {key: config_dict.pop(key) for key in alike if not isinstance(getattr(cls, key, None), property)}
        if MIXED:
            build = partial(super().from_dict, **kwargs)
            made = build_without_unread(build, config_dict, set(given)) if fewer else build(config_dict)
        else:
            made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        if MIXED:
            # What only some kinds of layers need.
            for name, (entries, words) in READ_BY.items():
                if name in missing and {*words} & {*getattr(config, entries)}:
                    raise not_here(name, None)
        for key, value in notes.items():
            logger.warning(f"config.json has {key}={value!r}, no field of ZooConfig: kept, but without effect.")
            setattr(config, key, value)
        return made

    def match_num_hidden_layers(self) -> None:
        """Where num_hidden_layers was lowered on an existing config, shortens its per-layer lists to match."""
        before = len(self.layer_types)
        if self.num_hidden_layers < before:
            values = self.to_dict() | {"num_hidden_layers": before}
            if not LISTS:
                # Every layer is alike: the lists follow from the depth again.
                kinds = {field.name: field.metadata.get("kind") for field in fields(self)}
                values = {name: values[name] for name in values if not getattr(kinds.get(name), "per_layer", False)}
            fresh = type(self).from_dict(values, num_hidden_layers=self.num_hidden_layers)
            vars(self).update({field.name: vars(fresh)[field.name] for field in fields(self)})

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs: Any) -> Any:
        self.match_num_hidden_layers()
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def write_card(self, folder: str) -> None:
        """A model's card is written by the installed package."""

    def outside_layers(self) -> "ZooConfig":
        """The config as the parts of a model outside its layers read it: no layer differs in a number here."""
        return self

    @classmethod
    def _names(cls) -> set[str]:
        names = {field.name for field in fields(cls)} | {*LEFT_OUT} | set(cls.attribute_map)
        if GROUPS:
            names |= {*described(cls)}
        return names

    @classmethod
    def _unknown(cls, given: dict) -> list[str]:
        known = cls._names() | {*PLATFORM_KEYS, *LEGACY_ROPE_KEYS}
        unknown = [key for key in given if not key.startswith("_") and key not in known]
        # Settings of generation that old folders keep in config.json; transformers drops them.
        return [key for key in unknown if key not in GenerationConfig().to_dict()] if unknown else []

    def to_dict(self) -> dict[str, Any]:
        whole = super().to_dict()
        for name, value in SAID.items():
            if MIXED and name in READ_BY and not {*READ_BY[name][1]} & {*getattr(self, READ_BY[name][0])}:
                continue
            group, _, key = name.partition(".")
            whole[group] = {**(whole.get(group) or {}), key: value} if key else value
        return whole

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json and `repr` show: what differs and cannot be derived, what engines look for, no None."""
        whole, theirs = super().to_diff_dict(), PreTrainedConfig.__dataclass_fields__
        if GROUPS:
            whole = spread(whole, settings_of(type(self)))
            own = {name: field.default for name, field in described(type(self)).items() if name not in theirs}
        else:
            own = {field.name: field.default for field in fields(self) if field.name not in theirs}
        kept = {name for name in own if own[name] is not None and repr(whole.get(name)) != repr(own[name])}
        try:
            kept = self._underived(whole, own, kept | {*WRITTEN, *SAID})
        except Exception:  # Whatever was put into it; to print a config never fails.
            kept = set(own)
        whole = {key: value for key, value in whole.items() if value is not None and (key in kept or key not in own)}
        if GROUPS:
            whole = nested(whole)
        return whole | {"zoo_version": __version__}

    def _underived(self, whole: dict[str, Any], own: dict[str, Any], kept: set[str]) -> set[str]:
        """`kept` and what it takes beside them to derive the config again."""
        derived = copy(self)
        while True:
            values = deepcopy({name: whole.get(name) if name in kept else own[name] for name in own})
            if GROUPS:
                values = nested(values)
            vars(derived).update(values)
            derived._resolve()
            others = [name for name in own if repr(getattr(derived, name)) != repr(whole.get(name))]
            if kept.issuperset(others):
                return kept
            kept.add(next(name for name in others if name not in kept))

    def validate_rope(self) -> None:
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from error
