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


HEADS, GROUPS, WIDTH = "num_attention_heads", "num_key_value_heads", "head_dim"


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("family", "number", "fields", "method", "exactness"),
    [
        # Eight rows of keys become 48: so few are multiplied with sums in another order.
        ("falcon", 0, {GROUPS: 6}, None, "arithmetic"),
        ("llama", 0, {GROUPS: 6}, None, "bits"),
        ("gpt_bigcode", 0, {"attention_type": "latent"}, None, "arithmetic"),
        # Scores near -30.
        ("gemma", 0, {"attention_sinks": "all"}, "silent", "arithmetic"),
        ("nemotron", 0, {"attention_sinks": "all"}, "silent", "arithmetic"),
        # One layer has a bias of its own behind attention.
        ("gpt_neox_japanese", 1, {"norm_type": "rms_norm"}, None, "arithmetic"),
        ("gpt_neox_japanese", 1, {"norm_elementwise_affine": False, "tie_word_embeddings": False}, None, "arithmetic"),
        # Recurrences, whose sizes would follow from those of attention.
        ("minimax", 0, {WIDTH: 16}, None, "arithmetic"),
        # Layers whose indexers choose for groups of heads.
        ("minimax_m3_vl_text", 0, {GROUPS: 6}, None, "bits"),
        ("minimax_m3_vl_text", 0, {"hidden_size": 96, HEADS: 12, GROUPS: 4}, None, "arithmetic"),
    ],
)
def test_shapes_scores_and_layers_of_their_own(family, number, fields, method, exactness):
    """Cases in which a promise was wrong, or a layer was read as all are."""
    model = random_model(family_config(family, number))
    before = logits(model, ids := tokens(model.config))
    report = operate(model, None, fields, method=method)
    after = logits(report.model, ids)
    assert report.operations[-1].exactness == exactness
    assert torch.equal(after, before) or exactness == ARITHMETIC
    assert (after - before).abs().max() <= max(TOLERANCE, 8 * noise(model, ids)) * before.abs().max()


def test_what_layers_have_of_their_own_stays():
    config = family_config("gpt_neox_japanese", 1)
    assert [layer.attention_out_bias for layer in config.per_layer_config] != [None] * config.num_hidden_layers
    fields = {"norm_type": "rms_norm", "tie_word_embeddings": False}
    new = operate(random_model(config), None, fields).model.config
    before, after = ([one.attention_out_bias for one in each.per_layer_config] for each in (config, new))
    assert [bool(one) for one in after] == [bool(one) for one in before]


def offered(operation, config):
    """What an operation could do; nothing where layers differ in what it reads for all."""
    with suppress(SurgeryError), alike_layers(operation.name):
        return operation.examples(config)
    return []
