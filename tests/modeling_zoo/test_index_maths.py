"""The maths of an indexer, each function against its definition."""

import pytest
import torch

from modeling_zoo import ops_attention_indexer
from modeling_zoo.ops_attention_indexer import index_scores, top_positions, visible_keys
from modeling_zoo.ops_attention_sparse import chosen_keys, take_rows
from modeling_zoo.train_indexer import divergence


def random(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_index_scores_equal_the_definition_in_float32(dtype, monkeypatch):
    monkeypatch.setattr(ops_attention_indexer, "SCORED_KEYS", 300)
    query, key, weights = random(2, 3, 5, 8).to(dtype), random(2, 700, 8, seed=8).to(dtype), random(2, 3, 5, seed=9)
    products = torch.einsum("bthd,bsd->bths", query.double(), key.double()).clamp(min=0)
    expected = torch.einsum("bths,bth->bts", products, weights.double())
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            found = index_scores(query, key, weights)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


def ranked(row, count):
    """Positions of the largest numbers, of equal ones the earlier; a stable sort in Python."""
    return set(sorted(range(len(row)), key=lambda index: -row[index])[:count])


TIES = {
    "distinct": lambda: random(4, 40),
    "all equal": lambda: torch.zeros(4, 40),
    "both zeros": lambda: torch.where(random(4, 40) > 0, 0.0, -0.0),
    "few levels": lambda: (random(4, 40) * 2).round(),
    "hidden": lambda: random(4, 40).masked_fill(random(4, 40, seed=8) > 0, -torch.inf),
    "mostly relu zeros": lambda: random(4, 40).clamp(min=0) * random(4, 1, seed=9).sign(),
    "extremes": lambda: random(4, 40) * 1e38,
}


@pytest.mark.parametrize("count", [1, 7, 39, 40])
@pytest.mark.parametrize("case", TIES)
def test_the_best_positions_are_those_of_a_stable_sort(case, count):
    scores = TIES[case]()
    found = top_positions(scores, count)
    assert found.shape == (4, count)
    for row, positions in zip(scores.tolist(), found.tolist(), strict=True):
        assert set(positions) == ranked(row, count)


@pytest.mark.parametrize("contiguous", [True, False])
def test_rows_are_taken_from_their_own_batch_entry(contiguous):
    states = random(2, 9, 4) if contiguous else random(2, 12, 4)[:, :9]
    assert states.is_contiguous() is contiguous
    positions = torch.randint(0, 9, (2, 3, 5), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found = take_rows(states, positions)
    for batch, query, rank in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        assert torch.equal(found[batch, query, rank], states[batch, positions[batch, query, rank]])


def test_chosen_keys_and_masks():
    positions = torch.tensor([[[0, 3], [5, 1]]], dtype=torch.int32)
    found = chosen_keys(positions, 4)
    assert found.tolist() == [[[[True, False, False, True], [False, True, False, False]]]]
    block = slice(1, 3)
    causal = [[True, True, False, False], [True, True, True, False]]
    assert visible_keys(None, block, 4, None)[0, 0].tolist() == causal
    lowest = torch.finfo(torch.float).min
    numbers = torch.tensor([[lowest] * 4, [0.0, -3.0, lowest, -torch.inf], [0.0] * 4])[None, None]
    assert visible_keys(numbers, block, 4, None)[0, 0].tolist() == [causal[0], [True] * 4]
    assert visible_keys(numbers == 0, block, 3, None)[0, 0].tolist() == [[True, False, False], [True] * 3]


def test_divergence_equals_torchs():
    target = torch.softmax(random(2, 3, 6), dim=-1).masked_fill(torch.arange(6) > 3, 0.0)
    target = target / target.sum(dim=-1, keepdim=True)
    scores = random(2, 3, 6, seed=8)
    expected = torch.nn.functional.kl_div(torch.log_softmax(scores, -1), target, reduction="none").sum(-1)
    assert torch.allclose(divergence(target, scores), expected, atol=1e-6)
    assert torch.allclose(divergence(target, target.log().clamp(min=-1e9)), torch.zeros(2, 3), atol=1e-6)
