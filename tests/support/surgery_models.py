"""Models to operate on: the bundled trained one with its text, and every family's tiny variants with random weights."""

from functools import cache
from pathlib import Path

import torch
from random_models import is_here, randomize, their_class_config

from conversion import family_of, import_config, known_families
from modeling_zoo import ZooForCausalLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORIES, TEXT = EXAMPLES / "stories260K", EXAMPLES / "corpora" / "stories.txt"


def family_variants():
    """(family, number in its `tiny`) of all that the installed transformers has."""
    return [(name, number) for name in filter(is_here, known_families()) for number in range(len(family_of(name).tiny))]


def family_config(name, number):
    """The ZooConfig of a family's tiny variant."""
    family = family_of(name)
    config = import_config(their_class_config(name, family, family.tiny[number]).to_dict())
    config.dtype = torch.float32
    return config


def random_model(config):
    """A model with every parameter random."""
    model = ZooForCausalLM._from_config(config, dtype=torch.float32)
    randomize(model)
    return model.eval()


def tokens(config, rows=2, length=19):
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, ids):
    # Fused kernels sum in an order that hangs on the width of heads and on the processor.
    model.set_attn_implementation("eager")
    return model(ids, use_cache=False).logits


@cache
def stories():
    """The trained model, and its held-out rows."""
    from zoo.surgery.tensors import build, open_source
    from zoo.surgery.texts import read_text

    source = open_source(STORIES)
    text = read_text(TEXT, STORIES, source.config, 512)
    return build(source.config, source.tensors), text
