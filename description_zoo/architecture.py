"""Which fields of a config are the architecture: what a trained model computes."""

import json
from typing import Any

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of, spread

# Fields of ZooConfig that do not change what a trained model computes; a family need not be able to say them.
NOT_ARCHITECTURE = {
    "source_config", "source_extras", "surgery", "initializer_range", "use_cache", "pad_token_id", "bos_token_id",
    "eos_token_id",
    "attention_dropout", "embedding_dropout", "residual_dropout", "output_z_loss_coef", "loss_chunk_size",
    "output_router_logits", "mtp.loss_coef",
    "initializer.type", "initializer.residual_type", "initializer.embedding_range", "initializer.cutoff",
}  # fmt: skip


def architecture(config: ZooConfig) -> dict[str, Any]:
    """The fields that decide what a trained model computes, as config.json has them; a switch nothing reads is off.

    A key of a dict of settings is a field of its own here, `precision.norm`.
    """
    every = described(ZooConfig)
    own = set(every) - set(PreTrainedConfig.__dataclass_fields__) - NOT_ARCHITECTURE
    own |= {"tie_word_embeddings", "per_layer_config"}
    content = spread(json.loads(config.to_json_string(use_diff=False)), settings_of(ZooConfig))
    switches = {name for name, field in every.items() if field.type == bool | None}
    return {name: value or None if name in switches else value for name, value in content.items() if name in own}
