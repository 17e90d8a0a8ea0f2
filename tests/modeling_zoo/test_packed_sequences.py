"""Packed rows: what several sequences in one row give is what they give apart, in every layer, eager and compiled.

Apart is the oracle: one call per sequence. And a packed row costs what any row of its length costs.
"""

from functools import partial

import pytest
import torch
from counted_work import counted
from random_mixers import SIZES, VARIANTS, WIDTH, assert_equal, mix, mixer_of
from random_models import randomize
from samples import every, only
from torch._dynamo.testing import CompileCounter
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM
from versions import older_than

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.ops_packing import packed_sequences

# Across the chunks of 32 tokens that recurrences work in, down to fewer tokens than a convolution has taps.
LENGTHS = (70, 5, 1, 130, 3, 47)
SHORT = (7, 1, 2, 12, 3)


def positions_of(*rows):
    """`[B, T]`: each row counts its sequences from 0."""
    return torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in rows])


def gradients_of(outputs, weights, leaves):
    return torch.autograd.grad((outputs * weights).sum(), leaves)


# -- mixers ----------------------------------------------------------------------------------------------------------


def leaves_of(mixer, x):
    return [x, *mixer.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients(variant):
    """Of two rows that are packed differently: outputs, and gradients of the input and of every parameter."""
    mixer, rows = mixer_of(variant), (LENGTHS, (130, 126))
    x = torch.randn(2, sum(LENGTHS), WIDTH, requires_grad=True)
    weights = torch.randn_like(x)
    packed = mix(mixer, x, position_ids=positions_of(*rows))
    apart = torch.stack(
        [
            torch.cat(
                [mix(mixer, part, position_ids=positions_of([part.shape[1]])) for part in row[None].split(cuts, 1)], 1
            )[0]
            for row, cuts in zip(x, rows, strict=True)
        ]
    )
    assert_equal(packed, apart)
    for found, expected in zip(
        *(gradients_of(side, weights, leaves_of(mixer, x)) for side in (packed, apart)), strict=True
    ):
        assert_equal(found, expected)


@pytest.mark.parametrize("variant", only(["gated_delta_net", "mamba", "rg_lru"], VARIANTS))
def test_compiled_into_one_graph(variant):
    """The same where nothing can look at a value: mask and mixer, forward and backward."""
    torch._dynamo.reset()
    mixer, backend = mixer_of(variant), CompileCounter()
    x = torch.randn(1, sum(SHORT), WIDTH, requires_grad=True)
    weights, positions = torch.randn_like(x), positions_of(SHORT)
    compiled = torch.compile(
        lambda x, positions: mix(mixer, x, position_ids=positions), backend=backend, fullgraph=True
    )
    sides = (compiled(x, positions), mix(mixer, x, position_ids=positions))
    assert_equal(*sides)
    for found, expected in zip(*(gradients_of(side, weights, leaves_of(mixer, x)) for side in sides), strict=True):
        assert_equal(found, expected)
    # Other sequences, or a single one, take the same graph.
    for other in ((20, 5), [sum(SHORT)]):
        positions = positions_of(other)
        assert_equal(compiled(x, positions), mix(mixer, x, position_ids=positions))
    assert backend.frame_count == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_row_costs_what_a_row_costs(variant):
    """Numbers written in a training step: many short sequences beside a long one are no more than one alone."""
    mixer, rows = mixer_of(variant), ([256], [128] + [4] * 32)
    x = torch.randn(1, 256, WIDTH, requires_grad=True)

    def step(lengths):
        mix(mixer, x, position_ids=positions_of(lengths)).sum().backward()

    one, many = (counted(partial(step, lengths)) for lengths in rows)
    assert many < 1.3 * one


def test_without_values_nothing_is_looked_at():
    """On a device that would have to be waited for, every start is acted on; where values are at hand, only what is."""
    positions = positions_of((3, 4))
    assert packed_sequences(torch.arange(7)[None], 2) is None
    assert packed_sequences(positions.to("meta"), 2).starts.shape == (2, 7)
    packed = packed_sequences(positions, 1)
    assert packed.starts[0].nonzero().flatten().tolist() == [0, 3]
    assert packed.places.tolist() == positions.tolist()


# -- models ----------------------------------------------------------------------------------------------------------

F, S, C, L = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
HEADS = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
LATENT = {"attention_type": "latent", "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
INDEXED = {"index_topk": 4, "index_n_heads": 2, "index_head_dim": 8, "q_lora_rank": 12}
MODELS = {
    "delta": SIZES | {"layer_types": [L, F, L], "linear_attention_type": "gated_delta_net"},
    "beside": SIZES
    | {"layer_types": ["hybrid", "hybrid_sliding", L], "linear_attention_type": "mamba2", "sliding_window": 4},
    "units": {
        "layer_types": [L, "conv", S],
        "linear_attention_type": ["rg_lru", "short_conv", None],
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 5,
        "sliding_window": 4,
    },
    "latent": SIZES | LATENT | {"layer_types": [L, F, F], "linear_attention_type": "kimi_delta_attention"},
    "indexed": LATENT | INDEXED | {"layer_types": ["indexed_attention", F, "indexed_attention"]},
    "sliding": {"layer_types": [S, F, S], "sliding_window": 4},
    "chunked": {"layer_types": [C, F, C], "attention_chunk_size": 5},
    "both ways": {"use_bidirectional_attention": True},
    "patterns": {"sparse_attention_pattern": ["strided", "fixed", "banded"], "sparse_attention_stride": 3},
    "patterns both ways": {
        "sparse_attention_pattern": ["strided", "fixed", "banded"],
        "sparse_attention_stride": 3,
        "use_bidirectional_attention": True,
    },
}


def model_of(name, **more):
    torch.manual_seed(0)
    config = ZooConfig(vocab_size=29, hidden_size=24, intermediate_size=28, **HEADS, **MODELS[name], **more)
    model = ZooForCausalLM(config).train()
    randomize(model)
    # Gradients of a random stack magnify roundings: so much is left of them that a leak is told from one.
    return model.double()


def documents(lengths=SHORT):
    ids = torch.randint(1, 29, (1, sum(lengths)))
    return [{"input_ids": part.tolist()} for part in ids[0].split(lengths)]


def packed_batch(told, parts):
    """The batch that transformers' collator makes of them, as far as `told` says of what it tells."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True, return_tensors="pt")
    batch = collator(parts)
    return {name: batch[name] for name in ("input_ids", "labels", *told)}


def gradients_of_loss(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def apart(model, parts):
    """Logits, loss and gradients of one call per document."""
    logits, losses = [], []
    for part in parts:
        ids = torch.tensor([part["input_ids"]])
        logits.append(model(ids, use_cache=False).logits)
        losses.append(torch.nn.functional.cross_entropy(logits[-1][0, :-1], ids[0, 1:], reduction="sum"))
    return torch.cat(logits, 1), sum(losses) / sum(len(part["input_ids"]) - 1 for part in parts)


def assert_the_same(model, found, parts):
    logits, loss = apart(model, parts)
    assert_equal(found.logits, logits)
    given, expected = gradients_of_loss(model, found.loss), gradients_of_loss(model, loss)
    assert given.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (given[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


TOLD = (["position_ids"], ["cu_seq_lens_q", "cu_seq_lens_k"], ["seq_idx"], ["position_ids", "cu_seq_lens_q", "seq_idx"])


def skip_old_chunks(name):
    if C in MODELS[name].get("layer_types", ()) and older_than("5.20"):
        pytest.skip("transformers' masks count chunks from the start of the row, not of the document")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("told", TOLD, ids="+".join)
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_agrees_on_what_a_document_is(name, told):
    """Whatever the collator tells of it, a step of training is that of the documents apart."""
    skip_old_chunks(name)
    model, parts = model_of(name), documents()
    assert_the_same(model, model(**packed_batch(told, parts)), parts)


@pytest.mark.parametrize("told", every(2, TOLD), ids="+".join)
@pytest.mark.parametrize("name", only(["delta", "beside"], MODELS))
def test_compiled_training(name, told):
    skip_old_chunks(name)
    torch._dynamo.reset()
    model, parts = model_of(name), documents()
    step = torch.compile(model, backend="eager", fullgraph=True)
    assert_the_same(model, step(**packed_batch(told, parts), use_cache=False), parts)


@pytest.mark.parametrize("name", only(["delta", "beside"], MODELS))
def test_checkpointing_and_autocast(name):
    skip_old_chunks(name)
    model, parts = model_of(name), documents()
    batch = packed_batch(["position_ids"], parts)
    plain = gradients_of_loss(model, model(**batch).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = model(**batch).logits.float()
        alone = torch.cat([model(torch.tensor([part["input_ids"]])).logits.float() for part in parts], 1)
    assert (packed - alone).norm() < 0.02 * alone.norm()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients_of_loss(model, model(**batch).loss).items():
        torch.testing.assert_close(gradient, plain[name])


# -- positions that jump under a mask --------------------------------------------------------------------------------


def jumping():
    """Tokens, positions with a gap and a restart, a mask with and without padding on the left."""
    ids = torch.randint(1, 29, (2, 14))
    positions = torch.tensor([0, 1, 2, 3, 9, 10, 11, 12, 0, 1, 2, 3, 4, 5]).expand(2, -1)
    padded = torch.ones(2, 14, dtype=torch.long)
    padded[0, :3] = 0
    return ids, positions, {"ones": torch.ones_like(padded), "padded": padded}


@torch.no_grad()
def test_transformers_own_rule_for_jumping_positions():
    """Where a mask or a cache is given, a row is one sequence, whatever its positions say."""
    config = LlamaConfig(vocab_size=29, hidden_size=24, intermediate_size=28, attn_implementation="eager", **HEADS)
    llama, (ids, positions, masks) = LlamaForCausalLM(config).eval(), jumping()

    def first_seen(**given):
        return llama(ids, position_ids=positions, output_attentions=True, **given).attentions[0][1, 0, -1] > 0

    assert first_seen(attention_mask=masks["ones"]).all() and first_seen(attention_mask=masks["padded"]).all()
    assert first_seen(use_cache=False).nonzero().flatten().tolist() == list(range(8, 14))


@torch.no_grad()
@pytest.mark.parametrize("mask", ["ones", "padded"])
@pytest.mark.parametrize("name", [name for name in MODELS if "both ways" not in name])
def test_positions_that_jump_under_a_mask_start_nothing(name, mask):
    """All at once is four tokens and then one by one: a row with a mask is one sequence for every layer."""
    model, (ids, positions, masks) = model_of(name).eval(), jumping()
    mask = masks[mask]
    whole = model(ids, attention_mask=mask, position_ids=positions).logits
    cache, steps = None, []
    for start, stop in [(0, 4), *((index, index + 1) for index in range(4, ids.shape[1]))]:
        seen = {"attention_mask": mask[:, :stop], "past_key_values": cache, "use_cache": True}
        outputs = model(ids[:, start:stop], position_ids=positions[:, start:stop], **seen)
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    steps = torch.cat(steps, 1)
    for row in range(2):
        assert_equal(steps[row][mask[row].bool()], whole[row][mask[row].bool()])


@pytest.mark.parametrize("told", ["cu_seq_lens_q", "seq_idx"])
def test_packing_beside_a_mask_or_a_cache_is_refused(told):
    model = model_of("delta").eval()
    batch = packed_batch([told], documents())
    del batch["labels"]
    with torch.no_grad(), pytest.raises(ValueError, match=r"cu_seq_lens_q, seq_idx.*without past_key_values and att"):
        model(**batch, attention_mask=torch.ones_like(batch["input_ids"]))
    with torch.no_grad(), pytest.raises(ValueError, match="cannot continue a cache"):
        model(**batch, past_key_values=model(batch["input_ids"], use_cache=True).past_key_values)
