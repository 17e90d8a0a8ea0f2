"""The kernels for a decoded token, interpreted on a CPU, against float64; what a step launches; and who calls them."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from places import ROOT, SUPPORT
from test_decode_costs import make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from modeling_zoo import (
    ops_attention,
    ops_attention_indexer,
    ops_attention_multi_query,
    ops_attention_sparse,
    ops_attention_triton,
)
from modeling_zoo.cache_upgrade import upgrade_cache


@pytest.fixture(scope="module")
def errors():
    if sys.platform != "linux":
        pytest.skip("triton is there for Linux alone")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), environment.get("PYTHONPATH", "")))
    run = [sys.executable, str(SUPPORT / "triton_worker.py")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def names(start):
    """The cases of the worker whose names begin like this, read from its source: it is not imported here."""
    source = (SUPPORT / "triton_worker.py").read_text()
    return re.findall(rf'^    "({start}[^"]*)": lambda', source, re.MULTILINE)


@pytest.mark.parametrize(
    "start", ["latent", "sparse", "padded", "static", "grouped", "groups of", "widths", "large", "indexed"]
)
def test_the_kernels_equal_float64(errors, start):
    exact = {name: error for name, error in errors.items() if name.startswith(start) and "float16" not in name}
    assert exact
    assert {name: error for name, error in exact.items() if not error < 2e-6} == {}


def test_the_kernels_in_half_precision(errors):
    half = {name: error for name, error in errors.items() if "float16" in name}
    assert len(half) == len(names('[^"]*in float16')) + 1
    assert {name: error for name, error in half.items() if not error < 2e-3} == {}


def test_the_plain_form_equals_float64(errors):
    assert errors["plain"] < 2e-6


def test_every_case_of_the_worker_is_looked_at(errors):
    assert set(names("")) <= set(errors)


def test_compiled_it_is_one_node(errors):
    assert errors["compiled"] < 2e-6
    assert errors["nodes"] == errors["of"] == 1


def test_torch_accepts_it_as_an_operation(errors):
    assert errors["checked"]


def test_it_is_for_inference_on_a_device():
    with FakeTensorMode(), torch.no_grad():
        half, double = (torch.empty(1, device="cuda", dtype=dtype) for dtype in (torch.float16, torch.float64))
        assert ops_attention_triton.use_triton(half)
        assert not ops_attention_triton.use_triton(double)
        assert not ops_attention_triton.use_triton(torch.empty(1))
        with torch.enable_grad():
            assert not ops_attention_triton.use_triton(half)


# -- what a step launches on a device ----------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """The operations that were called on a device and move something, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function._schema.name.split("::")[-1]
        if not function.is_view and not name.startswith(("device", "empty", "new_empty", "_unsafe_view")):
            self.names.append(re.sub(r"_modeling.*", "", name))
        return result


def operations(run):
    with FakeTensorMode(), torch.no_grad(), Operations() as counted:
        run(lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="cuda"))
    return counted.names


@pytest.mark.parametrize("masked", [False, True])
def test_a_latent_step_is_one_operation(masked):
    def run(empty):
        mask = empty(2, 1, 1, 300, dtype=torch.bool) if masked else None
        query, key = empty(2, 20, 1, 576), empty(2, 300, 576)
        ops_attention_multi_query.multi_query_attention((query,), (key,), 512, 0.1, mask=mask)

    assert operations(run) == ["split_decode"]


def test_a_latent_step_without_the_kernels_keeps_its_scores_in_float32(monkeypatch):
    monkeypatch.setattr(ops_attention_multi_query, "use_triton", lambda states: False)
    dtypes = []
    monkeypatch.setattr(
        ops_attention_multi_query,
        "shape_scores",
        lambda scores, **shape: dtypes.append(scores.dtype) or scores,
    )

    def run(empty):
        queries, keys = (empty(2, 20, 1, 512), empty(2, 20, 1, 64)), (empty(2, 300, 512), empty(2, 300, 64))
        ops_attention_multi_query.multi_query_attention(queries, keys, 512, 0.1)

    operations(run)
    assert dtypes == [torch.float32]


def test_keys_of_128k_tokens_are_scored_in_one_pass(monkeypatch):
    """Products of bfloat16 with sums in float32: neither queries nor keys are copied in a wider dtype."""

    def run(empty):
        scores = ops_attention_indexer.index_scores(
            empty(1, 1, 64, 128), empty(1, 2**17, 128), empty(1, 1, 64, dtype=torch.float32)
        )
        assert scores.shape == (1, 1, 2**17) and scores.dtype == torch.float32

    assert operations(run) == ["index_scores"]
    monkeypatch.setattr(ops_attention_indexer, "use_index_kernel", lambda query, key: False)
    assert operations(run) == ["bmm", "relu", "bmm"]


def test_the_choice_among_128k_keys_is_two_operations():
    def run(empty):
        scores = empty(1, 1, 2**17, dtype=torch.float32)
        assert ops_attention_indexer.top_positions(scores, 2048).shape == (1, 1, 2048)

    assert operations(run) == ["rank_scores", "topk"]


class Layer(torch.nn.Module):
    """What attention asks of a layer."""

    config = SimpleNamespace(_attn_implementation="sdpa")
    num_key_value_groups, scaling, sliding_window, softcap, has_sinks, upcast = 4, 0.1, None, None, False, False
    attention_dropout, is_causal = 0.0, True


def grouped_step(mask, batch=2):
    def run(empty):
        query, key, value = empty(batch, 8, 1, 64), empty(batch, 2, 300, 64), empty(batch, 2, 300, 64)
        ops_attention.attention(Layer().eval(), query, key, value, mask(empty))

    return operations(run)


def test_a_masked_step_of_grouped_queries_is_one_operation():
    assert grouped_step(lambda empty: empty(2, 1, 1, 300, dtype=torch.bool)) == ["split_decode"]


def test_a_step_of_grouped_queries_without_a_mask_is_torch_s_flash_kernel():
    """cuDNN, which torch would choose, makes a plan for every number of keys: tens of milliseconds a token."""
    assert grouped_step(lambda empty: None) == ["_scaled_dot_product_flash_attention"]


def test_kernels_take_it_where_torch_s_would_not_split_the_keys_or_a_graph_spares_their_launch(monkeypatch):
    assert grouped_step(lambda empty: None, batch=128) == ["split_decode"]
    monkeypatch.setattr(ops_attention, "is_traced", lambda: True)
    assert grouped_step(lambda empty: None) == ["split_decode"]


def test_a_masked_step_of_grouped_queries_without_the_kernels_repeats_no_keys(monkeypatch):
    monkeypatch.setattr(ops_attention, "use_triton", lambda states: False)
    heads = []

    def attend(query, key, value, attn_mask=None, **options):
        heads.append(key.shape[1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    monkeypatch.setattr(ops_attention, "scaled_dot_product_attention", attend)
    grouped_step(lambda empty: empty(2, 1, 1, 300, dtype=torch.bool))
    assert heads == [2]


# -- where it is called ------------------------------------------------------------------------------------------------


def plain(query, key, value, width, scaling, positions=None, visible=None):
    """The plain form, noted."""
    calls.append((query.shape, positions is not None, visible is not None))
    return ops_attention_triton.plain_split_decode(query, key, value, width, scaling, positions, visible)


calls = []


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("case", ["softmax", "sliding", "latent", "sparse"])
def test_it_is_called_with_what_the_layers_hold(case, kind, padding, monkeypatch):
    model = make(case)
    tokens = torch.randint(1, 31, (2, 14), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0

    def run(kind):
        made = (
            DynamicCache(config=model.config)
            if kind == "dynamic"
            else StaticCache(config=model.config, max_cache_len=20)
        )
        cache, parts = upgrade_cache(made, model.config), []
        for start, stop in ((0, 12), (12, 13), (13, 14)):
            here = {"attention_mask": mask[:, :stop]} if padding else {}
            parts.append(model(tokens[:, start:stop], past_key_values=cache, **here).logits)
        return torch.cat(parts[1:], dim=1)

    expected = run("dynamic")
    calls.clear()
    for module in (ops_attention, ops_attention_multi_query, ops_attention_sparse):
        monkeypatch.setattr(module, "use_triton", lambda states: True)
        monkeypatch.setattr(module, "split_decode", plain)
    torch.testing.assert_close(run(kind), expected, rtol=1e-4, atol=1e-4)
    # A prompt whose chosen keys are gathered is one row per query.
    calls[:] = [call for call in calls if call[0][0] == 2]
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert all(chosen is (case == "sparse") for _, chosen, _ in calls)
    hides = bool(padding) or kind == "static"
    assert case == "sliding" or all(hidden is hides for _, _, hidden in calls)
