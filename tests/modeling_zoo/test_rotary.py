"""Rotations: every scaling by its formula, tables of transformers' own classes to the last bit, both pairings."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from references_positions import frequencies, turn
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.glm import modeling_glm
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.olmo import modeling_olmo
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooModel
from modeling_zoo.ops_rotary import RotaryTables, apply_rotary
from modeling_zoo.position_rotary import Rotations

HEAD, TRAINED = 16, 40
SIZES = {
    "vocab_size": 31, "hidden_size": 20, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 3, "head_dim": HEAD, "max_position_embeddings": TRAINED,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 30}
YARN = {"factor": 4.0, "original_max_position_embeddings": 20}
LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5, 1.7, 1.8, 2.0], "long_factor": [1.5, 2, 3, 4, 5, 6, 7, 9],
    "original_max_position_embeddings": 20,
}  # fmt: skip
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": {"rope_type": "llama3"} | LLAMA3,
    "yarn": {"rope_type": "yarn"} | YARN,
    "yarn_mscale": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.1} | YARN,
    "yarn_attention_factor": {"rope_type": "yarn", "attention_factor": 1.3} | YARN,
    "yarn_whole_pairs": {"rope_type": "yarn", "truncate": False, "beta_fast": 3.0, "beta_slow": 0.3} | YARN,
    "longrope": {"rope_type": "longrope"} | LONG,
    "longrope_factor": {"rope_type": "longrope", "factor": 3.0} | LONG,
    "longrope_attention_factor": {"rope_type": "longrope", "attention_factor": 1.3} | LONG,
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    "proportional_factor": {"rope_type": "proportional", "partial_rotary_factor": 0.7, "factor": 3.0},
}


def config_of(table, **fields):
    return ZooConfig(**SIZES | {"rope_parameters": {"rope_theta": 100.0} | table} | fields)


def positions_up_to(length):
    """Two rows, the first of them shorter."""
    return torch.stack((torch.arange(length).clamp(max=length - 4), torch.arange(length)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("interleave", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("length", [15, 61], ids=["short", "long"])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_the_formula(name, length, interleave):
    table = {"rope_theta": 100.0} | SCALINGS[name]
    positions = positions_up_to(length)
    cos, sin = Rotations(config_of(table, rope_interleave=interleave))(torch.empty(0), positions)
    expected, factor = frequencies(table, HEAD, TRAINED, length)
    assert cos.shape == (2, length, 2 * len(expected))
    angles = positions[..., None].double() * torch.tensor(expected, dtype=torch.double)
    angles = angles.repeat_interleave(2, -1) if interleave else torch.cat((angles, angles), -1)
    torch.testing.assert_close(cos.double(), angles.cos() * factor, rtol=0, atol=2e-5)
    torch.testing.assert_close(sin.double(), angles.sin() * factor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["default", "linear", "dynamic", "llama3", "yarn"])
def test_a_part_of_a_head_has_its_own_frequencies(name, share):
    table = {"rope_theta": 100.0, "partial_rotary_factor": share} | SCALINGS[name]
    cos, sin = Rotations(config_of(table))(torch.empty(0), positions_up_to(50))
    expected, factor = frequencies(table, HEAD, TRAINED, 50)
    assert cos.shape[-1] == int(HEAD * share)
    angles = positions_up_to(50)[..., None].double() * torch.tensor(expected, dtype=torch.double)
    torch.testing.assert_close(cos.double(), torch.cat((angles, angles), -1).cos() * factor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_short_sequence_after_a_long_one_turns_as_before(name):
    rotations = Rotations(config_of(SCALINGS[name]))
    short, long = torch.arange(12)[None], torch.arange(60)[None]
    before = rotations(torch.empty(0), short)
    between = rotations(torch.empty(0), long)
    after = rotations(torch.empty(0), short)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.allclose(between[0][:, :12], before[0], atol=1e-3), "the length changes the angles"


# -- transformers' own tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in SCALINGS if not name.startswith(("longrope", "proportional"))])
def test_tables_are_llama_s(name, dtype):
    table = {"rope_theta": 100.0} | SCALINGS[name]
    theirs = modeling_llama.LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=48, num_attention_heads=3, max_position_embeddings=TRAINED, rope_parameters=dict(table))
    )
    ours, x = Rotations(config_of(table)), torch.empty(0, dtype=dtype)
    for length in (15, 61, 15):
        positions = positions_up_to(length)
        pairs = zip(ours(x, positions), theirs(x, positions), strict=True)
        assert all(found.dtype == dtype and torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize("name", ["longrope", "longrope_factor", "longrope_attention_factor"])
def test_tables_are_phi3_s(name):
    table = {"rope_theta": 100.0, "partial_rotary_factor": 1.0} | SCALINGS[name]
    theirs = Phi3RotaryEmbedding(
        Phi3Config(
            hidden_size=48, num_attention_heads=3, max_position_embeddings=TRAINED, rope_parameters=dict(table),
            original_max_position_embeddings=20,
        )
    )  # fmt: skip
    ours, x = Rotations(config_of(table)), torch.empty(0)
    for length in (15, 61, 15):
        positions = positions_up_to(length)
        pairs = zip(ours(x, positions), theirs(x, positions), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)


WORDS = ["sliding_attention", "full_attention"]
NESTED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 8.0},
}


def test_tables_per_layer_type_are_gemma3_s():
    theirs = Gemma3RotaryEmbedding(
        Gemma3TextConfig(
            hidden_size=48, num_attention_heads=3, head_dim=HEAD, layer_types=WORDS, num_hidden_layers=2,
            rope_parameters=NESTED,
        )
    )  # fmt: skip
    ours = Rotations(ZooConfig(**SIZES, layer_types=WORDS, sliding_window=5, rope_parameters=NESTED))
    assert set(ours.tables) == set(WORDS)
    x, positions = torch.empty(0), positions_up_to(33)
    for word in WORDS:
        for found, expected in zip(ours(x, positions, word), theirs(x, positions, word), strict=True):
            assert torch.equal(found, expected)


def test_each_layer_turns_by_the_table_of_its_type():
    config = ZooConfig(**SIZES, layer_types=WORDS, sliding_window=5, rope_parameters=NESTED)
    assert [config.rope_table_of(layer) for layer in range(2)] == WORDS
    flat = config_of({"rope_type": "default"})
    assert [flat.rope_table_of(layer) for layer in range(2)] == ["default", "default"]
    without = ZooConfig(**SIZES, layer_types=WORDS, sliding_window=5, rope_parameters=NESTED | {"full_attention": None})
    assert [without.rope_table_of(layer) for layer in range(2)] == ["sliding_attention", None]


# -- the turn itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleave", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_heads_are_turned_pair_by_pair(interleave, share):
    table = {"rope_theta": 100.0, "rope_type": "default", "partial_rotary_factor": share}
    positions = torch.tensor([[0, 3, 17], [40, 2, 1]])
    tables = Rotations(config_of(table, rope_interleave=interleave))(torch.empty(0), positions)
    x = torch.randn(2, 3, 5, HEAD)
    found = apply_rotary(x, tables, interleave)
    wanted, _ = frequencies(table, HEAD, TRAINED, 41)
    expected = [
        [
            [turn(head, position, wanted, interleave) for head in heads]
            for heads, position in zip(row, places, strict=True)
        ]
        for row, places in zip(x.double().tolist(), positions.tolist(), strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.double), rtol=1e-5, atol=2e-5)


def test_scores_depend_on_the_distance_only():
    """What rotations are for: moving query and key together changes nothing."""
    rotations = Rotations(config_of({"rope_type": "default"}))
    query, key = torch.randn(2, 1, 1, 1, HEAD)
    scores = []
    for shift in (0, 7, 23):
        tables = [rotations(torch.empty(0), torch.tensor([[place + shift]])) for place in (9, 4)]
        scores.append((apply_rotary(query, tables[0]) * apply_rotary(key, tables[1])).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-4, atol=1e-5)


def theirs_by(name, x, cos, sin):
    """The originals take `[B, H, T, d]`, and angles `[B, T, r]` whose halves are alike."""
    x = x.transpose(1, 2)
    apply = {"llama": modeling_llama, "olmo": modeling_olmo, "cohere": modeling_cohere, "glm": modeling_glm}[name]
    return apply.apply_rotary_pos_emb(x, x, cos, sin)[0].transpose(1, 2)


ROUNDINGS = {
    "llama": ({}, False, 1.0),
    "olmo": ({"precision.rope": "float32_trig"}, False, 1.0),
    "cohere": ({"precision.rope": "float32_qk", "rope_interleave": True}, True, 1.0),
    "glm": ({"rope_interleave": True}, True, 0.5),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_rounds_as_the_original_does(name):
    fields, interleave, share = ROUNDINGS[name]
    config = config_of({"rope_type": "default", "partial_rotary_factor": share}, **fields)
    x, positions = torch.randn(2, 9, 3, HEAD).to(torch.bfloat16), positions_up_to(9)
    cos, sin = Rotations(config)(x, positions)
    assert cos.dtype == (torch.float32 if name == "olmo" else torch.bfloat16)
    found = apply_rotary(x, (cos, sin), interleave, upcast=config.precision["rope"] == "float32_qk")
    if name == "glm":
        # It spreads the angles itself.
        cos, sin = (torch.cat((angles[..., 0::2], angles[..., 0::2]), -1) for angles in (cos, sin))
    expected = theirs_by(name, x, cos, sin)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_pairs_are_gpt_j_s():
    config = config_of({"rope_type": "default", "rope_theta": 10000.0}, rope_interleave=True)
    x, positions = torch.randn(1, 9, 3, HEAD), torch.arange(9)[None]
    angles = modeling_gptj.create_sinusoidal_positions(9, HEAD)[None]
    sin, cos = angles.chunk(2, dim=-1)
    found = apply_rotary(x, Rotations(config)(x, positions), interleave=True)
    torch.testing.assert_close(found, modeling_gptj.apply_rotary_pos_emb(x, sin, cos))


@pytest.mark.parametrize("interleave", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("fields", [{}, {"precision.rope": "float32_trig"}, {"precision.rope": "float32_qk"}], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_turn_that_layers_share_is_the_turn_to_the_last_bit(interleave, fields, share):
    table = {"rope_type": "default", "partial_rotary_factor": share}
    rotations = Rotations(config_of(table, rope_interleave=interleave, **fields))
    upcast, positions = fields.get("precision.rope") == "float32_qk", positions_up_to(9)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 9, 3, HEAD).to(dtype)
        plain = rotations.tables_at(x, positions)["default"]
        with torch.no_grad():
            shared = rotations.tables_at(x, positions)["default"]
        assert type(plain) is tuple and type(shared) is RotaryTables
        for _ in range(2):
            found = apply_rotary(x, shared, interleave, upcast)
            assert torch.equal(found, apply_rotary(x, plain, interleave, upcast)) and found.dtype == dtype


# -- in a model ----------------------------------------------------------------------------------------------------


def test_cached_keys_are_turned_anew_where_the_factors_change():
    """LongRoPE turns every key by its long factors once the sequence is longer than the original length."""
    model = ZooForCausalLM(config_of(SCALINGS["longrope"], num_hidden_layers=2)).eval()
    randomize(model)
    tokens, mask = torch.randint(1, 31, (2, 15)), torch.ones(2, 15, dtype=torch.long)
    mask[0, :3] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    for search in ({}, {"num_beams": 3}):
        cached, plain = (model.generate(tokens, use_cache=cache, **arguments, **search) for cache in (True, False))
        assert torch.equal(cached, plain)
    assert [model.config.rope_changes_between(*lengths) for lengths in ((0, 30), (5, 20), (20, 21), (21, 22))] == [
        False, False, True, False,
    ]  # fmt: skip


def test_layers_without_rotation_do_not_see_the_order():
    """Without positions attention sees a set; one layer, since to a second the moved tokens bring their pasts."""
    for rotates in (0, 1):
        table = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}} if rotates else {}
        config = ZooConfig(**SIZES | table | {"num_hidden_layers": 1, "no_rope_layers": [rotates]})
        model = ZooModel(config).eval()
        randomize(model)
        one, other = torch.tensor([[3, 9, 4, 7, 1]]), torch.tensor([[9, 4, 3, 7, 1]])
        with torch.no_grad():
            last = [model(tokens).last_hidden_state[:, -1] for tokens in (one, other)]
        assert torch.allclose(*last, atol=1e-5) == (not rotates)


@pytest.mark.parametrize(
    "table, named",
    [
        ({"rope_type": "default", "rope_theta": -1.0}, "rope_theta"),
        ({"rope_type": "default", "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rope_type": "su", **LONG}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "longrope"}, "long_factor"),
        ({**LONG, "rope_type": "longrope", "long_factor": [2.0]}, "long_factor has 1 numbers"),
    ],
    ids=str,
)
def test_bad_tables_are_refused_by_name(table, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        config_of(table)


@pytest.mark.parametrize("interleave", [False, True], ids=["halves", "pairs"])
def test_a_whole_rotation_asks_no_tensor_anything_while_it_is_traced(interleave):
    """What vLLM finds the maps of latent attention with."""

    class Turned(torch.nn.Module):
        def forward(self, x, cos, sin):
            return apply_rotary(x, (cos, sin), interleave=interleave, whole=True)

    x, angles = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 8)
    traced, pair = torch.fx.symbolic_trace(Turned()), (angles.cos(), angles.sin())
    assert torch.equal(traced(x, *pair), apply_rotary(x, pair, interleave=interleave))
