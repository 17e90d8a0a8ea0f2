"""Checkpoints with experts: every layout of them, heads for further tokens, fields that do nothing, published sizes."""

import json

import pytest
import torch
import transformers
from checkpoint_checks import assert_same_config, assert_same_tensors, batch, tensors_of
from places import CONFIGS
from random_models import build, is_here, parameters_at_work, randomize, their_class_config
from safetensors.torch import load_file, save_file
from samples import every

from conversion import ConversionError, convert, export_config, family_of, import_config, known_families, load
from conversion.families.llama4_text import TINY as LLAMA4

QUIET = {"progress": False}


def raw_config(name, variant=0, **changes):
    family = family_of(name)
    return json.loads(their_class_config(name, family, family.tiny[variant] | changes).to_json_string())


SPARSE = [name for name in known_families() if is_here(name) and "expert" in str(family_of(name).tiny[:1])]


def save(name, folder, variant=0):
    family = family_of(name)
    model = build(their_class_config(name, family, family.tiny[variant]), family)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", every(10, SPARSE))
def test_a_checkpoint_with_the_names_of_memory_gives_the_same_model(name, tmp_path):
    """transformers writes experts one by one and holds them stacked, sometimes under other names: both convert."""
    source, stacked, zoo, same, back = (tmp_path / folder for folder in ("source", "stacked", "zoo", "same", "back"))
    model = save(name, source)
    if getattr(model.config, "zero_expert_num", 0):
        pytest.skip("it holds rows for experts that have no weights, which no checkpoint has")
    tensors = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if sorted(tensors) == sorted(tensors_of(source)):
        pytest.skip("it writes what it holds")
    stacked.mkdir()
    save_file(tensors, stacked / "model.safetensors", metadata={"format": "pt"})
    (stacked / "config.json").write_text((source / "config.json").read_text())
    convert(source, zoo, **QUIET)
    convert(stacked, same, **QUIET)
    assert_same_tensors(tensors_of(same), tensors_of(zoo))
    convert(same, back, to=name, **QUIET)
    assert_same_tensors(tensors_of(back), tensors)
    assert_same_config(back, source)


@pytest.mark.parametrize(
    "name, expert", [("mixtral", "block_sparse_moe.experts.7.w2"), ("glm4_moe", "mlp.experts.9.up_proj")]
)
def test_an_expert_that_was_never_written_is_named(name, expert, tmp_path):
    source = tmp_path / "source"
    save(name, source)
    tensors = load_file(source / "model.safetensors")
    del tensors[f"model.layers.2.{expert}.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=rf"layers\.2\.{expert}\.weight"):
        convert(source, tmp_path / "zoo", **QUIET)
    assert not (tmp_path / "zoo").exists()


PREDICTION_HEADS = {
    "glm4_moe": ["model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"],
    "dots1": ["model.layers.3.shared_head.norm.weight"],
    "ernie4_5_moe": ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight"],
    "exaone_moe": ["mtp.layers.0.self_attn.q_proj.weight"],
    "mimo_v2_flash": ["model.mtp.layers.0.mlp.up_proj.weight"],
}


@pytest.mark.parametrize("name", PREDICTION_HEADS)
def test_heads_for_further_tokens_are_kept_and_come_back(name, tmp_path):
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    save(name, source)
    tensors = load_file(source / "model.safetensors")
    tensors |= {key: torch.randn(3, 5) for key in PREDICTION_HEADS[name]}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, zoo, **QUIET)
    manifest = json.loads((zoo / "source" / "manifest.json").read_text())
    assert sorted(manifest["kept"]) == sorted(PREDICTION_HEADS[name])
    convert(zoo, back, to=name, **QUIET)
    assert_same_tensors(tensors_of(back), tensors)


def test_text_of_llama4_with_vision(tmp_path):
    vision = {
        "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
    }  # fmt: skip
    config = transformers.Llama4Config(
        text_config=LLAMA4 | {"num_experts_per_tok": 1}, vision_config=vision, attn_implementation="eager"
    )
    theirs = transformers.Llama4ForConditionalGeneration._from_config(config).eval()
    randomize(theirs)
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs.save_pretrained(source)
    inputs = batch(101)
    with torch.no_grad():
        expected, found = theirs(**inputs).logits[1], load(source)(**inputs).logits[1]
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    convert(source, zoo, **QUIET)
    convert(zoo, back, to="llama4", **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)


@pytest.mark.parametrize(
    "name, changes, field, value",
    [
        ("phimoe", {"num_experts_per_tok": 5}, "num_experts_per_tok", 2),
        ("gpt_oss", {"hidden_act": "relu"}, "hidden_act", "silu"),
        ("llama4_text", {"router_jitter_noise": 0.3}, "router.jitter_noise", 0.0),
        ("glm4_moe", {"scoring_func": "softmax"}, "scoring_func", "sigmoid"),
    ],
)
def test_a_field_their_code_never_reads_does_nothing(name, changes, field, value):
    raw = raw_config(name) | changes
    assert getattr(import_config(raw), field) == value
    assert export_config(import_config(raw), name) == raw


def test_layers_of_hunyuan_may_differ_in_their_number_of_experts():
    config = import_config(raw_config("hunyuan_v1_moe", moe_topk=[1, 4, 2]))
    assert [layer.num_experts_per_tok for layer in config.per_layer_config] == [1, 4, 2]
    assert import_config(raw_config("hunyuan_v1_moe", moe_topk=[3, 3, 3])).num_experts_per_tok == 3


def test_the_base_of_dbrx_is_found_where_its_published_file_keeps_it():
    raw = raw_config("dbrx")
    del raw["rope_parameters"]
    raw["attn_config"]["rope_theta"] = 5e5
    assert import_config(raw).rope_parameters["rope_theta"] == 5e5
    assert export_config(import_config(raw), "dbrx") == raw


@pytest.mark.parametrize(
    "name, changes, match",
    [
        ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "moe_normalize_expert_weights=2.0"),
        ("phimoe", {"rope_parameters": {"long_mscale": 1.5}}, "short_mscale=1.25 and long_mscale=1.5"),
    ],
)
def test_what_is_not_converted_is_said(name, changes, match):
    raw = raw_config(name)
    for section, values in changes.items():
        raw[section] |= values
    with pytest.raises(ConversionError, match=match):
        import_config(raw)


# Billions of parameters, and of those active per token, as the models' own papers and cards give them.
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9),
    "qwen3-moe-30b-a3b": (30.5, 3.3),
    "mlcpreset-qwen2moe": (14.3, 2.7),
    "glm-4.5": (352.8, 33.6),
    "gpt-oss-20b": (20.9, 4.2),
    "llama4-scout": (107.8, 17.2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name):
    raw = json.loads((CONFIGS / f"{name}.json").read_text())
    config = import_config({key: value for key, value in raw.items() if key != "quantization_config"})
    total, active = parameters_at_work(config)
    total_billions, active_billions = PUBLISHED[name]
    assert abs(total / 1e9 - total_billions) < 0.05
    assert abs(active / 1e9 - active_billions) < 0.06


ALL_DENSE = [
    ("deepseek_v3", "first_k_dense_replace", 3), ("mistral4", "first_k_dense_replace", 3),
    ("glm4_moe", "first_k_dense_replace", 9), ("deepseek_v2", "first_k_dense_replace", 3),
    ("deepseek_v32", "first_k_dense_replace", 3), ("dots1", "first_k_dense_replace", 3),
    ("qwen3_moe", "mlp_only_layers", [0, 1, 2]), ("afmoe", "num_dense_layers", 9), ("lfm2_moe", "num_dense_layers", 9),
    ("ernie4_5_moe", "moe_layer_end_index", 0),
]  # fmt: skip


@pytest.mark.parametrize("case", every(5, ALL_DENSE), ids=str)
def test_a_config_of_experts_whose_layers_are_all_dense(case, tmp_path):
    """The dense model of a mixture's shape: what the file says of experts is nobody's, and comes back."""
    name, key, value = case
    raw = raw_config(name, **{key: value})
    ours = import_config(raw)
    assert set(ours.mlp_layer_types) == {"dense"} and ours.num_experts is None
    assert export_config(ours, name) == raw
    ours.source_config = None
    assert set(import_config(export_config(ours, name)).mlp_layer_types) == {"dense"}
    model = build(their_class_config(name, family_of(name), raw), family_of(name))
    model.save_pretrained(tmp_path / "source")
    tokens = torch.randint(1, 90, (2, 13))
    with torch.no_grad():
        expected, found = model(tokens).logits, load(tmp_path / "source")(tokens).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_shared_experts_that_the_config_denies_are_not_dropped(tmp_path):
    save("glm4_moe", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"n_shared_experts": 0}))
    with pytest.raises(ConversionError, match=r"does not have: .*shared_experts\.down_proj"):
        load(tmp_path)
