"""A random config is refused with the name of a field or works in every way a model is used: no third outcome.

The figures of all shards stand at the end of pytest's report.
"""

import json
import random
from collections import Counter

import pytest
import torch
from model_checks import check_backward, check_packed, check_padding, check_pieces
from random_configs import draw_config, named_in, shrink, tokens_it_reads_and_writes
from random_models import randomize

from configuration_zoo import ZooConfig
from configuration_zoo.fields_per_layer import ALL
from modeling_zoo import ZooForCausalLM

# Tables of rotations are no value of their kind alone.
PER_LAYER = [name for name in ALL if name != "rope_parameters"]
SHARDS, DRAWS = 8, 10
MANY_SHARDS, MANY_DRAWS = 100, 100
# The many start where the few end.
FIRST_OF_MANY = SHARDS * DRAWS


def tokens_of(config):
    """Two rows of tokens that every table has and that have a finite loss."""
    produced = torch.tensor(tokens_it_reads_and_writes(config))
    return produced[torch.randint(len(produced), (2, 11), generator=torch.Generator().manual_seed(2))]


def check_saved(model, tokens, expected):
    """The same from what config.json says and from the weights a file would hold."""
    config = ZooConfig.from_dict(json.loads(model.config.to_json_string()))
    assert config.to_dict() == ZooConfig.from_dict(json.loads(config.to_json_string())).to_dict()
    again = ZooForCausalLM.from_pretrained(None, config=config, state_dict=model.state_dict(), dtype=torch.float32)
    assert torch.equal(again.eval()(tokens).logits, expected), "saved and loaded it is another model"


def check_half(model, tokens):
    """In bfloat16 it learns and decodes; what is equal in float32 can only be as close as its rounding there."""
    half = ZooForCausalLM.from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=torch.bfloat16
    )
    check_backward(half, tokens)
    with torch.no_grad():
        outputs = half(tokens[:, :7], use_cache=True)
        outputs = half(tokens[:, 7:8], past_key_values=outputs.past_key_values, use_cache=True)
    assert outputs.logits.isfinite().all()


def check_works(chosen):
    config = ZooConfig(**chosen)
    torch.manual_seed(0)
    model = ZooForCausalLM(config).eval()
    randomize(model)
    tokens = tokens_of(config)
    check_backward(model, tokens)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.isfinite(expected).all()
        if not config.use_bidirectional_attention:
            check_pieces(model, tokens, expected, (4, 1, 1, 2, 1, 1, 1), "steps and chunks")
        # The patterns of 2019 count slots: padding takes part in them.
        if config.sparse_attention_pattern is None:
            check_padding(model, tokens, expected)
        check_packed(model, tokens, expected)
        check_saved(model, tokens, expected)
    check_half(model, tokens)


def fails(chosen):
    try:
        check_works(chosen)
    except Exception as error:
        return error
    return None


def concepts(config):
    words = {f"mixer {name}" for name in config.mixer_types} | {f"block {name}" for name in config.block_types}
    words |= {f"mlp {name}" for name in config.mlp_layer_types} | {f"position {config.position_embedding_type}"}
    return words | ({"per_layer_config"} if config.is_heterogeneous else set())


def check_seed(seed, figures):
    chosen, config, refusals = draw_config(random.Random(seed), PER_LAYER)
    figures["refusals on the way"] += len(refusals)
    assert all(named_in(sentence) for sentence in refusals)
    if config is None:
        figures["refused"] += 1
        return
    if (error := fails(chosen)) is not None:
        kind = type(error)
        smallest = shrink(chosen, lambda fewer: isinstance(fails(fewer), kind))
        pytest.fail(f"seed {seed}: {smallest}\n{kind.__name__}: {fails(smallest)}")
    figures["worked"] += 1
    figures.update(concepts(config))


def check_seeds(seeds, record_property):
    figures = Counter()
    for seed in seeds:
        check_seed(seed, figures)
    record_property("random configs", dict(figures))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_works_or_is_refused(shard, record_property):
    check_seeds(range(shard * DRAWS, (shard + 1) * DRAWS), record_property)


@pytest.mark.long
@pytest.mark.parametrize("shard", range(MANY_SHARDS))
def test_works_or_is_refused_in_many_more(shard, record_property):
    first = FIRST_OF_MANY + shard * MANY_DRAWS
    check_seeds(range(first, first + MANY_DRAWS), record_property)
