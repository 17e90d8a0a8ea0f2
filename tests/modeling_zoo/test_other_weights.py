"""Attentions whose weights are no plain softmax of scores, in every way a model is run: differential, forgetting,
stick-breaking and path attention. Their numbers are compared with slow references in test_attention.py."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from model_checks import check_backward, check_packed
from peft import LoraConfig, get_peft_model
from random_models import randomize
from transformers import DynamicCache
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_growing import GrowingLayer
from modeling_zoo.cache_quantized import QuantizedGrowingLayer
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.ops_attention_order import plain_stick_breaking, stick_breaking_weights
from modeling_zoo.ops_attention_path import one_query_scores, path_scores
from modeling_zoo.platform_vllm import unsupported_by_vllm

KINDS = ("differential", "forgetting", "stick_breaking", "path")
ADDED = {"forgetting": {"f_proj"}, "path": {"w_proj", "bt_proj"}}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "chunked_attention"], "sliding_window": 4,
           "attention_chunk_size": 5}  # fmt: skip


def build(kind, **fields):
    model = ZooForCausalLM(ZooConfig(**SIZES, **{"attention_type": kind, **fields}))
    randomize(model)
    return model.eval()


ALL_AT_ONCE = ["stick_breaking", "path", "differential"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, WINDOWS) for kind in (*KINDS, ALL_AT_ONCE)),
        *(pytest.param(kind, {}, marks=pytest.mark.long) for kind in KINDS),
    ],
    ids=str,
)
def test_every_way_to_run_gives_the_same(kind, fields, tmp_path):
    model, tokens = build(kind, **fields), torch.randint(3, 101, (2, TOKENS))
    with torch.no_grad():
        expected = model(tokens).logits
        check_cached(model, tokens, expected)
        check_padded(model, tokens, expected)
        check_packed(model, tokens, expected)
        check_generated(model, tokens)
        if kind == ALL_AT_ONCE or not fields:
            check_saved(model, tokens, expected, tmp_path, remote=True)
    check_backward(model, tokens)


def test_a_stick_is_broken_alike_in_blocks(monkeypatch):
    monkeypatch.setattr("modeling_zoo.ops_attention_order.STICK_BLOCK", 4)
    scores, visible = torch.randn(2, 3, 11, 11), torch.ones(11, 11, dtype=torch.bool).tril()[None, None]
    weights = plain_stick_breaking(scores, visible)
    assert torch.equal(stick_breaking_weights(scores, visible), weights)
    # What is not broken off stays.
    assert (weights.sum(-1) < 1).all()


def products_of_reflections(query, key, reflections):
    """q_iᵀ H_i ... H_(j+1) k_j by matrices, `[B, H, T, S]`; zero for the keys behind a query."""
    groups, length = query.shape[1] // key.shape[1], key.shape[2]
    key, reflections = (states.repeat_interleave(groups, dim=1) for states in (key, reflections))
    turns = torch.eye(key.shape[-1]) - reflections[..., :, None] * reflections[..., None, :]
    scores = torch.zeros(*query.shape[:3], length)
    for i in range(query.shape[2]):
        left = query[:, :, i]
        for j in range(i + length - query.shape[2], -1, -1):
            scores[:, :, i, j] = (left * key[:, :, j]).sum(-1)
            left = (left[..., None, :] @ turns[:, :, j])[..., 0, :]
    return scores


@pytest.mark.parametrize("queries", [11, 3, 1])
def test_a_path_is_walked_alike_in_blocks_and_from_slots_in_any_order(queries, monkeypatch):
    monkeypatch.setattr("modeling_zoo.ops_attention_path.PATH_BLOCK", 4)
    sizes = (2, 6, queries, 5), (2, 3, 11, 5), (2, 3, 11, 5)
    states = [torch.randn(size, dtype=torch.float64).float().requires_grad_() for size in sizes]
    visible = torch.ones(11, 11, dtype=torch.bool).tril()[None, None, 11 - queries :]
    wanted, found = products_of_reflections(*states), path_scores(*states, visible).masked_fill(~visible, 0.0)
    upstream = torch.randn_like(wanted)
    pairs = [(found, wanted), *zip(*(torch.autograd.grad(s, states, upstream) for s in (found, wanted)), strict=True)]
    for one, other in pairs:
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    order = torch.randperm(11)
    places = order.argsort()
    moved = (states[0], *(x[:, :, places] for x in states[1:]))
    turned = path_scores(*moved, visible[..., places], order)
    torch.testing.assert_close(turned.masked_fill(~visible[..., places], 0.0), found[..., places])


@pytest.mark.parametrize("count", [3, 4, 11, 20, 37])
def test_one_query_walks_all_blocks_at_once(count, monkeypatch):
    """The form for devices, over 1 to 10 blocks; keys that the query does not see, at the end or among others, turn
    nothing."""
    monkeypatch.setattr("modeling_zoo.ops_attention_path.PATH_BLOCK", 4)
    query, key, reflections = torch.randn(2, 6, 1, 5), torch.randn(2, 3, count, 5), torch.randn(2, 3, count, 5)
    visible = torch.rand(2, 1, 1, count) < 0.8
    visible[..., 0] = True
    turning = reflections.masked_fill(~visible[:, :, 0, :, None], 0.0)
    wanted = products_of_reflections(query, key, turning)
    for order in (None, torch.randperm(count)):
        places = slice(None) if order is None else order.argsort()
        found = one_query_scores(query, key[:, :, places], turning[:, :, places], order)
        assert (found - wanted[..., places]).abs().max() < 1e-5 * wanted.abs().max()


def test_tools_know_them():
    for kind in KINDS:
        model = build(kind)
        assert [layer["mixer"] for layer in measure(model.config)["layers"]] == [f"{kind} 6/2 x 12"] * 3
        assert unsupported_by_vllm(model.config) == ["attention_type"]
        assert not [name for name in model.config.base_model_tp_plan if "self_attn" in name]
        adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **model.lora_targets(["attention"])))
        named = {name.split(".self_attn.")[1].split(".")[0] for name in adapted.state_dict() if "lora_A" in name}
        assert named == {"q_proj", "k_proj", "v_proj", "o_proj"} | ADDED.get(kind, set())


def test_gates_are_cached_beside_keys_and_never_in_eight_bits():
    kinds = forgetting, path, differential = [build(kind).config for kind in ("forgetting", "path", "differential")]
    sizes = [measure(config)["layers"][0]["cache_bytes_per_token"] for config in kinds]
    # Two bytes for keys and values of two heads, and for a gate of each of six, or a reflection of each of two.
    assert sizes == [2 * (2 * 24 + 6), 2 * 2 * 36, 2 * 2 * 24]
    for config, layer_class in (
        (forgetting, GrowingLayer), (path, GrowingLayer), (differential, QuantizedGrowingLayer),
    ):  # fmt: skip
        cache = upgrade_cache(DynamicCache(config=config), config, quantized=True)
        assert {type(layer) for layer in cache.layers} == {layer_class}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"attention_type": "differential", "num_key_value_heads": 3}, "even num_key_value_heads, got 3"),
        ({"attention_type": "forgetting", "use_bidirectional_attention": True}, "use_bidirectional_attention=True can"),
        (
            {"attention_type": "path", "sparse_attention_pattern": "strided", "sparse_attention_stride": 3},
            r"cannot be combined with attention_type='path'",
        ),
        ({"attention_type": "stick_breaking", "attention_sinks": "all"}, "attention_sinks='all' cannot be combined"),
        (
            {"attention_type": "forgetting", "sparse_attention_pattern": "banded", "sparse_attention_stride": 3},
            r"sparse_attention_pattern=\['banded', 'banded', 'banded'\] cannot be combined",
        ),
        ({"attention_type": "stick_breaking", "position_embedding_type": "alibi"}, "'alibi' cannot be combined"),
        ({"attention_type": "forgetting", "num_kv_shared_layers": 1}, "needs attention_type='grouped_query'"),
        ({"attention_type": "differential", "position_embedding_type": "transformer_xl"}, "'grouped_query'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises(StrictDataclassError, match=says):
        ZooConfig(**{**SIZES, **fields})


def test_backends_without_their_weights_are_refused():
    for kind in KINDS[1:]:
        with pytest.raises(ValueError, match=f"flex_attention' cannot compute a model with attention_type='{kind}'"):
            ZooForCausalLM(ZooConfig(**SIZES, attention_type=kind, attn_implementation="flex_attention"))
