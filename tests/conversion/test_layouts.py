"""Checkpoints as their publishers lay them out, against transformers' own class on the tensors they came from."""

import json

import pytest
import torch
from checkpoint_checks import assert_same_tensors, batch, tensors_of
from native_layouts import consolidated, deepseek_ranks, on_ranks
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from conversion import ConversionError, convert, load
from conversion.engine import streaming

QUIET = {"progress": False}
ALLOWED = QUIET | {"allow_pickle": True}
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 96}
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 96, "rms_norm_eps": 1e-5,
}  # fmt: skip
YARN = {"factor": 16, "original_max_position_embeddings": 8, "beta": 32, "alpha": 1}
STRETCHED = {
    "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch):
    """`convert` moves some rows at a time; `load` reads whole tensors."""
    monkeypatch.setattr(streaming, "PART", 5000)


def at_random(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model.eval()


def compare(folder, theirs, tmp_path, **options):
    """`convert` gives their tensors to the bit, `load` their logits."""
    convert(folder, tmp_path / "zoo", **QUIET, **options)
    convert(tmp_path / "zoo", tmp_path / "back", to=theirs.config.model_type, **QUIET)
    same = type(theirs).from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    assert_same_tensors(same.state_dict(), theirs.state_dict())
    ours, inputs = load(folder, **options).eval(), batch(96)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(same(**inputs).logits, theirs(**inputs).logits, atol=0, rtol=0)
    return tensors_of(tmp_path / "zoo")


# -- Meta ----------------------------------------------------------------------------------------------------------


def meta(folder, ranks, **params):
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS | {"multiple_of": 16} | params))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    for number, tensors in enumerate(ranks):
        torch.save(tensors, folder / f"consolidated.{number:02d}.pth")


def llama(**options):
    return at_random(LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 176} | options)))


@pytest.mark.parametrize(("count", "vocabulary_dim", "heads"), [(1, 1, 2), (2, 1, 2), (2, 0, 2), (4, 1, 2), (4, 0, 4)])
def test_llama_of_meta(count, vocabulary_dim, heads, tmp_path):
    theirs = llama(num_key_value_heads=heads)
    tensors = consolidated(theirs.state_dict(), 16)
    ranks = [tensors] if count == 1 else on_meta_ranks(tensors, count, vocabulary_dim, heads)
    for rank in ranks:
        rank["rope.freqs"] = torch.zeros(8)
    # int(8 · 64 / 3) = 170, a multiple of 16.
    meta(tmp_path / "meta", ranks, n_kv_heads=heads if heads != 4 else None)
    compare(tmp_path / "meta", theirs, tmp_path, allow_pickle=True)
    assert (tmp_path / "zoo" / "tokenizer.model").is_file()


def on_meta_ranks(tensors, count, vocabulary_dim, heads):
    """With more ranks than key heads, neighbours hold the same head."""
    ranks = on_ranks(tensors, count, vocabulary_dim)
    for number, rank in enumerate(ranks):
        for name in rank:
            if name.endswith(("wk.weight", "wv.weight")) and count > heads:
                rank[name] = tensors[name].chunk(heads, 0)[number * heads // count].clone()
    return ranks


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, {"rope_theta": 10000.0, "max_position_embeddings": 4096, "intermediate_size": 11008}),
        ({"norm_eps": 1e-6}, {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
        ({"vocab_size": -1}, {"vocab_size": 32000}),
        ({"rope_theta": 1e6, "vocab_size": 32016}, {"max_position_embeddings": 16384, "vocab_size": 32016}),
        (
            {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3, "multiple_of": 4096},
            {"intermediate_size": 28672, "num_key_value_heads": 8, "head_dim": 128},
        ),
        (
            {"ffn_dim_multiplier": 1.3, "multiple_of": 1024, "rope_theta": 5e5, "vocab_size": 128256, "n_kv_heads": 8},
            {"intermediate_size": 14336, "max_position_embeddings": 8192, "bos_token_id": 128000},
        ),
    ],
)
def test_what_params_of_meta_say(params, said, tmp_path):
    from conversion.files.sources import read_config

    published = {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-5, "vocab_size": -1, "multiple_of": 256}
    (tmp_path / "params.json").write_text(json.dumps(published | params))
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    raw = read_config(tmp_path)
    assert {key: raw[key] for key in said} == said


@pytest.mark.parametrize(("dim", "factor"), [(2048, 32.0), (8192, 8.0)])
def test_scaled_rotation_of_meta(dim, factor, tmp_path):
    from conversion.files.sources import read_config

    params = {
        "dim": dim,
        "n_layers": 1,
        "n_heads": 32,
        "use_scaled_rope": True,
        "rope_theta": 5e5,
        "vocab_size": 128256,
    }
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    raw = read_config(tmp_path)
    assert raw["rope_scaling"]["factor"] == factor and raw["max_position_embeddings"] == 131072


# -- Mistral -------------------------------------------------------------------------------------------------------


def mistral(folder, tensors, shards=1, **params):
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS | {"head_dim": 16, "hidden_dim": 80} | params))
    (folder / "tekken.json").write_text("{}")
    if shards == 1:
        save_file(tensors, folder / "consolidated.safetensors")
        return
    weight_map = {}
    for number in range(shards):
        file = f"consolidated-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


MISTRALS = {
    "window": (
        MistralForCausalLM, MistralConfig, {"sliding_window": 5}, {"sliding_window": "5", "rope_theta": 10000.0}
    ),
    "tied": (
        MistralForCausalLM, MistralConfig, {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 8},
        {"tied_embeddings": True, "head_dim": 8},
    ),
    "experts": (
        MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"moe": {"num_experts": 4, "num_experts_per_tok": 2}},
    ),
    "temperature": (
        Ministral3ForCausalLM, Ministral3Config,
        {
            "max_position_embeddings": 128, "sliding_window": None,
            "rope_parameters": STRETCHED | {"rope_theta": 500.0, "llama_4_scaling_beta": 0.3},
        },
        {"rope_theta": 500.0, "yarn": YARN, "llama_4_scaling": {"beta": 0.3}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "shards"), [*((kind, 1) for kind in MISTRALS), ("experts", 3)])
def test_models_of_mistral(kind, shards, tmp_path):
    model_class, config_class, options, params = MISTRALS[kind]
    if kind != "temperature":
        # What the layout means where it says nothing of rotation.
        options = options | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    theirs = at_random(model_class(config_class(**SIZES | {"intermediate_size": 80} | options)))
    theirs.save_pretrained(tmp_path / "theirs")
    stored = tensors_of(tmp_path / "theirs")
    mistral(tmp_path / "mistral", consolidated(stored, theirs.config.head_dim), shards, **params)
    compare(tmp_path / "mistral", theirs, tmp_path)
    assert (tmp_path / "zoo" / "tekken.json").is_file()


def test_eight_bits_of_mistral(tmp_path):
    """FP8 with one scale a matrix, named as Mistral names it."""
    theirs = llama(intermediate_size=80)
    tensors, scaled = consolidated(theirs.state_dict(), 16), {}
    for name, tensor in tensors.items():
        if ".attention.w" in name or ".feed_forward.w" in name:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ".qscale_weight")] = scale
            scaled[name.replace(".weight", ".qscale_act")] = torch.tensor(1.0)
            tensors[name] = scaled[name].float() * scale
        else:
            scaled[name] = tensor
    mistral(tmp_path / "plain", tensors)
    mistral(tmp_path / "scaled", scaled, quantization={"qformat_weight": "fp8_e4m3"})
    convert(tmp_path / "plain", tmp_path / "one", dtype="float32", **QUIET)
    convert(tmp_path / "scaled", tmp_path / "other", dtype="float32", **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other"))


# -- DeepSeek ------------------------------------------------------------------------------------------------------

ARGS = {
    "vocab_size": 96, "dim": 64, "inter_dim": 80, "moe_inter_dim": 32, "n_layers": 3, "n_dense_layers": 1, "n_heads": 4,
    "n_routed_experts": 8, "n_shared_experts": 1, "n_activated_experts": 3, "kv_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "n_expert_groups": 4, "n_limited_groups": 2, "route_scale": 2.5,
}  # fmt: skip
THEIRS = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 3, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
}  # fmt: skip


def deepseek(folder, ranks, **args):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ARGS | args))
    for number, tensors in enumerate(ranks):
        save_file(tensors, folder / f"model{number}-mp{len(ranks)}.safetensors")


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("model_type", "rank"), [("deepseek_v3", 32), ("deepseek_v2", 0)])
def test_inference_layout_of_deepseek(model_type, rank, count, tmp_path):
    third = model_type == "deepseek_v3"
    yarn = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.707, "mscale_all_dim": 0.707,
    }  # fmt: skip
    options = {"rope_parameters": yarn, "q_lora_rank": rank or None, "max_position_embeddings": 163840}
    options |= {"norm_topk_prob": third} | ({} if third else {"topk_method": "group_limited_greedy"})
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **THEIRS | options)).eval()
    theirs = at_random(theirs)
    for name, buffer in theirs.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ranks = deepseek_ranks(tensors_of(tmp_path / "theirs"), count, experts=8)
    args = {"score_func": "sigmoid"} if third else {}
    deepseek(tmp_path / "deepseek", ranks, q_lora_rank=rank, mscale=0.707, **args)
    convert(tmp_path / "deepseek", tmp_path / "zoo", dtype="float32", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to=model_type, **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "theirs"))
    ours, inputs = load(tmp_path / "deepseek", dtype="float32").eval(), batch(96)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_eight_bits_of_deepseek_on_ranks(tmp_path):
    """Scales of blocks are shared out as their weights are."""
    from conversion.files.sources import read_config
    from conversion.formats.schemes import decoded
    from conversion.layouts.known import open_weights

    torch.manual_seed(0)
    weight, scale = torch.randn(512, 256).to(torch.float8_e4m3fn), torch.rand(4, 2)
    plain = weight.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    for word, place in (("up_proj", "w3"), ("down_proj", "w2")):
        name = f"model.layers.0.mlp.{word}.weight"
        ranks = deepseek_ranks({name: weight, f"{name}_scale_inv": scale}, 2, 8)
        assert f"layers.0.ffn.{place}.scale" in ranks[1]
        deepseek(tmp_path / word, ranks, dtype="fp8", score_func="sigmoid")
        raw = read_config(tmp_path / word)
        read = decoded(open_weights(tmp_path / word, raw), raw, torch.float32).read(name)
        assert torch.equal(read, plain)


def test_incomplete_ranks_of_deepseek(tmp_path):
    ranks = deepseek_ranks({"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4)}, 2, 8)
    deepseek(tmp_path / "one", [*ranks[:1], {"norm.weight": torch.ones(4)}])
    with pytest.raises(ConversionError, match="is not in the file of rank"):
        convert(tmp_path / "one", tmp_path / "zoo", **QUIET)
    deepseek(tmp_path / "other", ranks)
    (tmp_path / "other" / "model0-mp2.safetensors").unlink()
    with pytest.raises(ConversionError, match="lacks model0-mp2.safetensors"):
        convert(tmp_path / "other", tmp_path / "zoo", **QUIET)
    deepseek(tmp_path / "sparse", ranks, index_n_heads=4)
    with pytest.raises(ConversionError, match="the sparse indexer of V3.2"):
        convert(tmp_path / "sparse", tmp_path / "zoo", **QUIET)


# -- what is wrong -------------------------------------------------------------------------------------------------


def rank_missing(folder):
    (folder / "consolidated.00.pth").unlink()


def tensor_missing(folder):
    rank = torch.load(folder / "consolidated.01.pth")
    del rank["layers.1.attention.wq.weight"]
    torch.save(rank, folder / "consolidated.01.pth")


def shape_wrong(folder):
    rank = torch.load(folder / "consolidated.01.pth")
    rank["layers.1.attention.wq.weight"] = torch.zeros(30, 64)
    torch.save(rank, folder / "consolidated.01.pth")


def name_unknown(folder):
    for path in folder.glob("*.pth"):
        torch.save(torch.load(path) | {"layers.1.attention.wx.weight": torch.zeros(2)}, path)


def params_cut(folder):
    (folder / "params.json").write_text(json.dumps({"dim": 64}))


def with_vision(folder):
    (folder / "params.json").write_text(json.dumps(PARAMS | {"vision_encoder": {"hidden_size": 8}}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (rank_missing, "lacks consolidated.00.pth: the file of a rank is missing"),
        (tensor_missing, "'layers.1.attention.wq.weight' is not in the file of rank 1"),
        (shape_wrong, r"'layers.1.attention.wq.weight' is \[32, 64\], \[30, 64\] in the files"),
        (name_unknown, "'layers.1.attention.wx.weight' is no tensor of this layout"),
        (params_cut, "has n_layers=None, expected a positive number"),
        (with_vision, "of a model with a vision encoder"),
    ],
)
def test_incomplete_layouts_are_refused_in_one_sentence(damage, said, tmp_path):
    tensors = consolidated(llama().state_dict(), 16)
    meta(tmp_path / "meta", on_ranks(tensors, 2))
    damage(tmp_path / "meta")
    with pytest.raises(ConversionError, match=said) as refusal:
        convert(tmp_path / "meta", tmp_path / "zoo", **ALLOWED)
    assert "\n" not in str(refusal.value) and not (tmp_path / "zoo").exists()


def test_pickled_ranks_are_opened_where_it_is_allowed(tmp_path, monkeypatch):
    meta(tmp_path / "meta", [consolidated(llama().state_dict(), 16)])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ConversionError, match="--allow-pickle"):
        convert(tmp_path / "meta", tmp_path / "zoo", **QUIET)


@pytest.mark.parametrize("layout", ["meta", "mistral"])
def test_inspect_says_the_layout_and_its_bytes(layout, tmp_path, capsys):
    from zoo.cli.main import app, run

    tensors = consolidated(llama(intermediate_size=176).state_dict(), 16)
    if layout == "meta":
        meta(tmp_path / layout, [tensors])
    else:
        mistral(tmp_path / layout, tensors, hidden_dim=176)
    assert run(app, "zoo", ["inspect", str(tmp_path / layout), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    pattern = {"meta": "*.pth", "mistral": "*.safetensors"}[layout]
    stored = sum(path.stat().st_size for path in (tmp_path / layout).glob(pattern))
    assert report["stored_bytes"] == stored and layout in report["stored_as"].lower()
