"""Whoever knows a family by the names in its config.json is told what they are called here: its data says so."""

from collections import defaultdict

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo import ZooConfig
from conversion.engine.registry import family_of, known_families


def theirs():
    """{a name that zoo does not take: the fields that families read it as}; also what transformers takes for it."""
    found = defaultdict(set)
    for name in known_families():
        family = family_of(name)
        ours = dict(family.fields)
        if (family.reads or name) in CONFIG_MAPPING:
            aliases = CONFIG_MAPPING[family.reads or name].attribute_map
            ours |= {one: ours[other] for one, other in aliases.items() if other in ours}
            ours |= {other: ours[one] for one, other in aliases.items() if one in ours}
        for word, field in ours.items():
            if field is not None and not hasattr(ZooConfig, word) and word not in ZooConfig._names():
                found[word].add(field)
    return found


THEIRS = theirs()


@pytest.mark.parametrize("word", sorted(THEIRS))
def test_a_name_of_a_family_is_answered_with_the_field_it_becomes(word):
    with pytest.raises(ValueError, match=f"{word}=3 is not a field of ZooConfig") as refusal:
        ZooConfig(**{word: 3})
    says = str(refusal.value).partition("of ZooConfig.")[2]
    assert any(field in says for field in THEIRS[word]), f"{says!r} names none of {THEIRS[word]}"


def test_there_are_such_names():
    assert {"n_head", "resid_pdrop", "num_local_experts", "mamba_d_state", "scale_emb"} <= THEIRS.keys()
