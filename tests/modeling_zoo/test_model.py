"""What any transformers user expects of a model, through transformers' own calls."""

import copy
import pickle

import pytest
import torch
from random_models import randomize
from samples import only
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from modeling_zoo import (
    ZooConfig,
    ZooForCausalLM,
    ZooForQuestionAnswering,
    ZooForSequenceClassification,
    ZooForTokenClassification,
    ZooModel,
)

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}


def make(model_class=ZooForCausalLM, **flags):
    model = model_class(ZooConfig(**SIZES, **flags))
    randomize(model)
    return model.eval()


@pytest.fixture
def model():
    return make()


@pytest.fixture
def tokens():
    return torch.randint(1, 101, (2, 11))


@torch.no_grad()
def test_logits_to_keep(model, tokens):
    full = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, full[:, -3:])
    torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([1, 4])).logits, full[:, [1, 4]])


@torch.no_grad()
def test_hidden_states_and_attentions(model, tokens):
    model.set_attn_implementation("eager")
    outputs = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 11, 48)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 6, 11, 11)] * 3
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 6, 11))
    torch.testing.assert_close(model.lm_head(outputs.hidden_states[-1]), outputs.logits)


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(tokens):
    for flags in ({}, {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 3}):
        model = make(**flags)
        row = tokens[:1]
        positions = torch.cat((torch.arange(4), torch.arange(7)))[None]
        packed = model(row, position_ids=positions).logits
        torch.testing.assert_close(packed[:, :4], model(row[:, :4]).logits, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(packed[:, 4:], model(row[:, 4:]).logits, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_masks_as_a_dict(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    masks = model.create_masks_for_generate(model.config, model.get_input_embeddings()(tokens), mask, None)
    torch.testing.assert_close(model(tokens, attention_mask=masks).logits, model(tokens, attention_mask=mask).logits)


def test_loss_is_the_next_token_s(model, tokens):
    labels = tokens.clone()
    labels[0, :5] = -100
    outputs = model(tokens, labels=labels)
    log_probabilities = outputs.logits.log_softmax(-1)
    picked = [
        -log_probabilities[row, position, labels[row, position + 1]]
        for row in range(2)
        for position in range(10)
        if labels[row, position + 1] != -100
    ]
    torch.testing.assert_close(outputs.loss, torch.stack(picked).mean())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(tokens, reentrant):
    model = make().train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_resize_token_embeddings(tokens):
    for flags in ({}, {"tie_word_embeddings": True}, {"embedding_multiplier": 3.0}):
        model = make(**flags)
        before = model(tokens).logits
        model.resize_token_embeddings(107)
        after = model(tokens).logits
        assert after.shape[-1] == 107 and model.config.vocab_size == 107
        torch.testing.assert_close(after[..., :101], before)


@torch.no_grad()
@pytest.mark.parametrize("other", only(["sdpa"], ["sdpa", "flex_attention"]))
def test_backends_agree(tokens, other):
    model = make()
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    outputs = []
    for name in ("eager", other):
        model.set_attn_implementation(name)
        outputs.append(model(tokens, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=2e-5, atol=2e-5)


def test_copies_are_independent_and_equal(model, tokens):
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(tokens).logits, model(tokens).logits, rtol=0, atol=0)
        with torch.no_grad():
            other.lm_head.weight.add_(1)
        assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("heads", [ZooForSequenceClassification, ZooForTokenClassification, ZooForQuestionAnswering])
def test_task_heads_train_save_and_load(heads, tokens, tmp_path):
    model = make(heads, pad_token_id=0, num_labels=3)
    outputs = model(tokens)
    first = outputs[0]
    first.float().pow(2).mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "qa_outputs.bias" not in n)
    model.save_pretrained(tmp_path)
    again = heads.from_pretrained(tmp_path)
    torch.testing.assert_close(again(tokens)[0], first, rtol=0, atol=0)


def test_a_body_moves_between_heads(model, tokens, tmp_path):
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, ZooModel)
    torch.testing.assert_close(model.lm_head(body(tokens)[0]), model(tokens).logits, rtol=0, atol=0)
    classifier, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(classifier, ZooForSequenceClassification)
    assert info["missing_keys"] == {"score.weight"}
    torch.testing.assert_close(classifier.model(tokens)[0], body(tokens)[0], rtol=0, atol=0)


def test_missing_and_mismatched_weights_are_reported(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=4, layer_types=None, mlp_layer_types=None)
    _, info = ZooForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert any(name.startswith("model.layers.3.") for name in info["missing_keys"])
    config = AutoConfig.from_pretrained(tmp_path, intermediate_size=81)
    with pytest.raises(RuntimeError, match="(?i)mismatch"):
        ZooForCausalLM.from_pretrained(tmp_path, config=config)
    _, info = ZooForCausalLM.from_pretrained(
        tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert any("mlp.gate_proj.weight" in str(entry) for entry in info["mismatched_keys"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(model, tokens, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert again.model.rotary_emb.tables["default"].inv_freq.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_device_map_with_layers_on_disk(model, tokens, tmp_path):
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_loading_never_touches_a_weight(tokens, tmp_path):
    flags = {
        "norm_type": "layer_norm",
        "norm_unit_offset": True,
        "qk_norm": "layer_norm",
        "qk_norm_config.bias": True,
        "attention_sinks": "all",
        "gated_mlp": False,
        "hidden_act": "xielu",
        "attention_bias": True,
        "mlp_bias": True,
        "pad_token_id": 5,
    }
    model = make(**flags)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


EXPORTED = {
    "plain": {},
    "bfloat16": {},
    "windows": {"layer_types": ["sliding_attention", "chunked_attention", "full_attention"], "sliding_window": 8,
                "attention_chunk_size": 8},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "latent": {"attention_type": "latent", "kv_lora_rank": 16, "q_lora_rank": 20, "qk_nope_head_dim": 12,
               "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 6},
}  # fmt: skip


@pytest.mark.parametrize("name", only(["plain"], EXPORTED))
@torch.no_grad()
def test_an_exported_graph_takes_any_length(name, tokens):
    """No choice of a faster form by sizes, of rows or of queries, may bind the graph."""
    sizes = {key: value for key, value in SIZES.items() if name != "latent" or key != "head_dim"}
    model = ZooForCausalLM(ZooConfig(**sizes | EXPORTED[name])).eval()
    randomize(model)
    model.to(torch.bfloat16 if name == "bfloat16" else torch.float32)
    length = torch.export.Dim("length", min=2, max=2000)
    arguments = {"input_ids": tokens, "use_cache": False}
    shapes = {"input_ids": {1: length}, "use_cache": None}
    graph = torch.export.export(model, (), arguments, dynamic_shapes=shapes, strict=False).module()
    for tokens in (torch.randint(1, 101, (2, 23)), torch.randint(1, 101, (2, 300))):
        torch.testing.assert_close(graph(input_ids=tokens, use_cache=False).logits, model(tokens).logits)


@pytest.mark.long
@torch.no_grad()
def test_an_exported_recurrence_has_the_length_of_its_example(tokens):
    model = make(layer_types=["linear_attention"] * 2 + ["full_attention"], linear_attention_type="gated_delta_net")
    arguments = {"input_ids": tokens, "use_cache": False}
    graph = torch.export.export(model, (), arguments, strict=False).module()
    other = torch.randint_like(tokens, 1, 101)
    torch.testing.assert_close(graph(input_ids=other, use_cache=False).logits, model(other).logits)


def test_backends_that_would_drop_something_are_refused():
    for flags in ({"attn_logit_softcapping": 20.0}, {"attention_sinks": "all"}):
        model = make(**flags)
        assert model.config._attn_implementation == "eager"
        with pytest.raises(ValueError, match="sdpa.*" + next(iter(flags))):
            model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match=next(iter(flags))):
            ZooForCausalLM._from_config(ZooConfig(**SIZES, **flags), attn_implementation="sdpa")


def test_a_foreign_config_is_not_a_zoo():
    with pytest.raises((AttributeError, TypeError, ValueError)):
        ZooForCausalLM(LlamaConfig(**SIZES))


def test_plain_initialisation_has_the_configured_spread():
    model = ZooForCausalLM(ZooConfig(**{**SIZES, "hidden_size": 480, "intermediate_size": 300}, initializer_range=0.05))
    spread = model.model.layers[1].mlp.up_proj.weight.std()
    torch.testing.assert_close(spread, torch.tensor(0.05), rtol=0.02, atol=0)
    assert torch.equal(model.model.norm.weight, torch.ones(480))


@torch.no_grad()
def test_implementations_reach_layers_that_differ(tokens):
    model = make(
        per_layer_config={1: {"num_key_value_heads": 3}, 2: {"moe_intermediate_size": 60}},
        num_experts=5,
        num_experts_per_tok=2,
        mlp_layer_types=["dense", "sparse", "sparse"],
        moe_intermediate_size=24,
    )
    expected = model(tokens).logits
    assert model.model.layers[1].self_attn.k_proj.out_features == 36
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        assert layer.self_attn.config._attn_implementation == "eager"
    assert model.model.layers[2].mlp.experts.config._experts_implementation == "eager"
    torch.testing.assert_close(model(tokens).logits, expected, rtol=2e-5, atol=2e-5)
