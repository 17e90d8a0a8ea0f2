"""What state space families brought along: shared blocks, multipliers, a stream in float32; against slow references."""

import json

import pytest
import torch
from checkpoint_checks import tensors_of
from huggingface_hub.errors import StrictDataclassError
from random_models import build, randomize, their_class_config
from safetensors.torch import load_file, save_file
from transformers.models.mamba2 import Mamba2Config, Mamba2ForCausalLM

from configuration_zoo import ZooConfig
from conversion import convert, export_config, family_of, import_config, load
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM

SIZES = {
    "vocab_size": 101, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 8, "linear_num_value_heads": 4, "linear_key_head_dim": 7, "linear_value_head_dim": 12,
}  # fmt: skip
SHARED = {
    "num_hidden_layers": 5, "linear_attention_type": "mamba2", "num_mem_blocks": 2, "norm_eps": 1e-3,
    "layer_types": ["hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"],
    "block_type": ["shared_block", "mixer_only", "shared_block", "shared_block", "mixer_only"],
}  # fmt: skip
RANKS = {"shared_attention_adapter_rank": 5, "shared_mlp_adapter_rank": 3}


def random_model(dtype=torch.float64, **fields):
    model = ZooForCausalLM(ZooConfig(**SIZES | fields)).eval()
    randomize(model)
    return model.to(dtype)


def assert_close(found, expected):
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


# -- blocks that layers share --------------------------------------------------------------------------------------


def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def slow_attention(attention, adapters, x):
    """Head by head, token by token."""
    query, key, value = (
        getattr(attention, name)(x) + getattr(adapters, name)(x) for name in ("q_proj", "k_proj", "v_proj")
    )
    outputs = []
    for head in range(6):
        own, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 3), 8 * (head // 3) + 8)
        rows = []
        for t in range(x.shape[1]):
            scores = (key[:, : t + 1, shared] @ query[:, t, own, None]).squeeze(-1) * 8**-0.5
            rows.append((scores.softmax(-1).unsqueeze(1) @ value[:, : t + 1, shared]).squeeze(1))
        outputs.append(torch.stack(rows, dim=1))
    return attention.o_proj(torch.cat(outputs, dim=-1))


def slow_block(block, adapters, x, start):
    """mlp(norm(attention(norm([x; x₀]))))."""
    fed = slow_attention(block.self_attn, adapters, rms(torch.cat([x, start], dim=-1), block.attn_norm))
    fed = rms(fed, block.mlp_norm)
    gate, up = (block.mlp.gate_proj(fed), block.mlp.up_proj(fed))
    more_gate, more_up = adapters.gate_up_proj(fed).split(40, dim=-1)
    return block.mlp.down_proj(torch.nn.functional.silu(gate + more_gate) * (up + more_up))


@torch.no_grad()
def test_shared_blocks_take_turns_and_read_the_embeddings():
    model = random_model(**SHARED, **RANKS, position_embedding_type="none")
    tokens = torch.randint(1, 101, (2, 9))
    start = x = model.model.embed_tokens(tokens)
    turns = {0: 0, 2: 1, 3: 0}
    for index, layer in enumerate(model.model.layers):
        given = x
        if index in turns:
            block = model.model.shared_blocks[turns[index]]
            given = x + layer.linear(slow_block(block, layer.adapters, x, start))
        x = x + layer.linear_attn(rms(given, layer.attn_norm))[0]
    # The recurrences compute in float32 what is not float64 by then.
    found, expected = model(tokens).logits, model.lm_head(rms(x, model.model.norm))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_shared_block_is_stored_once_and_learns_from_every_use(tmp_path):
    model = random_model(torch.float32, **SHARED, **RANKS)
    model.save_pretrained(tmp_path)
    names = [name for name in tensors_of(tmp_path) if "shared_blocks" in name]
    assert {name.split(".")[2] for name in names} == {"0", "1"} and len(names) == 2 * 9
    tokens = torch.randint(1, 101, (2, 9))
    model(tokens, labels=tokens).loss.backward()
    weight = model.model.shared_blocks[0].self_attn.q_proj.weight
    both = weight.grad.clone()
    model.zero_grad()
    # Without the second use's share.
    model.model.layers[3].linear.weight.data.zero_()
    model(tokens, labels=tokens).loss.backward()
    assert both.abs().sum() > 0 and not torch.allclose(weight.grad, both)


def test_inspect_names_shared_blocks_and_counts_their_caches():
    config = ZooConfig(**SIZES, **SHARED, **RANKS, dtype="float32")
    rows = measure(config)["layers"]
    own = "mamba2 1/4 x 12, 7 states"
    assert [row["mixer"] for row in rows] == [
        f"shared block 0 6/2 x 8, {own}", own, f"shared block 1 6/2 x 8, {own}", f"shared block 0 6/2 x 8, {own}", own,
    ]  # fmt: skip
    assert [row["cache_bytes_per_token"] for row in rows] == [4 * 2 * 2 * 8 if i in (0, 2, 3) else 0 for i in range(5)]
    assert all(row["state_bytes"] == 4 * (48 * 7 + 4 * (48 + 2 * 7)) for row in rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_mem_blocks": 4}, "num_mem_blocks=4 exceeds the 3 layers"),
        ({"layer_types": ["linear_attention"] * 5}, r"layer_types\[0\] 'hybrid'"),
        ({"gated_mlp": False}, "gated_mlp=True"),
        ({"clip_qkv": 2.0}, "clip_qkv=2.0 only means something with layers of a block_type other than"),
        ({"block_type": "mixer_only"}, "num_mem_blocks=2 only means something with a block_type 'shared_block'"),
        ({"mup_multipliers": {"attention_in": 2.0}}, "attention_in=2.0 only means something with a hybrid layer"),
        ({"per_layer_config": {3: {"num_attention_heads": 4}}}, "num_attention_heads differs between layers"),
    ],
)
def test_what_cannot_be_shared_is_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ZooConfig(**SIZES | SHARED | fields)


# -- multipliers ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("norm", [{}, {"qk_norm": "layer_norm", "qk_norm_config.eps": 0.1}], ids=["plain", "normed"])
def test_a_key_multiplier_is_one_of_the_keys_weights(norm):
    plain = {"num_hidden_layers": 2, "attention_bias": True, **norm}
    plain |= dict.fromkeys([name for name in SIZES if name.startswith("linear")])
    model = random_model(**plain, mup_multipliers={"key": 0.6})
    other = random_model(**plain)
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(1, 101, (2, 9))
    assert not torch.allclose(other(tokens).logits, model(tokens).logits)
    for layer in other.model.layers:
        layer.self_attn.k_proj.weight *= 0.6
        layer.self_attn.k_proj.bias *= 0.6
    assert_close(model(tokens).logits, other(tokens).logits)


@torch.no_grad()
def test_mlp_multipliers_scale_the_gate_and_the_output():
    fields = dict.fromkeys([name for name in SIZES if name.startswith("linear")])
    mlp = (
        random_model(num_hidden_layers=1, mup_multipliers={"mlp": [0.7, 1.9]}, mlp_bias=True, **fields)
        .model.layers[0]
        .mlp
    )
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    gate = mlp.gate_proj(x) * 0.7
    assert_close(mlp(x), mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(x)) * 1.9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mup_multipliers": {"key": 0}}, "mup_multipliers.key=0 would erase"),
        (
            {"mup_multipliers.key": 0.5, "position_embedding_type": "transformer_xl"},
            "mup_multipliers.key=0.5 only means",
        ),
        ({"mup_multipliers": {"mlp": [1.0]}}, "must have 2 entries"),
        (
            {"mup_multipliers.mlp": [1.0, 2.0], "gated_mlp": False},
            "mup_multipliers.mlp=.* only means something with gated_mlp",
        ),
    ],
)
def test_a_multiplier_without_use_is_refused(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ZooConfig(hidden_size=24, num_attention_heads=6, num_hidden_layers=2, **fields)


# -- a stream in float32 -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_stream_in_float32_is_rounded_at_every_norm_only():
    """As one would write it: x in float32, every norm and mixer in bfloat16."""
    fields = {"num_hidden_layers": 4, "linear_attention_type": "mamba2", "layer_types": ["linear_attention"] * 4}
    model = random_model(torch.bfloat16, **fields, block_type="mixer_only", precision={"residual_in_fp32": True})
    plain = random_model(torch.bfloat16, **fields, block_type="mixer_only")
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(1, 101, (2, 9))
    x = model.model.embed_tokens(tokens).float()
    for layer in model.model.layers:
        x = x + layer.linear_attn(layer.attn_norm(x.bfloat16()))[0]
        assert x.dtype == torch.float32
    normed = x / (x.square().mean(-1, keepdim=True) + model.model.norm.eps).sqrt() * model.model.norm.weight
    outputs = model(tokens, output_hidden_states=True)
    assert {states.dtype for states in outputs.hidden_states[1:-1]} == {torch.float32}
    assert torch.allclose(outputs.logits, model.lm_head(normed.bfloat16()), rtol=2**-7, atol=2**-7)
    assert not torch.equal(outputs.logits, plain(tokens).logits)


@torch.no_grad()
def test_in_bfloat16_the_stream_is_nearer_to_transformers_with_it(tmp_path):
    theirs = Mamba2ForCausalLM(Mamba2Config(**family_of("mamba2").tiny[0])).eval()
    randomize(theirs)
    theirs.bfloat16().save_pretrained(tmp_path)
    tokens = torch.randint(1, 101, (2, 13))
    expected = Mamba2ForCausalLM.from_pretrained(tmp_path)(tokens).logits
    ours, raw = load(tmp_path), json.loads((tmp_path / "config.json").read_text())
    plain = ZooForCausalLM(import_config(raw, precision={"residual_in_fp32": False})).bfloat16().eval()
    plain.load_state_dict(ours.state_dict())
    with_it, without = ((model(tokens).logits.float() - expected).abs().mean() for model in (ours, plain))
    assert with_it < without


@pytest.mark.parametrize(
    "fields", [{"block_type": "post_norm"}, {"norm_elementwise_affine": False}, {"hidden_size_per_layer_input": 4}]
)
def test_a_stream_in_float32_needs_norms_that_round(fields):
    with pytest.raises((StrictDataclassError, ValueError), match="precision.residual_in_fp32=True"):
        ZooConfig(
            hidden_size=24, num_attention_heads=6, num_hidden_layers=2, precision={"residual_in_fp32": True}, **fields
        )


# -- files as their makers write them ------------------------------------------------------------------------------


def test_the_first_mamba_files_say_embedding(tmp_path):
    theirs = build(their_class_config("mamba", family_of("mamba"), family_of("mamba").tiny[0]))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load(tmp_path).model.embed_tokens.weight, theirs.backbone.embeddings.weight)


def test_heads_for_further_tokens_of_nemotron_come_back(tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    build(their_class_config("nemotron_h", family_of("nemotron_h"), family_of("nemotron_h").tiny[0])).save_pretrained(
        source
    )
    tensors = load_file(source / "model.safetensors") | {"mtp.layers.0.eh_proj.weight": torch.randn(3, 5)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, zoo, progress=False)
    convert(zoo, back, to="nemotron_h", progress=False)
    assert sorted(tensors_of(back)) == sorted(tensors)


@pytest.mark.parametrize("limit", [[0.0, float("inf")], [0.0, {"__float__": "Infinity"}]], ids=["json", "transformers"])
def test_a_step_that_nothing_bounds_is_read_in_both_spellings(limit):
    raw = {"model_type": "mamba2", "time_step_limit": limit}
    config = import_config(raw)
    assert config.linear_attn_config["time_step_limit"] is None
    assert export_config(config, "mamba2") == raw


def test_falcon_h1_with_a_bias_on_one_projection_is_refused():
    raw = their_class_config("falcon_h1", family_of("falcon_h1"), family_of("falcon_h1").tiny[0]).to_dict()
    with pytest.raises(ValueError, match="projectors_bias=True with mamba_proj_bias=False"):
        import_config(raw | {"projectors_bias": True})
