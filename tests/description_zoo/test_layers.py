"""A report names whatever a model's layers are made of: a field that changes what is computed changes its words."""

import pytest
from combinations import NOT_CONCEPTS, ROWS, SIZES

from configuration_zoo import ZooConfig
from description_zoo.architecture import NOT_ARCHITECTURE
from description_zoo.kinds import QUIET, kinds_of
from description_zoo.layers import layer_words
from description_zoo.measure import embedding_words, head_words

# Settings of training and of rounding, and of layers that predict further tokens, which a report only counts; layers
# with QK norms have them in their words, whichever field says so.
UNSAID = {
    *NOT_ARCHITECTURE, *NOT_CONCEPTS, *QUIET, "hc_eps", "indexer.warmup", "indexer_loss_coef", "initializer", "mtp",
    "precision", "qk_norm_config.layers", "router_aux_loss_coef", "router_z_loss_coef", "vocab_size_per_layer_input",
}  # fmt: skip


def words_of(config):
    """Everything that a report says of a model in words."""
    layers = []
    for index, view in enumerate(config.per_layer_config):
        mixer = None if view.mixer_types[index] is None else object()
        has_mlp = view.block_types[index] not in ("mixer_only", "shared_block")
        layers.append(layer_words(view, mixer, index, has_mlp))
    ends = config.outside_layers()
    return layers, kinds_of(config)[1], embedding_words(ends), head_words(ends)


def built(fields):
    try:
        return ZooConfig(**{**SIZES, **fields})
    except Exception:  # A row that is incomplete without one of its fields, in whatever way it is refused.
        return None


CASES = [(group, number) for group in ROWS if group != "stray" for number in range(len(ROWS[group]))]


@pytest.mark.sampled(16)
@pytest.mark.parametrize("group, number", CASES)
def test_a_field_changes_the_words(group, number):
    row = ROWS[group][number]
    whole = built(row)
    for field in row if whole is not None else ():
        without = built({name: value for name, value in row.items() if name != field})
        if {field, field.split(".")[0]} & UNSAID or without is None:
            continue
        if whole.to_diff_dict() != without.to_diff_dict():
            assert words_of(whole) != words_of(without), field


def test_a_plain_model_has_nothing_to_name():
    assert kinds_of(ZooConfig(**SIZES))[1] == [{}] * 3
    named = kinds_of(ZooConfig(**SIZES, norm_unit_offset=True, norm_eps=1e-5))[1]
    assert named == [{"norm_unit_offset": True}] * 3
