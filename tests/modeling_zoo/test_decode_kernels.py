"""The decode kernel, interpreted on a CPU, against float64; and that nothing needs it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from places import ROOT, SUPPORT
from test_decode_costs import make
from transformers import DynamicCache

from modeling_zoo import ops_attention, ops_attention_multi_query, ops_attention_sparse, ops_attention_triton
from modeling_zoo.cache_upgrade import upgrade_cache


@pytest.fixture(scope="module")
def errors():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, str(SUPPORT / "triton_worker.py")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


CASES = (
    "latent", "latent in one split", "latent in many splits", "latent, one key", "sparse", "sparse in splits",
    "sliding", "padded",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_float64(errors, case):
    assert errors[case] < 2e-6


def test_the_kernel_in_half_precision(errors):
    """float16: the interpreter's products in bfloat16 are no numbers at all."""
    assert errors["latent in float16"] < 2e-3


def test_every_case_of_the_worker_is_looked_at(errors):
    assert set(errors) == {*CASES, "latent in float16"}


def test_nobody_gets_it_unasked(monkeypatch):
    states = torch.zeros(1)
    with torch.no_grad():
        assert not ops_attention_triton.use_triton(states)
        monkeypatch.setenv("ZOO_TRITON", "1")
        assert not ops_attention_triton.use_triton(states)


# -- where it is called ------------------------------------------------------------------------------------------------


def plain(query, key, value, scaling, positions=None, visible=None, splits=None):
    """What the kernel computes, in torch."""
    calls.append((query.shape, positions is not None, visible is not None))
    if positions is not None:
        rows = positions.long()[:, None, :, None]
        key, value = (part.gather(2, rows.expand(-1, part.shape[1], -1, part.shape[-1])) for part in (key, value))
    mask = None if visible is None else visible[:, None, None]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


calls = []


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("case", ["softmax", "sliding", "latent", "sparse"])
def test_it_is_called_with_what_the_layers_hold(case, padding, monkeypatch):
    model = make(case)
    tokens = torch.randint(1, 31, (2, 14), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0

    def run():
        cache = upgrade_cache(DynamicCache(config=model.config), model.config)
        parts = []
        for start, stop in ((0, 12), (12, 13), (13, 14)):
            here = {"attention_mask": mask[:, :stop]} if padding else {}
            parts.append(model(tokens[:, start:stop], past_key_values=cache, **here).logits)
        return torch.cat(parts[1:], dim=1)

    expected = run()
    calls.clear()
    for module in (ops_attention, ops_attention_multi_query, ops_attention_sparse):
        monkeypatch.setattr(module, "use_triton", lambda states: True)
        monkeypatch.setattr(module, "split_decode", plain)
    torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
    # A prompt whose chosen keys are gathered is one row per query.
    calls[:] = [call for call in calls if call[0][0] == 2]
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert all(chosen is (case == "sparse") for _, chosen, _ in calls)
    assert all(hidden is bool(padding or case == "sliding") for _, _, hidden in calls) or case == "sliding"
