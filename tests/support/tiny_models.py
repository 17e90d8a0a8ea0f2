"""The families' tiny models as models of zoo, for tables over all of them."""

import torch
from random_models import randomize, their_class_config
from samples import only

from configuration_zoo import ZooConfig
from conversion import family_of, import_config, known_families
from modeling_zoo import ZooForCausalLM

VARIANTS = [(name, index) for name in known_families() for index in range(len(family_of(name).tiny))]
# One for each arrangement of experts and of caches.
SAMPLE = [("llama", 0), ("gemma4_text", 0), ("longcat_flash", 0), ("qwen3_next", 0), ("deepseek_v32", 0)]


def every_family(kept=SAMPLE):
    """A table over all families, of which a few run every time."""
    return only([one for one in kept if one in VARIANTS], VARIANTS)


def tiny_config(variant) -> ZooConfig:
    """What the converter makes of a family's tiny config."""
    name, index = variant
    family = family_of(name)
    theirs = their_class_config(name, family, family.tiny[index])
    config = import_config(theirs.to_dict() | {"architectures": None})
    config.dtype = torch.float32
    return config


def tiny_model(config):
    model = ZooForCausalLM(config)
    randomize(model)
    return model.eval()
