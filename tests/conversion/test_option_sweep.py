"""Every option of every family's own config class against transformers' class: exact, or refused by its name.

Config -> transformers' model with all parameters random -> zoo: the same logits, padded too, the same greedy tokens,
and tensors and config.json back bit for bit. What transformers itself does not take counts as illegal. Anything else
fails.
"""

import shutil
from collections import Counter

import pytest
from option_sweep import THIRD, outcome, rows, triples

from conversion import known_families

TRIPLES = 5
# Options that were misread once, each for a kind of its own.
MISREAD = {
    "None is no, whatever the default": [
        ("deepseek_v3", "norm_topk_prob", None), ("bamba", "mamba_conv_bias", None), ("ernie4_5", "use_bias", None),
        ("falcon", "bias", None),
    ],
    "no layer has what the file speaks of": [
        ("deepseek_v3", "first_k_dense_replace", 3), ("ernie4_5_moe", "moe_layer_end_index", 0),
    ],
    "tensors of no channel": [("deepseek_v3", "n_shared_experts", 0), ("afmoe", "num_shared_experts", 0)],
    "a bias that no published checkpoint has": [("cwm", "mlp_bias", True)],
    "a head with a bias of its own": [("bert_generation", "tie_word_embeddings", False)],
    "a rotation that ignores a factor": [
        ("minicpm3", "rope_parameters", {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}),
    ],
    "an error without the name of the field": [("cohere", "logit_scale", 0.0), ("dbrx", "max_seq_len", None)],
    "transformers against itself": [("falcon", "alibi", True), ("gemma", "use_bidirectional_attention", True)],
}  # fmt: skip


def third_outcomes(table, folder):
    """The rows that are neither exact nor illegal nor refused by name; prints how many are what."""
    figures, third = Counter(), []
    for row in table:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        judged = outcome(row, folder)
        figures[judged.kind] += 1
        if judged.kind == THIRD:
            third.append(f"{row}: {judged.why}")
    print(", ".join(f"{kind} {count}" for kind, count in figures.items()))
    return third


@pytest.mark.parametrize("options", MISREAD.values(), ids=MISREAD)
def test_options_that_were_misread_once(options, tmp_path):
    wanted = [(name, ((field, value),)) for name, field, value in options]
    table = [row for name in {name for name, _ in wanted} for row in rows(name) if (name, row.changes) in wanted]
    assert len(table) == len(wanted), "the table of options has lost one"
    assert not third_outcomes(table, tmp_path / "row")


@pytest.mark.long
@pytest.mark.parametrize("name", known_families())
def test_every_option_of_a_family(name, tmp_path):
    assert not third_outcomes(rows(name), tmp_path / "row")


@pytest.mark.long
@pytest.mark.parametrize("name", known_families())
def test_three_options_at_once(name, tmp_path):
    assert not third_outcomes(triples(name, TRIPLES), tmp_path / "row")
