"""Products computed in float32: against the same in float64, and torch's own."""

import pytest
import torch
import torch.nn.functional as F

from modeling_zoo import ops_dispatch, ops_linear
from modeling_zoo.ops_linear import fp32_linear, linear, use_fp32_linear


@pytest.fixture
def emulated(monkeypatch):
    """A CPU without units, whatever this one has, and small enough tiles for several of them."""
    monkeypatch.setattr(ops_dispatch, "is_emulated", lambda dtype: True)
    monkeypatch.setattr(ops_linear, "MIN_ROWS", 3)
    monkeypatch.setattr(ops_linear, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(ops_linear, "TILE_OUTPUTS", 7)
    monkeypatch.setattr(ops_linear, "TILE_ROWS", 4)


@pytest.fixture
def in_float32(monkeypatch):
    """The shapes of the products that were computed in float32."""
    seen, real = [], ops_linear.fp32_linear
    monkeypatch.setattr(ops_linear, "fp32_linear", lambda *args: seen.append(args[0].shape) or real(*args))
    return seen


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 19), (2, 5, 19), (1, 1, 9, 19)])
def test_is_the_exact_product_rounded_once(emulated, shape, with_bias, dtype):
    x, weight = random(*shape, dtype=dtype), random(23, 19, dtype=dtype)
    bias = random(23, dtype=dtype) if with_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = fp32_linear(x, weight, bias)
    assert found.dtype == dtype and found.shape == (*shape[:-1], 23)
    # Half a step of the last place, and what float32 sums leave.
    step = torch.finfo(dtype).eps / 2
    assert ((found.double() - exact).abs() <= step * exact.abs() + 1e-5).all()


def test_only_many_rows_are_computed_in_float32(emulated, in_float32):
    with torch.no_grad():
        for rows in (1, 2, 3, 9):
            linear(random(rows, 19), random(23, 19))
    assert [len(shape) and shape[0] for shape in in_float32] == [3, 9]


def test_what_must_stay_in_its_dtype(emulated):
    x, weight = random(9, 19), random(23, 19)
    assert not use_fp32_linear(x, weight)
    with torch.no_grad():
        assert use_fp32_linear(x, weight) and use_fp32_linear(x, torch.nn.Parameter(weight))
        assert not use_fp32_linear(x.float(), weight) and not use_fp32_linear(x.float(), weight.float())
        assert not use_fp32_linear(x.to("meta"), weight.to("meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not use_fp32_linear(x, weight)


def test_small_products_and_processors_with_units_stay(monkeypatch):
    x, weight = random(64, 1024), random(512, 1024)
    with torch.no_grad():
        monkeypatch.setattr(ops_dispatch, "is_emulated", lambda dtype: True)
        assert use_fp32_linear(x, weight)
        assert not use_fp32_linear(x[:23], weight) and not use_fp32_linear(x, weight[:16])
        monkeypatch.setattr(ops_dispatch, "is_emulated", lambda dtype: False)
        assert not use_fp32_linear(x, weight)
    monkeypatch.undo()
    assert not ops_dispatch.is_emulated(torch.float32)


def test_gradients_are_the_plain_ones(emulated, in_float32):
    weight, bias = random(23, 19), random(23)
    x, plain = random(9, 19).requires_grad_(), random(9, 19).requires_grad_()
    linear(x, weight, bias).float().square().sum().backward()
    F.linear(plain, weight, bias).float().square().sum().backward()
    assert not in_float32 and torch.equal(x.grad, plain.grad)


def test_a_compiled_product_is_the_plain_one(emulated, in_float32):
    x, weight = random(9, 19), random(23, 19)
    with torch.no_grad():
        assert torch.equal(torch.compile(linear, backend="eager", fullgraph=True)(x, weight), F.linear(x, weight))
        assert not in_float32
