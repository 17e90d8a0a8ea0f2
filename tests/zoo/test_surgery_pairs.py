"""Two operations in one command: both are done, in an order that leaves each what it needs, or a sentence refuses."""

from itertools import combinations

import pytest
import torch
from checkpoint_checks import noise
from surgery_models import family_config, logits, random_model, stories, tokens

from zoo.surgery import operate
from zoo.surgery.operation import APPROXIMATE, TOLERANCE, SurgeryError
from zoo.surgery.planner import differing
from zoo.surgery.possibilities import possible

WIDTH, GROUPS, HEADS = "head_dim", "num_key_value_heads", "num_attention_heads"


def both(model, first, second, method=None, **options):
    """A report of two changes in one command, which has what was asked for; the sentence where that is refused."""
    fields = first | second
    try:
        report = operate(model, None, fields, method=method, **options)
    except SurgeryError as error:
        assert str(error).count("\n") == 0
        return str(error)
    # Words become lists of layers, and the second operation may leave the first one's flag without a meaning.
    sizes = {name: value for name, value in fields.items() if type(value) is int and name != "no_rope_layers"}
    assert not differing(report.model.config, sizes)
    return report


@pytest.mark.parametrize(
    ("fields", "names", "exactness"),
    [
        ({WIDTH: 16, GROUPS: 8}, ["key-value heads", "width of heads"], ["bits", "arithmetic"]),
        ({GROUPS: 2, WIDTH: 16}, ["key-value heads", "width of heads"], ["approximate", "arithmetic"]),
        ({WIDTH: 16, HEADS: 12}, ["heads of queries", "width of heads"], ["arithmetic"] * 2),
        ({"attention_type": "latent", WIDTH: 16}, ["width of heads", "grouped-query → latent attention"], None),
    ],
)
def test_wider_heads_beside_other_fields(fields, names, exactness):
    """Heads are joined, repeated or added at their old width, whichever field comes first."""
    model = stories()[0]
    ids = stories()[1].to_measure(512)[:1, :64]
    reports = [both(model, dict(order), {}, calibrate=ids) for order in (fields.items(), reversed(fields.items()))]
    for report in reports:
        assert [done.name for done in report.operations] == names
        assert exactness is None or [done.exactness for done in report.operations] == exactness
    first, second = (logits(report.model, ids) for report in reports)
    assert torch.equal(first, second)
    if APPROXIMATE not in (done.exactness for done in reports[0].operations):
        before = logits(model, ids)
        assert (first - before).abs().max() <= TOLERANCE * before.abs().max()


def asked(config):
    """The changes that a table of what is possible offers, by fields, one for each operation and exactness."""
    rows = {}
    for row in possible(config):
        if row.fields and row.method is None:
            rows.setdefault((row.name, row.exactness), row)
    return list(rows.values())


@pytest.mark.long
@pytest.mark.parametrize(("family", "number"), [("llama", 0), ("gpt2", 0)])
def test_exact_ones_composed_stay_exact(family, number):
    """Every pair of what is possible: done and exact where both are, as good a config in any case, or refused."""
    config = family_config(family, number)
    model, ids = random_model(config), tokens(config)
    before, rounding = logits(model, ids), noise(model, ids)
    done, refused = 0, []
    for first, second in combinations(asked(config), 2):
        if set(first.fields) & set(second.fields):
            continue
        report = both(model, first.fields, second.fields)
        if isinstance(report, str):
            refused.append((first.fields, second.fields, report))
            continue
        done += 1
        if all(one.exactness in ("bits", "arithmetic") for one in report.operations):
            after = logits(report.model, ids)[..., : before.shape[-1]]
            difference = (after - before).abs().max() / before.abs().max()
            assert difference <= max(2 * TOLERANCE, 8 * rounding), (first.fields, second.fields, difference)
    assert done > 4 * len(refused), refused
