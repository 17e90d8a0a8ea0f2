"""What people write: other words are answered with the right name, patterns over layers are lists, True is no name."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Items
from configuration_zoo.field_settings import described
from configuration_zoo.other_words import FIELD_WORDS, VALUE_WORDS

FIELDS = described(ZooConfig)
ENTRIES = {
    name: getattr(field.metadata.get("kind"), "entry", field.metadata.get("kind")) for name, field in FIELDS.items()
}
NAMES = {name: kind.names for name, kind in ENTRIES.items() if isinstance(kind, Choice)}
REFUSED = (ValueError, StrictDataclassError)


def is_per_layer(field):
    return getattr(field.metadata.get("kind"), "per_layer", False)


@pytest.mark.parametrize("word", FIELD_WORDS)
def test_another_word_for_a_field_is_answered(word):
    field, says = FIELD_WORDS[word]
    assert field in FIELDS and word not in FIELDS and field in says
    says = says[0].upper() + says[1:]
    for build in (lambda: ZooConfig(**{word: 3}), lambda: ZooConfig.from_dict({word: 3})):
        with pytest.raises(REFUSED) as refusal:
            build()
        assert f"{word}=3 is not a field of ZooConfig. {says}." in str(refusal.value)


@pytest.mark.parametrize("word", VALUE_WORDS)
def test_another_word_for_a_value_is_answered(word):
    for name, _ in VALUE_WORDS[word]:
        takers = [field for field, names in NAMES.items() if name in names and word not in names and "." not in field]
        assert takers, f"no field takes {name!r}"
        first = next(answer for other, answer in VALUE_WORDS[word] if other in NAMES[takers[0]])
        with pytest.raises(REFUSED) as refusal:
            ZooConfig(**{takers[0]: word})
        assert f"{first[0].upper()}{first[1:]}." in str(refusal.value)


def test_a_value_of_a_field_that_is_none_is_answered_too():
    with pytest.raises(
        REFUSED, match="Use attention_type, or .*\\. The gated delta rule is called 'gated_delta_net'\\."
    ):
        ZooConfig(mixer="gdn")
    with pytest.raises(REFUSED, match="is not a field of ZooConfig. Use norm_type. It is called 'rms_norm'."):
        ZooConfig(norm="rmsnorm")


@pytest.mark.parametrize("name", [name for name in NAMES if "." in name])
def test_true_where_a_key_takes_a_name_is_answered_with_the_names(name):
    group, _, key = name.partition(".")
    with pytest.raises(REFUSED) as refusal:
        ZooConfig(**{group: {key: True}})
    assert f"{name}=True must be a name, one of {sorted(NAMES[name])}" in str(refusal.value)


def test_latent_attention_is_named():
    with pytest.raises(REFUSED, match="attention_type='mla' is not one of .*Latent attention is called 'latent'"):
        ZooConfig(attention_type="mla")
    with pytest.raises(REFUSED, match="Use intermediate_size"):
        ZooConfig(d_ff=64)


PATTERNS = {
    "layer_types": ("2*sliding_attention,full_attention", ["sliding_attention"] * 2 + ["full_attention"]),
    "mlp_layer_types": ("dense", ["dense"]),
    "block_type": ("pre_norm, 1*sandwich_norm", ["pre_norm", "sandwich_norm"]),
    "no_rope_layers": ("3 * 1, 0", [1, 1, 1, 0]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_repeated_to_the_depth_and_kept_as_a_list(name):
    text, period = PATTERNS[name]
    sliding = {"sliding_window": 8} if name == "layer_types" else {}
    expected = (period * 7)[:7]
    config = ZooConfig(num_hidden_layers=7, **sliding, **{name: text})
    assert getattr(config, name) == expected and type(getattr(config, name)) is list
    assert ZooConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    again = ZooConfig.from_dict({"num_hidden_layers": 7, **sliding, name: text})
    assert getattr(again, name) == expected
    later = ZooConfig(num_hidden_layers=7, **sliding)
    setattr(later, name, text)
    assert getattr(later, name) == expected and type(getattr(later, name)) is list
    fewer = ZooConfig.from_dict({"num_hidden_layers": 7, **sliding, name: text}, num_hidden_layers=5)
    assert getattr(fewer, name) == expected[:5]


# field -> what the fields beside it say, and what every third layer then is.
PERIODS = {
    "layer_types": [
        ({"sliding_window": 8}, ["sliding_attention", "sliding_attention", "full_attention"]),
        ({"attention_chunk_size": 8}, ["chunked_attention", "chunked_attention", "full_attention"]),
        ({"linear_attention_type": "mamba2"}, ["linear_attention", "linear_attention", "full_attention"]),
    ],
    "mlp_layer_types": [({"num_experts": 4, "num_experts_per_tok": 2}, ["dense", "dense", "sparse"])],
    "no_rope_layers": [({}, [1, 1, 0])],
}


@pytest.mark.parametrize("name, beside, expected", [(name, *row) for name, rows in PERIODS.items() for row in rows])
def test_a_number_says_every_how_many_layers_one_differs(name, beside, expected):
    config = ZooConfig(num_hidden_layers=7, **beside, **{name: 3})
    assert getattr(config, name) == (expected * 3)[:7]
    assert ZooConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert ZooConfig(num_hidden_layers=2, layer_types=1).layer_types == ["full_attention"] * 2


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if is_per_layer(field)])
def test_a_number_that_says_nothing_is_answered_with_a_pattern(name):
    for value in (0, -3, *(() if name in PERIODS else (3,)), *(() if name in NAMES else (True,))):
        with pytest.raises(REFUSED, match=f"{name}={value} must be a list .* a pattern such as '3\\*"):
            ZooConfig(**{name: value})


def test_one_word_for_all_layers_stays_one_word():
    assert ZooConfig(block_type="sandwich_norm").block_type == "sandwich_norm"


@pytest.mark.parametrize(
    "value, says",
    [
        ("3*linear, full_attention", "'linear' is not one of .*A recurrence is called 'linear_attention'"),
        ("0*full_attention", "has '0\\*full_attention': write entries with commas"),
        ("full_attention,", "has '': write entries with commas"),
        ("x*full_attention", "write entries with commas"),
    ],
)
def test_a_pattern_that_is_none_is_refused(value, says):
    with pytest.raises(REFUSED, match=says):
        ZooConfig(layer_types=value)


@pytest.mark.parametrize("name", [name for name in NAMES if "." not in name])
def test_true_where_a_name_is_due_is_answered_with_the_names(name):
    for value in (True, False):
        with pytest.raises(REFUSED) as refusal:
            ZooConfig(**{name: value})
        assert f"{name}={value} is no name: use one of {sorted(NAMES[name])}" in str(refusal.value)


def test_every_list_over_layers_takes_a_pattern():
    per_layer = {name for name, field in FIELDS.items() if is_per_layer(field)}
    assert per_layer > {*PATTERNS} and all(isinstance(FIELDS[name].metadata["kind"], Items) for name in per_layer)
    for name in per_layer:
        with pytest.raises(REFUSED, match="write entries with commas"):
            ZooConfig(**{name: "?, ?"})
