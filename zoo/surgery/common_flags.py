"""Models brought to one config before they are merged: whatever differs by an exact operation is changed, and what no
exact operation reaches is refused by its name."""

import json
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import settings_of, spread
from configuration_zoo.fields_training import TrainingFields

from .operation import ARITHMETIC, BITS, SurgeryError
from .zero_biases import BIASES

# What says nothing about the function of weights.
OF_NO_ACCOUNT = {
    "architectures", "dtype", "transformers_version", "zoo_version", "model_type", "use_cache", "surgery", "auto_map",
    "source_config", "source_extras", "transformers_weights", "_name_or_path", "max_position_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "embedding_dropout", "residual_dropout",
    "num_hidden_layers", "id2label", "label2id", "problem_type", "tokenizer_class", "quantization_config",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder",
}  # fmt: skip


def said(config: ZooConfig) -> dict[str, Any]:
    """The fields that say what a model computes, with the values that were derived."""
    names = set(spread(json.loads(config.to_json_string()), settings_of(ZooConfig))) - OF_NO_ACCOUNT
    return {name: getattr(config, name, None) for name in names - set(TrainingFields.__dataclass_fields__)}


def differences(config: ZooConfig, wanted: ZooConfig) -> dict[str, Any]:
    """{field: what `wanted` says} where both differ."""
    names = sorted(set(said(config)) | set(said(wanted)))
    return {
        name: getattr(wanted, name, None)
        for name in names
        if getattr(config, name, None) != getattr(wanted, name, None)
    }


def one_way(configs: list[ZooConfig]) -> dict[str, Any]:
    """What all must have because one has it and could not lose it: a head of its own, biases, more key-value heads."""
    fields: dict[str, Any] = {}
    if any(not config.tie_word_embeddings for config in configs):
        fields["tie_word_embeddings"] = False
    fields |= {name: True for name in BIASES if any(getattr(config, name) for config in configs)}
    if not any(config.is_heterogeneous for config in configs):
        fields["num_key_value_heads"] = max(config.num_key_value_heads for config in configs)
    return fields


def bring_to(state: Any, wanted: ZooConfig, name: str) -> list[str]:
    """Changes the model under way until it has the flags of `wanted`; → the names of the operations. Raises
    SurgeryError, with the flag, where no exact operation leads there."""
    from .operating import perform

    fields = differences(state.config, wanted)
    if fields.get("rope_parameters") is not None and state.config.rope_tables == wanted.rope_tables:
        fields.pop("rope_parameters")
    if "attention_multiplier" in fields and fields["attention_multiplier"] is None:
        fields["attention_multiplier"] = wanted.attention_scaling(0)
    before = len(state.done)
    if fields:
        try:
            perform(state, fields, None, None, None, invents=False)
        except SurgeryError as error:
            flag = next((one for one in fields if one in str(error)), next(iter(fields)))
            raise SurgeryError(
                f"{name} has {flag}={getattr(state.config, flag, None)!r}, the first model {fields[flag]!r}, and no "
                f"exact operation leads there: {error}"
            ) from error
    done = state.done[before:]
    if lossy := [one for one in done if one.exactness not in (BITS, ARITHMETIC)]:
        raise SurgeryError(
            f"{name} differs in {next(iter(lossy[0].fields))}, which can only be changed with a loss: change it first, "
            "with a calibration."
        )
    return [one.name for one in done]
