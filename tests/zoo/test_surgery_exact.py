"""Every operation on every family that it accepts is as exact as it says: bits are bits, arithmetic is 2e-5."""

from contextlib import suppress

import pytest
import torch
from checkpoint_checks import noise
from surgery_models import family_config, family_variants, logits, random_model, tokens

from zoo.surgery.operating import operate
from zoo.surgery.operation import ARITHMETIC, BITS, TOLERANCE, SurgeryError, alike_layers
from zoo.surgery.possibilities import row_of
from zoo.surgery.registry import OPERATIONS


@pytest.mark.long
@pytest.mark.parametrize(("name", "number"), family_variants())
def test_an_exact_operation_leaves_the_function(name, number):
    config = family_config(name, number)
    if config.num_mtp_layers:
        with pytest.raises(SurgeryError, match="num_mtp_layers"):
            operate(random_model(config), None, {"tie_word_embeddings": True})
        return
    model = random_model(config)
    ids = tokens(config)
    before = logits(model, ids)
    for operation in OPERATIONS:
        for example in offered(operation, config):
            # Those that need a text are done with one in the tests of their own.
            exact = example.exactness.word in (BITS, ARITHMETIC) and not example.needs_text
            if exact and row_of(config, operation, example):
                report = operate(model, None, example.fields, apply=operation.applied or None, method=example.method)
                after = logits(report.model, ids)[..., : before.shape[-1]]
                where = f"{operation.name} {example}"
                if example.exactness.word == BITS:
                    assert torch.equal(after, before), where
                difference = (after - before).abs().max() / before.abs().max()
                assert difference <= TOLERANCE or difference <= 8 * noise(model, ids), where


def offered(operation, config):
    """What an operation could do; nothing where layers differ in what it reads for all."""
    with suppress(SurgeryError), alike_layers(operation.name):
        return operation.examples(config)
    return []
