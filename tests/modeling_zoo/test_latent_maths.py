"""Reading one shared latent: each form against the definition, and which form costs less."""

import pytest
import torch

from modeling_zoo.ops_attention_latent import absorbed_is_cheaper
from modeling_zoo.ops_attention_multi_query import multi_query_attention, plain_multi_query, streamed_multi_query
from modeling_zoo.ops_head_maps import absorb_query, up_project_output


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


SHAPES = {"heads": 128, "kv_heads": 128, "rank": 512, "nope": 128, "rope": 64, "value": 128}


def test_the_cheaper_form_is_chosen():
    """Multiply-adds of DeepSeek-V3's shapes: few queries absorb, about 170 and more expand; a token always absorbs."""
    assert all(absorbed_is_cheaper(1, keys, **SHAPES) for keys in (2, 300, 65536))
    assert absorbed_is_cheaper(150, 65536, **SHAPES)
    assert not absorbed_is_cheaper(190, 65536, **SHAPES)
    assert not absorbed_is_cheaper(400, 400, **SHAPES)
    # Behind an adapter the matrix first has to be found, which costs as much as expanding 512 keys.
    assert not absorbed_is_cheaper(1, 500, **SHAPES, basis_rows=512)
    assert absorbed_is_cheaper(1, 600, **SHAPES, basis_rows=512)


def test_what_is_gathered_is_counted():
    """A prompt of a few heads reads all keys faster than it copies its choice; steps of a few tokens copy little."""
    few = SHAPES | {"heads": 2, "kv_heads": 2}

    def pays(queries, keys, shapes):
        return absorbed_is_cheaper(queries, keys, **shapes, pairs=(queries * keys // 2, queries * min(2048, keys)))

    assert pays(1, 65536, few) and pays(8, 65536, few)
    assert not pays(16384, 16384, few) and not pays(16384, 16384, SHAPES)
    assert pays(65536, 65536, SHAPES) and not pays(65536, 65536, few)


def shared_case(dtype=torch.float32, length=3, keys=1100):
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    queries = random(2, 4, length, 12), random(2, 4, length, 6)
    shared = random(2, keys, 12), random(2, keys, 6)
    mask = torch.rand(2, 1, length, keys, generator=generator) > 0.4
    # A query that sees nothing in the first chunks.
    mask[0, :, 0, :1050] = False
    bias = random(1, 4, length, keys)
    return queries, shared, {"mask": mask, "position_bias": bias, "softcap": 3.0, "sinks": random(4)}


def plainly(queries, keys, rank, scaling, mask=None, position_bias=None, softcap=None, sinks=None):
    """The same, every head with keys of its own, in float64."""
    query, key = (torch.cat(parts, dim=-1).double() for parts in (queries, keys))
    scores = torch.einsum("bhtd,bsd->bhts", query, key) * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if position_bias is None else scores + position_bias.double()
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    weights = scores.exp()
    mass = weights.sum(dim=-1, keepdim=True) + (0 if sinks is None else sinks.double().exp().view(1, -1, 1, 1))
    return torch.einsum("bhts,bsc->bhtc", weights / mass, key[..., :rank])


@pytest.mark.parametrize("options", [(), ("mask",), ("softcap", "position_bias"), ("mask", "sinks"), ("sinks",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_and_plain_reading_equal_the_definition(options, dtype):
    queries, keys, shape = shared_case(dtype)
    shape = {name: shape[name] for name in options}
    expected = plainly(queries, keys, 12, 0.2, **shape)
    tolerance = 2e-6 if dtype == torch.float32 else 8e-3
    whole = (torch.cat(keys, dim=-1),)
    with torch.no_grad():
        assert relative_error(streamed_multi_query(queries, keys, 12, 0.2, **shape), expected) < tolerance
        joined = (torch.cat(queries, dim=-1),)
        assert relative_error(streamed_multi_query(joined, whole, 12, 0.2, **shape), expected) < tolerance
        if dtype == torch.float32:
            for some, other in ((queries, keys), (joined, whole)):
                assert relative_error(plain_multi_query(some, other, 12, 0.2, **shape)[0], expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_few_keys_are_read_by_the_fused_kernel(dtype, masked, monkeypatch):
    queries, keys, shape = shared_case(dtype, length=1, keys=300)
    mask = shape["mask"][..., :300] if masked else None
    if masked:
        mask[..., 0] = True
    expected = plainly(queries, keys, 12, 0.2, mask=mask)
    for form in ("plain_multi_query", "streamed_multi_query"):
        monkeypatch.setattr(
            f"modeling_zoo.ops_attention_multi_query.{form}", lambda *args, **kwargs: pytest.fail("not fused")
        )
    with torch.no_grad():
        for parts in ((queries, keys), ((torch.cat(queries, dim=-1),), (torch.cat(keys, dim=-1),))):
            found, _ = multi_query_attention(*parts, 12, 0.2, mask=mask)
            assert found.shape == (2, 4, 1, 12)
            assert relative_error(found, expected) < (2e-6 if dtype == torch.float32 else 8e-3)


def test_streaming_leaves_the_sinks_alone():
    queries, keys, shape = shared_case(length=1)
    sinks = shape["sinks"].clone()
    with torch.no_grad():
        streamed_multi_query(tuple(q[:1] for q in queries), tuple(k[:1] for k in keys), 12, 0.2, sinks=shape["sinks"])
    assert torch.equal(shape["sinks"], sinks)


def test_reading_in_blocks_of_queries_changes_nothing(monkeypatch):
    queries, keys, shape = shared_case(length=7)
    expected = plain_multi_query(queries, keys, 12, 0.2, **shape)[0]
    monkeypatch.setattr("modeling_zoo.ops_attention_multi_query.MOST_SCORES", 2 * 2 * 4 * 1100)
    found, weights = multi_query_attention(queries, keys, 12, 0.2, **shape)
    assert weights is None
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_maps_of_each_head_go_to_its_own_rows(dtype, batch, length, transposed):
    """Six heads in three groups, widths 4 and 7, rank 5; also for maps that lie the other way round in memory."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(3, 11, 5, generator=generator).to(dtype)
    if transposed:
        maps = maps.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    query = torch.randn(batch, 6, length, 4, generator=generator).to(dtype)
    context = torch.randn(batch, 6, length, 5, generator=generator).to(dtype)
    up_key, up_value = (part.double().repeat_interleave(2, dim=0) for part in (maps[:, :4], maps[:, 4:]))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    with torch.no_grad():
        expected = torch.einsum("bhtn,hnc->bhtc", query.double(), up_key)
        assert relative_error(absorb_query(query, maps), expected) < tolerance
        expected = torch.einsum("bhtc,hvc->bhtv", context.double(), up_value)
        assert relative_error(up_project_output(context, maps, 7), expected) < tolerance
