"""Every combination of flags is refused by name or works in every way a model is used. There is no third outcome."""

import os
import zlib

import pytest
import torch
from combinations import NOT_CONCEPTS, ROWS, SIZES
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_checks import check_backward, check_chunks, check_padding, check_steps
from random_models import randomize
from ways_to_run import Loaded

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of, spread
from modeling_zoo import ZooForCausalLM, export
from modeling_zoo.export import export_code

EXAMPLES = int(os.environ.get("ZOO_COMBINATIONS", "3"))


def known_fields():
    return {name for name in described(ZooConfig) if not name.startswith("_")}


@st.composite
def flags(draw, mixer):
    """One row of every group; a later row wins where two set the same field."""
    chosen = dict(SIZES)
    for group, rows in ROWS.items():
        chosen |= ROWS["mixer"][mixer] if group == "mixer" else draw(st.sampled_from(rows), label=group)
    return chosen


def test_every_field_has_a_row():
    groups = settings_of(ZooConfig)
    rows = {name for group in ROWS.values() for row in group for name in spread(row, groups)}
    assert known_fields() - rows - NOT_CONCEPTS == set(), "a new flag needs a row in combinations.py"
    assert rows - known_fields() == {"per_layer_config"}


# One axis with some twenty names, of transformers' own table: a few of them have rows.
ACTIVATIONS = {"hidden_act", "linear_attn_config.act", "linear_attn_config.output_gate"}
# Where a product is rounded: compared by value in test_half_precision.py and test_bf16.py.
ROUNDING = {"precision.alibi", "precision.router", "precision.router_weights"}


def said(row):
    """{(field, value)} of a row, a value being a name or a switch, whatever layer has it."""
    layers = [row, *(row.get("per_layer_config") or {}).values()]
    pairs = [(name, value) for layer in layers for name, value in layer.items()]
    pairs = [(name, entry) for name, value in pairs for entry in (value if isinstance(value, list) else [value])]
    return {(name, value) for name, value in pairs if isinstance(value, str | bool)}


def test_every_name_that_a_field_accepts_has_a_row():
    """Also those it has without being told: a default, and what is derived."""
    found, missing = set(), {}
    for row in [row for group, rows in ROWS.items() if group != "stray" for row in rows]:
        config = ZooConfig(**{**SIZES, **row})
        found |= said(row) | said({name: getattr(config.outside_layers(), name) for name in known_fields()})
    for field_name, field in described(ZooConfig).items():
        kind = field.metadata.get("kind")
        names = getattr(getattr(kind, "entry", kind), "names", ())
        idle = {name for name in names if (field_name, name) not in found}
        if idle and field_name not in ACTIVATIONS | ROUNDING:
            missing[field_name] = sorted(idle)
    assert missing == {}, "a new name of a field needs a row in combinations.py"


@pytest.mark.parametrize("group", ROWS)
def test_every_row_alone_is_accepted(group):
    for row in ROWS[group]:
        if group != "stray":
            ZooConfig(**{**SIZES, **row})


def assert_names_a_field(error, chosen):
    """A refusal has to say which of the fields stand against each other."""
    named = [name for name in known_fields() if name in str(error)]
    assert named, f"{error} names no field of {chosen}"


# One model in so many is loaded by the code of its own folder, too.
EVERY = 12


class Shipped(Loaded):
    """Those of the code with every concept."""

    def __init__(self, folder):
        config = ZooConfig(**SIZES)
        ZooForCausalLM(config).save_pretrained(folder)
        export_code(config, folder, everything=True)
        super().__init__(folder)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return Shipped(tmp_path_factory.mktemp("shipped"))


def aligned(model):
    """A tensor that lies in a file behind 101 numbers starts at no address of vectors, and matrix products of it are
    summed in another order."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def check_remote_copy(model, tokens, expected, folder, shipped, own):
    """Saved, and loaded by the code of every concept, or of its own alone, it is the same model to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        if not own:
            # Code that is not read need not be folded on its config, which takes seconds.
            patch.setattr(export, "model_pieces", export.pieces_for)
        model.save_pretrained(folder)
    for place in (shipped, Loaded(folder)) if own else (shipped,):
        again = place.model.from_pretrained(folder, config=place.config.from_pretrained(folder)).eval()
        aligned(again)
        assert torch.equal(again(tokens).logits, expected)


def check_all(chosen, folder, shipped):
    try:
        config = ZooConfig(**chosen)
    except (StrictDataclassError, ValueError) as error:
        assert_names_a_field(error, chosen)
        return "refused"
    torch.manual_seed(0)
    model = ZooForCausalLM(config).eval()
    randomize(model)
    # Above the suppressed tokens: those have no finite loss.
    tokens = torch.randint(6, 101, (2, 11))
    check_backward(model, tokens)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.isfinite(expected).all()
        if not config.use_bidirectional_attention:
            check_steps(model, tokens, expected)
            check_chunks(model, tokens, expected)
        # Patterns of 2019 and chunks count slots: padding takes part in them, as in transformers' chunked masks.
        if config.sparse_attention_pattern is None:
            check_padding(model, tokens, expected)
        own = zlib.crc32(repr(chosen).encode()) % EVERY == 0
        check_remote_copy(model, tokens, expected, folder, shipped, own)
    return "works"


def check_draws(mixer, shipped, tmp_path_factory, examples):
    outcomes = []

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=HealthCheck)
    @given(flags(mixer))
    def run(chosen):
        outcomes.append(check_all(chosen, tmp_path_factory.mktemp("model"), shipped))

    run()
    assert "works" in outcomes, "all of these were refused: the row tests nothing"


@pytest.mark.parametrize("mixer", range(len(ROWS["mixer"])))
def test_works_or_is_refused(mixer, shipped, tmp_path_factory):
    check_draws(mixer, shipped, tmp_path_factory, EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("mixer", range(len(ROWS["mixer"])))
def test_works_or_is_refused_in_many_more(mixer, shipped, tmp_path_factory):
    check_draws(mixer, shipped, tmp_path_factory, 15 * EXAMPLES)
