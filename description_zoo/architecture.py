"""Which fields of a config are the architecture: what a trained model computes."""

import json
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from configuration_zoo import ZooConfig

# Fields of ZooConfig that do not change what a trained model computes; a family need not be able to say them.
NOT_ARCHITECTURE = {
    "source_config", "source_extras", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "attention_dropout", "embedding_dropout", "residual_dropout", "output_z_loss_coef", "loss_chunk_size",
    "output_router_logits",
    "initializer_type", "residual_initializer_type", "embedding_initializer_range", "initializer_cutoff",
}  # fmt: skip


def architecture(config: ZooConfig) -> dict[str, Any]:
    """The fields that decide what a trained model computes, as config.json has them; a switch nothing reads is off."""
    own = set(ZooConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - NOT_ARCHITECTURE
    own |= {"tie_word_embeddings", "per_layer_config"}
    content = json.loads(config.to_json_string(use_diff=False))
    switches = {field.name for field in fields(config) if field.type == bool | None}
    return {name: value or None if name in switches else value for name, value in content.items() if name in own}
