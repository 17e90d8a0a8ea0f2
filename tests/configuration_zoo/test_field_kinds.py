"""What a field may hold is said once, beside it; anything else is refused by the field's name before it is used."""

import logging as log
from dataclasses import fields
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.utils import logging

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Flag, Items, Number, Record, Spreads, Table
from configuration_zoo.field_settings import described

THEIRS = {field.name for field in fields(PreTrainedConfig)}
# Keys of a dict of settings are fields of their own.
NAMED = {name: field for name, field in described(ZooConfig).items() if name not in THEIRS}
OWN = [SimpleNamespace(name=name, metadata=field.metadata) for name, field in NAMED.items()]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NAN, INFINITY = float("nan"), float("inf")


class Records(log.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.sentences = []

    def emit(self, record):
        self.sentences.append(record.getMessage())


def bad_numbers(kind):
    yield from (NAN, INFINITY, -INFINITY, True, "1", [])
    if kind.whole:
        yield 1.5
    if kind.above is not None:
        yield kind.above
    if kind.least is not None:
        yield kind.least - 1
    if kind.below is not None:
        yield kind.below
    if kind.most is not None:
        yield kind.most + 1
    if kind.nonzero:
        yield 0


def bad_values(kind):
    """Values that a field of this kind must refuse, whatever stands in the other fields."""
    if isinstance(kind, Number):
        yield from bad_numbers(kind)
    elif isinstance(kind, Choice):
        yield from ("no such name", "", 1, True, [], {})
    elif isinstance(kind, Flag):
        yield from ("yes", 1, 0, 0.5, [])
    elif isinstance(kind, Items):
        yield from ([], (), {}, {"0": 1}, 1.5, "no such name")
        yield from ([value] * (kind.count or 2) for value in bad_values(kind.entry))
        yield [next(good_values(kind.entry))] * ((kind.count or 2) + 1) if kind.count or kind.per_layer else []
    elif isinstance(kind, Table):
        yield from ([], "default", 1.0, {"rope_type": "default", "rope_theta": NAN}, {"a": {"b": [1.0, INFINITY]}})
    elif isinstance(kind, Spreads):
        yield from ([], "o_proj", 1.0, {"o_proj": -1.0}, {"o_proj": NAN}, {"o_proj": True}, {"o_proj": "1"})
    elif isinstance(kind, Record):
        yield from ([], "config", 1)


def good_values(kind):
    if isinstance(kind, Number):
        whole = (value for value in (1, 2, -1, 0) if accepts(kind, value))
        yield from whole
    else:
        yield from kind.names


def accepts(kind, value):
    try:
        kind.check("field", value)
    except ValueError:
        return False
    return True


def test_every_field_says_its_kind():
    assert [field.name for field in OWN if "kind" not in field.metadata] == []


@pytest.mark.parametrize("field", OWN, ids=lambda field: field.name)
def test_what_is_not_of_its_kind_is_refused_by_name(field):
    for value in bad_values(field.metadata["kind"]):
        with pytest.raises((StrictDataclassError, ValueError), match=field.name):
            ZooConfig(**{**SIZES, field.name: value})


@pytest.mark.parametrize("field", OWN, ids=lambda field: field.name)
def test_it_is_refused_when_set_later_too(field):
    config = ZooConfig(**SIZES)
    kept = getattr(config, field.name)
    value = next(bad_values(field.metadata["kind"]))
    with pytest.raises(StrictDataclassError, match=field.name):
        setattr(config, field.name, value)
    assert getattr(config, field.name) == kept


UNEVEN = {
    "heads": {"num_attention_heads": 5},
    "latent heads": {"num_attention_heads": 5, "attention_type": "latent"},
    "state space": {"hidden_size": 48, "layer_types": ["linear_attention"] * 2, "linear_attention_type": "mamba2"},
    "a mechanism of several": {
        "hidden_size": 16, "layer_types": ["linear_attention"] * 2,
        "linear_attention_type": ["mamba2", "gated_delta_net"],
    },
    "gated unit": {
        "layer_types": ["linear_attention"] * 2, "linear_attention_type": "rg_lru", "linear_num_value_heads": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNEVEN)
def test_a_width_that_does_not_divide_is_not_rounded_down(name):
    with pytest.raises((StrictDataclassError, ValueError), match="leaves a rest: set"):
        ZooConfig(**{**SIZES, **UNEVEN[name]})


def test_time_steps_have_a_range():
    mamba = {"layer_types": ["linear_attention"] * 2, "linear_attention_type": "mamba"}
    with pytest.raises(StrictDataclassError, match="time_step_min=1 .* must not exceed time_step_max=0.1"):
        ZooConfig(**SIZES, **mamba, linear_attn_config={"time_step_min": 1})


def test_experts_without_balance_are_pointed_out():
    """When training begins, not when a config is made; a converted model has the balance of its own config."""
    logging.set_verbosity_warning()
    logger = logging.get_logger("configuration_zoo.fields_training")
    logger.addHandler(handler := Records())
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    quiet = (
        {"router_aux_loss_coef": 0.01},
        {"use_score_correction_bias": True},
        {"source_config": {}},
        {"num_experts": 2},
    )
    try:
        for fields_ in quiet:
            type(logger).warning_once.cache_clear()
            ZooConfig(**{**SIZES, **experts, **fields_}).warn_of_training()
        assert handler.sentences == []
        config = ZooConfig(**SIZES, **experts)
        assert handler.sentences == []
        config.warn_of_training()
        assert len(handler.sentences) == 1 and "router_aux_loss_coef" in handler.sentences[0]
        indexed = {"attention_type": "latent", "layer_types": ["indexed_attention"] * 2, "index_topk": 4}
        ZooConfig(**SIZES, **indexed, indexer_loss_coef=0.1).warn_of_training()
        assert len(handler.sentences) == 1
        ZooConfig(**SIZES, **indexed).warn_of_training()
        assert len(handler.sentences) == 2 and "indexer.warmup=True" in handler.sentences[1]
    finally:
        logger.removeHandler(handler)


def test_a_window_alone_is_one_for_every_layer():
    """As in transformers' models with sliding_window and no layer_types."""
    config = ZooConfig(**SIZES, sliding_window=4)
    assert config.layer_types == ["sliding_attention"] * 2
