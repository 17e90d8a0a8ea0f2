"""What weights are before training: the spread of each matrix against the formula of its paper."""

import math

import pytest
import torch
from combinations import ROWS
from combinations import SIZES as NET_SIZES

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooModel

D, INNER, LAYERS = 160, 224, 3
SIZES = {
    "vocab_size": 500,
    "hidden_size": D,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "head_dim": 48,
    "initializer_range": 0.03,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "moe_latent_size": 80,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
ATTENTION, MLP = 4 * 48, INNER
# Ends of the names of the matrices that write to the stream.
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "experts.down_proj", "fc2_latent_proj.weight")


def matrices(**flags):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **flags}))
    return {name: value for name, value in model.named_parameters() if value.ndim >= 2}


def assert_spread(matrix, expected, name=""):
    if expected == 0:
        assert matrix.abs().max() == 0, name
    else:
        torch.testing.assert_close(matrix.std().item(), expected, rtol=0.03, atol=0, msg=f"{name} {matrix.std()}")


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("normal", lambda inputs: 0.03),
        ("small", lambda inputs: math.sqrt(2 / (5 * D))),
        ("fan_in", lambda inputs: 1 / math.sqrt(inputs)),
    ],
)
def test_the_spread_of_every_matrix(kind, formula):
    found = matrices(initializer={"type": kind}, **EXPERTS)
    assert {name.split(".")[-1] for name in found} >= {"gate_up_proj", "weight"}
    for name, matrix in found.items():
        expected = 0.03 if "embed_tokens" in name else formula(matrix.shape[-1])
        # A router has few numbers.
        if matrix.numel() > 5000:
            assert_spread(matrix, expected, name)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("depth", lambda std, layer: std / math.sqrt(2 * LAYERS)),
        ("layer", lambda std, layer: std / math.sqrt(2 * (layer + 1))),
        ("wang", lambda std, layer: 2 / LAYERS / math.sqrt(D)),
        ("zero", lambda std, layer: 0.0),
    ],
)
@pytest.mark.parametrize("base", ["normal", "fan_in"])
def test_the_spread_of_what_writes_to_the_stream(kind, formula, base):
    found = matrices(initializer={"type": base, "residual_type": kind}, **EXPERTS)
    writers = [name for name in found if name.endswith(WRITERS)]
    assert len(writers) == LAYERS + 1 + 2 * 2
    for name, matrix in found.items():
        if matrix.numel() <= 5000 or "embed_tokens" in name:
            continue
        std = 0.03 if base == "normal" else 1 / math.sqrt(matrix.shape[-1])
        assert_spread(matrix, formula(std, int(name.split(".")[2])) if name in writers else std, name)


def test_the_depth_counts_what_the_blocks_have():
    """Layers of one sub-layer write once."""
    found = matrices(block_type=["mixer_only", "mlp_only", "pre_norm"], initializer={"residual_type": "depth"})
    assert_spread(found["model.layers.0.self_attn.o_proj.weight"], 0.03 / math.sqrt(4))
    assert_spread(found["model.layers.2.mlp.down_proj.weight"], 0.03 / math.sqrt(4))


def test_the_token_table_has_a_spread_of_its_own():
    flags = {"initializer": {"embedding_range": 1.0, "type": "fan_in"}, "pad_token_id": 3}
    found = matrices(position_embedding_type="learned", max_position_embeddings=64, **flags)
    table = found["model.embed_tokens.weight"]
    assert table[3].abs().max() == 0
    assert_spread(torch.cat((table[:3], table[4:])), 1.0)
    assert_spread(found["model.embed_positions.weight"], 0.03)


def test_a_cutoff_bounds_every_matrix():
    found = matrices(initializer={"cutoff": 2.0}, **EXPERTS)
    for name, matrix in found.items():
        assert 0.03 < matrix.abs().max() <= 0.06, name
    # What is left of a normal distribution within two spreads is narrower.
    assert_spread(found["model.layers.0.mlp.up_proj.weight"], 0.03 * 0.8796)


def test_recurrent_mixers_keep_the_start_of_their_papers():
    flags = {
        **{
            "layer_types": ["linear_attention"] * LAYERS,
            "linear_attention_type": "mamba",
            "linear_attn_config": {"time_step_rank": 5},
        },
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 10},
        "linear_value_head_dim": 12,
    }
    plain = ZooModel(ZooConfig(**SIZES, **flags)).layers[1].linear_attn
    other = ZooModel(ZooConfig(**SIZES, **flags, initializer={"type": "fan_in", "residual_type": "zero"}))
    other = other.layers[1].linear_attn
    torch.testing.assert_close(other.A_log, plain.A_log)
    assert other.dt_proj.weight.abs().max() <= 5**-0.5
    assert other.o_proj.weight.abs().max() == 0 and plain.o_proj.weight.abs().max() > 0


def test_loading_draws_nothing_again(tmp_path):
    flags = {"initializer": {"type": "small", "residual_type": "zero", "embedding_range": 1.0}}
    sizes = {name: value for name, value in SIZES.items() if name != "initializer_range"}
    model = ZooForCausalLM(ZooConfig(**sizes, **flags))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(1, 2)
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


@pytest.mark.parametrize("field", ["initializer.type", "initializer.residual_type"])
def test_an_unknown_name_is_refused(field):
    with pytest.raises(Exception, match=f"{field}='xavier' is not one of"):
        ZooConfig(**SIZES, **{field: "xavier"})


# -- initializer.type="auto" -----------------------------------------------------------------------------------------


ROWS_OF_NETS = [(group, row) for group in ROWS if group != "stray" for row in ROWS[group]]
ROWS_OF_NETS = [(group, row) for group, row in ROWS_OF_NETS if not any(name.startswith("init") for name in row)]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("row", range(len(ROWS_OF_NETS)))
def test_auto_starts_at_the_logarithm_of_the_vocabulary_whatever_the_flags(row):
    """The first loss and the first gradient norm of every flag set, without labels that a row suppresses."""
    torch.manual_seed(row)
    flags = {**NET_SIZES, **ROWS_OF_NETS[row][1]}
    model = ZooForCausalLM(ZooConfig(**flags, initializer={"type": "auto"}))
    tokens = torch.randint(6, flags["vocab_size"], (4, 32))
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) < 10
    loss = model.eval()(input_ids=tokens, labels=tokens).loss.item()
    assert abs(loss - math.log(flags["vocab_size"])) < 0.1


def test_auto_is_a_start_for_each_place():
    model = ZooForCausalLM(ZooConfig(**SIZES, initializer={"type": "auto"}))
    assert_spread(model.model.embed_tokens.weight, 0.1)
    assert_spread(model.lm_head.weight, 1 / D)
    assert_spread(model.model.layers[1].self_attn.q_proj.weight, D**-0.5)
    assert_spread(model.model.layers[1].mlp.down_proj.weight, 0.1 * INNER**-0.5 / math.sqrt(2 * LAYERS))
    tied = ZooForCausalLM(ZooConfig(**SIZES, initializer={"type": "auto"}, tie_word_embeddings=True))
    assert_spread(tied.lm_head.weight, 0.1)
    assert tied.model.norm.weight.max().item() == pytest.approx(1.5 / (0.1 * D))
    scaled = ZooForCausalLM(
        ZooConfig(**SIZES, initializer={"type": "auto"}, embedding_multiplier=6.3, logits_scaling=3.0)
    )
    assert_spread(scaled.model.embed_tokens.weight, 0.1 / 6.3)
    assert_spread(scaled.lm_head.weight, 3 / D)
    for tie, spread in ((False, 1 / D), (True, 0.1 / 6.3)):
        negative = {"embedding_multiplier": -6.3, "tie_word_embeddings": tie}
        model = ZooForCausalLM(ZooConfig(**SIZES, initializer={"type": "auto"}, **negative))
        assert_spread(model.lm_head.weight, spread)
        assert model.model.norm.weight.max().item() == pytest.approx(min(1, 1.5 / (0.1 / 6.3 * D)) if tie else 1)
    sinusoidal = ZooConfig(**SIZES, initializer={"type": "auto"}, position_embedding_type="sinusoidal")
    assert_spread(ZooForCausalLM(sinusoidal).model.embed_tokens.weight, 1.0)


@pytest.mark.parametrize("block", ["output_norm", "sandwich_norm", "scaled_sandwich_norm"])
@pytest.mark.parametrize(("kind", "share"), [("depth", (2 * LAYERS) ** -0.5), ("layer", 6**-0.5), ("zero", 0.0)])
def test_the_norm_that_ends_a_branch_takes_the_share_of_its_matrix(block, kind, share):
    """A norm would take the scale of the matrix before it out again."""
    flags = {"block_type": block, "initializer": {"residual_type": kind}, "norm_unit_offset": block == "output_norm"}
    model = ZooModel(ZooConfig(**SIZES, **flags))
    layer = model.layers[2]
    for norm in (layer.attn_output_norm, layer.mlp_output_norm):
        torch.testing.assert_close(norm.offset + norm.weight, torch.full((D,), share))
    assert_spread(layer.mlp.down_proj.weight, 0.03)
    hidden = torch.randn(2, 5, D, requires_grad=True)
    positions = torch.arange(5)[None]
    output = layer(hidden, position_embeddings=model.rotary_emb(hidden, positions), attention_mask=None)
    # The identity, and its slope is finite.
    assert kind != "zero" or torch.equal(output, hidden)
    output.sum().backward()
    assert 0 <= layer.attn_output_norm.weight.grad.abs().max() < 1e3


def test_a_share_that_no_weight_can_take_is_refused():
    flags = {"block_type": "output_norm", "norm_elementwise_affine": False}
    with pytest.raises(Exception, match="residual_type='zero' only means something with norms that have a weight"):
        ZooConfig(**SIZES, **flags, initializer={"residual_type": "zero"})


def test_matrices_can_be_named():
    found = matrices(initializer={"by_name": {"o_proj": 0.5, "down_proj": 0.0}}, **EXPERTS)
    assert_spread(found["model.layers.1.self_attn.o_proj.weight"], 0.5)
    assert_spread(found["model.layers.1.mlp.experts.down_proj"], 0)
    assert_spread(found["model.layers.0.mlp.down_proj.weight"], 0)
    assert_spread(found["model.layers.0.mlp.up_proj.weight"], 0.03)
    with pytest.raises(Exception, match=r"initializer.by_name\['o_proj'\]=-1 must be a finite number"):
        ZooConfig(**SIZES, initializer={"by_name": {"o_proj": -1}})
