"""Layers that predict further tokens: their loss, and drafts by them that change no token."""

import pytest
import torch
from combinations import CHUNKED, EXPERTS, FULL, HEADS, HYBRID, INDEXED, INDEXER, LATENT, LINEAR, SIZES, SLIDING, linear
from random_models import randomize
from references_multi_token import further_loss, predictions
from samples import only
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.generation import CandidateGenerator
from versions import older_than

from modeling_zoo import ZooConfig, ZooForCausalLM, ZooForSequenceClassification

ENDS = [{}, {"projection": "one_for_all", "hidden_states_first": True, "loss_coef": 0.1}]


def build(depth, **fields):
    torch.manual_seed(1)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, "num_mtp_layers": depth, **fields}))
    randomize(model)
    model.generation_config.eos_token_id = None
    return model.double().eval()


def tokens_of(rows=2, length=9):
    return torch.randint(1, 101, (rows, length), generator=torch.Generator().manual_seed(2))


def main_loss(model, tokens, labels, **kwargs):
    """The loss without that of the prediction layers, which training alone adds."""
    model.eval()
    return model(tokens, labels=labels, **kwargs).loss


def own_loss(model, tokens, labels, **kwargs):
    """What the prediction layers add to it."""
    with torch.no_grad():
        base = main_loss(model, tokens, labels, **kwargs)
    return model.train()(tokens, labels=labels, **kwargs).loss - base


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtp", ENDS)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}])
def test_loss_and_gradients_are_those_of_the_paper(depth, mtp, fields):
    model, tokens = build(depth, mtp=mtp, **fields), tokens_of()
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.3, -100)
    weights = dict(model.named_parameters())

    def gradients(loss):
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}

    found = model.train()(tokens, labels=labels).loss
    model.eval()
    h = model.model(tokens).last_hidden_state
    expected = model(tokens, labels=labels).loss + further_loss(weights, model.config, tokens, labels, h)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)
    expected = gradients(expected)
    assert expected.keys() == weights.keys()
    torch.testing.assert_close(gradients(found), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_no_token(side):
    model, tokens = build(2), tokens_of()
    hidden = torch.arange(9) < 3 if side == "left" else torch.arange(9) >= 6
    mask = torch.stack([~hidden, torch.ones(9, dtype=torch.bool)]).long()
    labels = tokens.masked_fill(mask == 0, -100)
    with torch.no_grad():
        h = model.model(tokens, attention_mask=mask).last_hidden_state
        expected = further_loss(dict(model.named_parameters()), model.config, tokens, labels, h, mask)
        found = own_loss(model, tokens, labels, attention_mask=mask)
        torch.testing.assert_close(found, expected.float(), rtol=2e-6, atol=0)


def test_packed_sequences_are_what_they_are_apart():
    """By positions and by lengths, whatever their number; no token is predicted from another sequence."""
    model = build(3)
    parts = [tokens_of(1, length) for length in (5, 2, 1, 7)]
    packed, positions = torch.cat(parts, 1), torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    labels = packed.masked_fill(positions == 0, -100)
    lengths = torch.tensor([0, 5, 7, 8, 15], dtype=torch.int32)
    number = (labels != -100).sum()
    with torch.no_grad():
        # A number for all of them, as Trainer counts it.
        expected = sum(own_loss(model, part, part, num_items_in_batch=number) for part in parts if part.shape[1] > 1)
        for kwargs in ({"position_ids": positions}, {"cu_seq_lens_q": lengths}):
            found = own_loss(model, packed, labels, use_cache=False, **kwargs)
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("fields", [{"loss_chunk_size": 3}, {"output_z_loss_coef": 0.1}])
def test_options_of_the_loss_are_options_of_this_one(fields):
    model, tokens = build(2), tokens_of()
    plain = own_loss(model, tokens, tokens)
    for name, value in fields.items():
        setattr(model.config, name, value)
    found = model.train()(tokens, labels=tokens).loss
    if "loss_chunk_size" in fields:
        torch.testing.assert_close(found - main_loss(model, tokens, tokens), plain, rtol=1e-6, atol=0)
        return
    h = model.eval().model(tokens).last_hidden_state
    states = [h, *predictions(dict(model.named_parameters()), model.config, tokens, h)]
    squares = [model.lm_head(one[:, :-1]).logsumexp(-1).square().sum() / (2 * 8) for one in states]
    z_loss = 0.1 * (squares[0] + 0.3 * (squares[1] + squares[2]) / 2)
    torch.testing.assert_close(found, (main_loss(model, tokens, tokens) + plain + z_loss).float(), rtol=1e-6, atol=0)


def test_checkpointing_changes_no_gradient():
    model, tokens = build(2, **EXPERTS), tokens_of()
    found = []
    for use_reentrant in (None, False, True):
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model.train()(tokens, labels=tokens).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0])


def test_the_loss_is_of_training_and_can_be_left_out():
    model, tokens = build(1, mtp={"loss_coef": 0.0}), tokens_of()
    with torch.no_grad():
        assert own_loss(model, tokens, tokens) == 0
    model = build(8)
    # The last layers have no position left.
    assert own_loss(model, tokens_of(2, 3), tokens_of(2, 3)) > 0


def test_a_part_of_a_sequence_is_refused_in_training():
    model, tokens = build(1), tokens_of()
    cache = model(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="num_mtp_layers: .* whole sequences"):
        model.train()(tokens, labels=tokens, past_key_values=cache)
    assert model.eval()(tokens, labels=tokens, past_key_values=cache).loss > 0


# -- drafts --------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.filterwarnings("ignore")
needs_drafts = pytest.mark.skipif(
    not hasattr(CandidateGenerator, "requires_model_outputs"), reason="this transformers drafts without hidden states"
)
MIXERS = {
    "full": {},
    "sliding": {"layer_types": [SLIDING] * 3, "sliding_window": 4},
    "full, drafts by a window": {"layer_types": [SLIDING, FULL, FULL], "sliding_window": 4, "mtp.layer_type": SLIDING},
    "chunked": {"layer_types": [FULL, SLIDING, CHUNKED], "sliding_window": 5, "attention_chunk_size": 4},
    "latent": LATENT,
    "indexed": {**LATENT, **INDEXER, "layer_types": [INDEXED] * 3},
    "shared keys": {"num_kv_shared_layers": 1},
    "learned positions": {"position_embedding_type": "learned", "max_position_embeddings": 27},
    "recurrent": linear("gated_delta_net", [LINEAR] * 3, **HEADS),
    "recurrent and attention": linear("gated_delta_net", [LINEAR, LINEAR, FULL], **HEADS),
    "attention and recurrent": linear("mamba2", [FULL, FULL, LINEAR], **{**HEADS, "linear_num_value_heads": 8}),
    "beside each other": linear("gated_delta_net", [HYBRID] * 3, **HEADS),
    "convolution": linear("short_conv", ["conv", FULL, "conv"]),
    "experts": {**EXPERTS, "n_shared_experts": 1},
    "layers that differ": {"per_layer_config": {2: {"num_key_value_heads": 3, "intermediate_size": 30}}},
}
GREEDY = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@needs_drafts
@pytest.mark.sampled(4)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", MIXERS)
def test_drafts_change_no_token(name, depth):
    model = build(depth, **MIXERS[name])
    for length in (1, 2, 7):
        prompt = tokens_of(1, length)
        expected = model.generate(prompt, **GREEDY)
        assert torch.equal(model.generate(prompt, use_mtp=True, **GREEDY), expected)
    assert torch.equal(model.generate(prompt, use_mtp=True, **GREEDY, repetition_penalty=1.3, no_repeat_ngram_size=2),
                       model.generate(prompt, **GREEDY, repetition_penalty=1.3, no_repeat_ngram_size=2))  # fmt: skip


def noted(model, monkeypatch):
    """Every round of `generate`: (tokens before, drafts)."""
    import modeling_zoo.platform_drafts as drafts

    rounds, made = [], drafts.MultiTokenDrafts.get_candidates

    def get_candidates(self, input_ids, **kwargs):
        candidates, logits = made(self, input_ids, **kwargs)
        rounds.append((input_ids, candidates[:, input_ids.shape[1] :]))
        return candidates, logits

    monkeypatch.setattr(drafts.MultiTokenDrafts, "get_candidates", get_candidates)
    return rounds


@needs_drafts
@torch.no_grad()
@pytest.mark.parametrize("mtp", ENDS)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_each_draft_is_the_choice_of_its_layer(depth, mtp, monkeypatch):
    """On all tokens that are known then and the drafts before it, computed from the first token again."""
    model = build(depth, mtp=mtp)
    weights, rounds = dict(model.named_parameters()), noted(model, monkeypatch)
    model.generate(tokens_of(1, 6), use_mtp=True, **GREEDY)
    assert len(rounds) > 4
    assert [found.shape[1] for _, found in rounds[1:4]] == [depth] * 3
    for known, found in rounds[1:]:
        h = model.model(known[:, :-1]).last_hidden_state
        sequence = known
        for k in range(1, found.shape[1] + 1):
            # Position i of layer k reads token i + k; the last position is that of the last known hidden state.
            states = predictions(weights, model.config, sequence, torch.cat([h, h.new_zeros(1, k, h.shape[2])], 1))
            assert states[k - 1].shape[1] == h.shape[1]
            token = model.lm_head(states[k - 1][:, -1]).argmax(-1, keepdim=True)
            assert torch.equal(token, found[:, k - 1 : k])
            sequence = torch.cat([sequence, token], 1)


@torch.no_grad()
def foreseeing(depth):
    """A model that knows the next token by the last one alone, and prediction layers that do as it does."""
    model = build(depth)
    width = model.config.hidden_size
    for layer in [*model.model.layers, *model.mtp.layers]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for end in model.mtp.projections:
        end.eh_proj.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], 1))
        end.embedding_norm.weight.fill_(1.0)
    for norm in model.mtp.norm:
        norm.weight.copy_(model.model.norm.weight)
    return model


@needs_drafts
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_drafts_that_are_right_are_all_taken(depth, monkeypatch):
    model = foreseeing(depth)
    rounds = noted(model, monkeypatch)
    expected = model.generate(tokens_of(1, 5), **GREEDY)
    assert torch.equal(model.generate(tokens_of(1, 5), use_mtp=True, **GREEDY), expected)
    # The prompt gives one token, every further round of the model one more than there are layers.
    assert len(rounds) == 1 + -(-19 // (depth + 1))


@needs_drafts
def test_an_end_among_the_drafts_ends_the_text():
    model = foreseeing(3)
    plain = model.generate(tokens_of(1, 5), **GREEDY)
    end = plain[0, 5 + 6].item()
    expected = model.generate(tokens_of(1, 5), **GREEDY, eos_token_id=end)
    assert expected.shape[1] < plain.shape[1]
    assert torch.equal(model.generate(tokens_of(1, 5), use_mtp=True, **GREEDY, eos_token_id=end), expected)


@needs_drafts
def test_padding_before_the_prompt():
    model = build(2)
    prompt, mask = tokens_of(1, 9), (torch.arange(9) >= 4).long()[None]
    expected = model.generate(prompt, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(prompt, attention_mask=mask, use_mtp=True, **GREEDY), expected)


@needs_drafts
def test_drafts_over_a_cache_of_eight_bits():
    model = build(2).float()
    ways = {"cache_implementation": "quantized", "cache_config": {"backend": "int8"}}
    expected = model.generate(tokens_of(1, 6), **GREEDY, **ways)
    assert torch.equal(model.generate(tokens_of(1, 6), use_mtp=True, **GREEDY, **ways), expected)


@needs_drafts
def test_a_distribution_with_one_token_is_followed():
    model = build(2)
    greedy = model.generate(tokens_of(1, 6), **GREEDY)
    sampled = {**GREEDY, "do_sample": True, "top_k": 1}
    assert torch.equal(model.generate(tokens_of(1, 6), use_mtp=True, **sampled), greedy)
    torch.manual_seed(4)
    assert model.generate(tokens_of(1, 6), use_mtp=True, **GREEDY | {"do_sample": True}).shape[1] == 26


@needs_drafts
@torch.no_grad()
def test_sampling_follows_the_model_s_distribution():
    """Counts of the second new token over many draws: drafts are taken or drawn again as speculative sampling says."""
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, "vocab_size": 5, "num_hidden_layers": 1, "num_mtp_layers": 1})).eval()
    randomize(model)
    model.generation_config.eos_token_id = None
    prompt, draws = torch.tensor([[1, 2]]), 400
    first = model(prompt).logits[0, -1].softmax(-1)
    expected = sum(first[token] * model(torch.tensor([[1, 2, token]])).logits[0, -1].softmax(-1) for token in range(5))
    counts = torch.zeros(5)
    for seed in range(draws):
        torch.manual_seed(seed)
        found = model.generate(prompt, use_mtp=True, max_new_tokens=3, do_sample=True, top_k=0, pad_token_id=0)
        counts[found[0, 3]] += 1
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() < 4 * spread + 1e-3).all()


@needs_drafts
def test_what_cannot_draft_is_refused_by_name():
    with pytest.raises(ValueError, match="use_mtp=True .* num_mtp_layers=0"):
        build(0).generate(tokens_of(1), use_mtp=True, **GREEDY)
    model = build(1)
    cache = DynamicCache(config=model.config)
    model(tokens_of(1), past_key_values=cache)
    with pytest.raises(ValueError, match="use_mtp=True .* past_key_values has 9 tokens"):
        model.generate(tokens_of(1, 12), use_mtp=True, past_key_values=cache, **GREEDY)
    cache = StaticCache(config=model.config, max_cache_len=40)
    for inputs, ways in ((tokens_of(2), {}), (tokens_of(1), {"past_key_values": cache})):
        with pytest.raises(ValueError, match="assisted generate"):
            model.generate(inputs, use_mtp=True, **ways, **GREEDY)


def test_an_older_transformers_is_named():
    if hasattr(CandidateGenerator, "requires_model_outputs"):
        pytest.skip("this transformers hands hidden states to drafts")
    assert older_than("5.23")
    with pytest.raises(ValueError):
        build(1).generate(tokens_of(1), use_mtp=True, **GREEDY)


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_gives_back_every_bit_and_its_parts(tmp_path, caplog):
    model = build(2, mtp=ENDS[1]).float()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    # Without prediction layers, and by classes that have none.
    without = [
        AutoModelForCausalLM.from_pretrained(tmp_path, num_mtp_layers=0, mtp=None),
        AutoModel.from_pretrained(tmp_path),
        ZooForSequenceClassification.from_pretrained(tmp_path),
    ]
    for one in without:
        assert not any("mtp" in name for name in one.state_dict())
    assert "mtp." not in caplog.text


@needs_drafts
@pytest.mark.parametrize("name", only(["full"], ["full", "latent", "recurrent and attention"]))
def test_the_code_of_a_folder_drafts(name, tmp_path):
    model = build(2, **MIXERS[name]).float()
    model.save_pretrained(tmp_path)
    own = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, code_revision=None)
    prompt = tokens_of(1, 6)
    expected = model.generate(prompt, **GREEDY)
    assert torch.equal(own.generate(prompt, use_mtp=True, **GREEDY), expected)


def test_a_folder_without_them_has_no_code_for_them(tmp_path):
    build(0).save_pretrained(tmp_path / "without")
    build(1).save_pretrained(tmp_path / "with")
    without, there = ((tmp_path / name / "modeling_zoo.py").read_text() for name in ("without", "with"))
    for word in ("class MultiTokenPrediction", "class MultiTokenDrafts", "class MultiTokenLoss"):
        assert word in there and word not in without


@needs_drafts
def test_layers_added_to_a_trained_model_learn_alone(tmp_path):
    """They change nothing before, and what they learn leaves the model as it was."""
    before = build(0).float()
    before.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, num_mtp_layers=1, mtp={"loss_coef": 1.0})
    with torch.no_grad():
        expected = before(tokens_of()).logits
        assert torch.equal(model(tokens_of()).logits, expected)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("mtp.")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        losses.append(model.train()(tokens_of(), labels=tokens_of()).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1
    model.eval()
    assert torch.equal(model(tokens_of()).logits, expected)
    assert torch.equal(
        model.generate(tokens_of(1, 6), use_mtp=True, **GREEDY), before.generate(tokens_of(1, 6), **GREEDY)
    )


def test_devices_share_their_matrices():
    model = build(1, **LATENT)
    plan = {rule: how for rule, how in model._tp_plan.items() if rule.startswith("mtp.")}
    of_layers = {rule: how for rule, how in model._tp_plan.items() if rule.startswith("model.layers.")}
    assert plan == {rule.replace("model.", "mtp."): how for rule, how in of_layers.items()} and plan


def test_new_weights_are_those_of_a_layer_behind_the_last():
    config = ZooConfig(**SIZES, num_mtp_layers=1, initializer={"residual_type": "zero"})
    model = ZooForCausalLM(config)
    assert model.mtp.layers[0].self_attn.o_proj.weight.abs().max() == 0
    assert model.mtp.projections[0].eh_proj.weight.std() > 0.01
    for name in ("block_type", "num_hidden_layers", "hidden_size_per_layer_input"):
        fields = {"block_type": "shortcut", "num_hidden_layers": 1, "hidden_size_per_layer_input": 7}
        if name != "num_hidden_layers":
            with pytest.raises(Exception, match=f"num_mtp_layers=1 cannot be combined with {name}"):
                ZooConfig(**{**SIZES, "num_mtp_layers": 1, name: fields[name]})
