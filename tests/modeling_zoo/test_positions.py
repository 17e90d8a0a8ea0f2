"""Positions that are not rotations: learned, sinusoidal, linear and bucketed biases."""

import pytest
import torch
from combinations import HEADS as RECURRENT_HEADS
from combinations import SIZES as THREE_LAYERS
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from references_positions import alibi_slopes as slow_slopes
from references_positions import sinusoid
from torch import nn
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.ctrl.modeling_ctrl import positional_encoding
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as build_falcon_alibi
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooModel
from modeling_zoo.embeddings import positions_of
from modeling_zoo.position_tables import (
    WAVES,
    AlibiBias,
    LearnedPositions,
    RelativeBias,
    SinusoidalPositions,
    alibi_slopes,
)

SIZES = {
    "vocab_size": 31, "hidden_size": 20, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 6, "head_dim": 8, "max_position_embeddings": 40,
}  # fmt: skip
HEADS = 6


def config_of(kind, **fields):
    return ZooConfig(**SIZES | {"position_embedding_type": kind} | fields)


def make(kind, **fields):
    model = ZooModel(config_of(kind, **fields)).eval()
    randomize(model)
    return model


# -- learned and sinusoidal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_rows_begin_at_the_offset(offset):
    table = LearnedPositions(config_of("learned", position_config={"offset": offset}))
    assert table.weight.shape == (40 + offset, 20)
    positions = torch.tensor([[3, 0, 39]])
    assert torch.equal(table(positions, None), table.weight[positions + offset])


def padded():
    """A mask whose rows have no, some and much padding on the left."""
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :3], mask[2, :8] = 0, 0
    return mask


def test_positions_from_the_mask_are_opt_s():
    theirs = OPTLearnedPositionalEmbedding(40, 20)
    config = config_of("learned", position_config={"offset": 2, "ids_from_mask": True})
    ours = LearnedPositions(config)
    ours.load_state_dict(theirs.state_dict())
    mask = padded()
    positions = positions_of(config, torch.empty(3, 9, 20), mask, None)
    assert torch.equal(ours(positions, None), theirs(mask))
    # The last four of nine, as after five cached tokens.
    positions = positions_of(config, torch.empty(3, 4, 20), mask, None)
    assert torch.equal(ours(positions, None), theirs(mask, 5))


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_padding_takes_no_position_where_the_mask_counts(kind):
    model = make(kind, position_config={"ids_from_mask": True})
    tokens, mask = torch.randint(1, 31, (3, 9)), padded()
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).last_hidden_state
        for row, first in enumerate((0, 3, 8)):
            alone = model(tokens[row : row + 1, first:]).last_hidden_state
            torch.testing.assert_close(whole[row : row + 1, first:], alone)


def test_padding_takes_positions_where_nothing_says_otherwise():
    model = make("learned")
    tokens, mask = torch.randint(1, 31, (1, 9)), padded()[1:2]
    with torch.no_grad():
        whole, alone = (m.last_hidden_state for m in (model(tokens, attention_mask=mask), model(tokens[:, 3:])))
    assert not torch.allclose(whole[:, 3:], alone, atol=1e-3)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
@pytest.mark.parametrize("from_mask", [False, True])
def test_cached_steps_go_on_counting(kind, from_mask):
    model = make(kind, position_config={"ids_from_mask": from_mask})
    tokens, mask = torch.randint(1, 31, (3, 9)), padded()
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).last_hidden_state
        cache, parts = None, []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            output = model(tokens[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache, parts = output.past_key_values, [*parts, output.last_hidden_state]
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()])


@pytest.mark.parametrize("layout", ["interleaved", "halves", "closed_halves"])
@pytest.mark.parametrize("width", [8, 7])
@pytest.mark.parametrize("offset", [0, 2])
def test_sinusoids_are_the_formula(width, layout, offset):
    class Settings:
        hidden_size, position_config = width, {"sinusoid_layout": layout, "offset": offset}

    positions = torch.tensor([[0, 1, 7], [250, 30, 2]])
    found = SinusoidalPositions(Settings)(positions, torch.empty(0))
    expected = [[sinusoid(position + offset, width, layout) for position in row] for row in positions.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=2e-5)


def test_sinusoids_in_halves_are_ctrl_s_and_xglm_s():
    """Over whole tables: far positions show the last digits of a frequency."""
    positions = torch.arange(2000)
    assert torch.equal(WAVES["halves"](positions, 20), positional_encoding(2000, 20, torch.float))
    theirs = XGLMSinusoidalPositionalEmbedding.get_embedding(2000, 20)
    assert torch.equal(WAVES["closed_halves"](positions, 20), theirs)


# -- linear biases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 8, 12, 16, 25, 40, 71, 112])
def test_slopes(heads):
    slopes = alibi_slopes(heads)
    torch.testing.assert_close(slopes, torch.tensor(slow_slopes(heads)))
    # MPT counts down from the power of two above, BLOOM on from the one below: the same slopes.
    mpt = build_mpt_alibi_tensor(heads, 2)
    torch.testing.assert_close(slopes, -mpt[:, 0, 0])


def centred(bias, mask):
    """A bias `[B, H, 1, K]` without what all attended keys of a row share: all that a softmax can see of it."""
    attended = mask[:, None, None, :].bool()
    bias = torch.where(attended, bias, 0)
    mean = bias.sum(-1, keepdim=True) / attended.sum(-1, keepdim=True)
    return torch.where(attended, bias - mean, 0)


@pytest.mark.parametrize("mask", [torch.ones(2, 30, dtype=torch.long), padded()], ids=["whole", "padded"])
def test_the_bias_is_bloom_s_up_to_a_shift(mask):
    slots = torch.arange(mask.shape[1])
    ours = AlibiBias(config_of("alibi"))(torch.empty(0), slots, slots, mask)
    theirs = build_alibi_tensor(mask, HEADS, torch.float32).view(len(mask), HEADS, 1, -1)
    torch.testing.assert_close(centred(ours, mask), centred(theirs, mask))


def test_without_a_mask_the_bias_counts_slots():
    bias = AlibiBias(config_of("alibi"))
    slots = torch.arange(30)
    mask = torch.ones(1, 30, dtype=torch.long)
    assert torch.equal(bias(torch.empty(0), slots, slots, None), bias(torch.empty(0), slots, slots, mask))


@pytest.mark.parametrize("length", [30, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rounded_and_scaled_bias_is_falcon_s(length, dtype):
    """In bfloat16 a position above 256 is no longer its own; only the absolute position rounds as theirs does."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :7] = 0
    bias = AlibiBias(config_of("alibi", position_config={"alibi_scaled": True}, precision={"alibi": "bfloat16"}))
    slots = torch.arange(length)
    ours = bias(torch.empty(0, dtype=dtype), slots, slots, mask)
    theirs = build_falcon_alibi(mask, HEADS, dtype).view(2, HEADS, 1, -1) / 8**0.5
    attended = mask[:, None, None].bool().expand_as(ours)
    torch.testing.assert_close(
        ours[attended], theirs[attended], rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0
    )
    if length > 256:
        steps = ours[1, 0, 0].float().diff()
        assert (steps == 0).any(), "neighbours above 256 share a place"


def test_alibi_looks_both_ways_where_attention_does():
    slots = torch.arange(9)
    bias = AlibiBias(config_of("alibi", use_bidirectional_attention=True))(torch.empty(0), slots, slots, None)
    for head, slope in enumerate(slow_slopes(HEADS)):
        expected = torch.tensor([[-slope * abs(query - key) for key in range(9)] for query in range(9)])
        torch.testing.assert_close(bias[0, head], expected)


@pytest.mark.parametrize("seen", [0, 4])
def test_beside_a_sink_the_bias_is_zero_where_the_query_stands(seen):
    """A sink takes part in the softmax without a place: here the shift that the keys share is no longer free."""
    mask = padded()
    slots = torch.arange(mask.shape[1])
    found = AlibiBias(config_of("alibi", attention_sinks="all"))(torch.empty(0), slots[seen:], slots, mask)
    for row, first in enumerate((0, 3, 8)):
        for head, slope in enumerate(slow_slopes(HEADS)):
            for query in range(max(first, seen), len(slots)):
                expected = torch.tensor([slope * (key - query) for key in range(first, len(slots))])
                torch.testing.assert_close(found[row, head, query - seen, first:], expected)


def test_alibi_beside_sinks_steps_as_it_reads():
    model = make("alibi", attention_sinks="all", attn_implementation="eager")
    tokens, cache, steps = torch.randint(1, 31, (2, 7)), None, []
    with torch.no_grad():
        whole = model(tokens).last_hidden_state
        for index in range(7):
            out = model(tokens[:, index : index + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_bidirectional_attention": True}, {"attention_sinks": "all", "attn_implementation": "eager"}],
    ids=["causal", "both_ways", "sinks"],
)
def test_left_padding_leaves_alibi_unchanged(fields):
    model = make("alibi", **fields)
    tokens, mask = torch.randint(1, 31, (3, 9)), padded()
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).last_hidden_state
        for row, first in enumerate((0, 3, 8)):
            alone = model(tokens[row : row + 1, first:]).last_hidden_state
            torch.testing.assert_close(whole[row : row + 1, first:], alone)


# -- bucketed biases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets, farthest", [(32, 128), (6, 9), (4, 64), (8, 20)])
def test_buckets_are_t5_s(buckets, farthest):
    config = config_of("relative", relative_attention_num_buckets=buckets, relative_attention_max_distance=farthest)
    distance = torch.arange(-5, 3 * farthest)
    theirs = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=buckets, max_distance=farthest
    )
    found = RelativeBias(config).buckets(distance)
    assert torch.equal(found, theirs)
    assert set(found.tolist()) == set(range(buckets)), "every bucket is used"


@pytest.mark.parametrize("seen", [0, 5])
def test_attention_is_t5_s_decoder_attention(seen):
    """Self-attention of a T5 decoder: the bias on unscaled scores, all layers sharing the first one's table."""
    theirs = T5Attention(
        T5Config(
            d_model=20, d_kv=8, num_heads=HEADS, is_decoder=True, relative_attention_num_buckets=6, dropout_rate=0.0,
            relative_attention_max_distance=9, attn_implementation="eager",
        ),
        has_relative_attention_bias=True,
        layer_idx=0,
    ).eval()  # fmt: skip
    model = make(
        "relative", relative_attention_num_buckets=6, relative_attention_max_distance=9, attention_multiplier=1.0,
        attn_implementation="eager",
    )  # fmt: skip
    nn.init.normal_(theirs.relative_attention_bias.weight)
    layer = model.layers[0].self_attn
    model.position_bias.load_state_dict(
        {"relative_attention_bias.weight": theirs.relative_attention_bias.weight.detach()}
    )
    for ours, original in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "o")):
        getattr(layer, ours).weight.data = getattr(theirs, original).weight.data
    x = torch.randn(2, 14, 20)
    mask = torch.full((14, 14), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        expected = theirs(x, mask=mask)[0]
        slots = torch.arange(14)
        bias = model.position_bias(x, slots, slots, None)
        torch.testing.assert_close(bias, theirs.compute_bias(14, 14))
        found = layer(x, attention_mask=mask, position_bias=bias)[0]
        torch.testing.assert_close(found, expected)
        # The rows of the last tokens alone, as a step over a cache asks for them.
        rows = model.position_bias(x, slots[seen:], slots, None)
    assert torch.equal(rows, bias[:, :, seen:])


@pytest.mark.parametrize(
    "kind, fields, named",
    [
        ("learned", {"position_config.alibi_scaled": True}, "position_config.alibi_scaled"),
        ("learned", {"position_config.sinusoid_layout": "halves"}, "position_config.sinusoid_layout"),
        ("sinusoidal", {"position_config.sinusoid_layout": "half"}, "Did you mean 'halves'"),
        ("alibi", {"position_config.offset": 2}, "position_config.offset"),
        ("none", {"position_config.ids_from_mask": True}, "position_config.ids_from_mask"),
        ("sinusoidal", {"relative_attention_num_buckets": 8}, "relative_attention_num_buckets"),
        ("relative", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
        ("alibi", {"precision.alibi": "int8"}, "precision.alibi"),
        ("alibi", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters"),
        ("learnt", {}, "Did you mean 'learned'"),
        ("relative", {"layer_types": ["conv"] * 2, "linear_attention_type": "short_conv"}, "softmax attention layer"),
    ],
    ids=str,
)
def test_contradictions_are_refused_by_name(kind, fields, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        config_of(kind, **fields)


WITHOUT_KEYS = {
    "no mixer": {"block_type": ["mixer_only", "mlp_only", "pre_norm"]},
    "recurrences": {
        "layer_types": ["linear_attention", "full_attention", "conv"],
        "linear_attention_type": ["delta_net", None, "short_conv"], **RECURRENT_HEADS,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["alibi", "relative", "transformer_xl"])
@pytest.mark.parametrize("layers", WITHOUT_KEYS)
@torch.no_grad()
def test_layers_without_keys_ask_for_no_bias(kind, layers):
    model = ZooForCausalLM(
        ZooConfig(**{**THREE_LAYERS, "position_embedding_type": kind, **WITHOUT_KEYS[layers]})
    ).eval()
    randomize(model)
    tokens = torch.randint(1, 101, (2, 9))
    first = model(tokens[:, :6], use_cache=True)
    found = model(tokens[:, 6:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(found, model(tokens).logits[:, 6:], rtol=1e-4, atol=1e-4)
