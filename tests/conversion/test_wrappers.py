"""Models around a text model: one wrapper with many text models, config files of other times and makers, what is
refused."""

import json

import pytest
import torch
import transformers
from checkpoint_checks import assert_same_tensors, tensors_of
from random_models import build, is_here, their_class_config
from safetensors.torch import save_file
from samples import only
from test_all_wrappers import QUIET, assert_equal_on_text
from tiny_wrappers import SIZES, TOKENS, tiny_wrapper

from conversion import ConversionError, convert, import_config, known_families, load
from conversion.engine.catalog import model_type_of
from conversion.engine.registry import family_of
from conversion.engine.text_models import NOT_INSIDE

# Text models that transformers' LLaVA cannot hold: it asks for `embed_tokens`, or for a cache that they do not return.
# MiniMax-M3 counts blocks of keys from the first slot, padding too, where zoo counts from the first token.
# Gemma 3n looks tokens up a second time, of which LLaVA tells it nothing.
NOT_HELD = {
    "bert_generation", "bloom", "ctrl", "falcon", "falcon_mamba", "gemma3n_text", "gpt2", "gpt_bigcode",
    "gpt_neo", "gpt_neox_japanese", "mamba", "mamba2", "minimax_m3_vl_text", "mpt", "openai_gpt", "opt",
    "recurrent_gemma",
}  # fmt: skip
# Those whose files have other names alone than inside others, or that go back into their own wrapper alone.
OTHER_NAMES = {"bailing_hybrid", "chameleon"}


def held_by_llava():
    for name in known_families():
        family = family_of(name)
        alone = family.tiny and not family.section and not family.config_class
        if alone and name not in {*NOT_HELD, *NOT_INSIDE, *OTHER_NAMES}:
            yield name


@pytest.mark.parametrize("name", only(["cohere2"], held_by_llava()))
def test_llava_around_any_text_model(name, tmp_path):
    """Its head is a plain one, whatever the text model's own does to logits."""
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs = tiny_wrapper("llava", text={"model_type": model_type_of(name)})
    theirs.save_pretrained(source)
    convert(source, zoo, **QUIET)
    assert_equal_on_text(load(zoo).eval(), theirs)
    convert(zoo, back, to="llava", **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))


def rewritten(folder, raw, rename):
    """A checkpoint with another config.json and other names of tensors."""
    tensors = tensors_of(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_file({rename(name): tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))


def assert_converts_and_comes_back(theirs, source, tmp_path):
    raw = json.loads((source / "config.json").read_text())
    convert(source, tmp_path / "zoo", **QUIET)
    assert_equal_on_text(load(tmp_path / "zoo").eval(), theirs)
    convert(tmp_path / "zoo", tmp_path / "back", to=raw["model_type"], **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == raw


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("llm_config", "language_model."),
        ("language_config", "language."),
        ("text_config", "llm."),
        ("thinker_config.text_config", "thinker."),
    ],
)
def test_a_wrapper_that_transformers_does_not_have(place, before, tmp_path):
    """Files of DeepSeek-VL2, InternVL, MiniCPM-V and others, alive as published code alone: other keys, other names."""
    source = tmp_path / "source"
    theirs = tiny_wrapper("llava", text={"model_type": "qwen2"})
    theirs.save_pretrained(source)
    part = json.loads((source / "config.json").read_text())["text_config"]
    for key in reversed(place.split(".")):
        part = {key: part}
    names = {"language_model.": before, "vision_tower.": "vision_model.", "multi_modal_projector.": "mlp1."}
    rewritten(
        source,
        {"model_type": "something_chat", "vision_config": {"hidden_size": 24}} | part,
        lambda name: next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)),
    )
    assert_converts_and_comes_back(theirs, source, tmp_path)


def test_gemma_3n_around_its_text_model(tmp_path):
    """Its vision tower is of a library that the tests have not: tensors under its names stand for it."""
    source, family = tmp_path / "source", family_of("gemma3n_text")
    theirs = build(their_class_config("gemma3n_text", family, family.tiny[0]), family)
    theirs.save_pretrained(source)
    raw = transformers.Gemma3nConfig(text_config=theirs.config.to_dict()).to_dict()
    rewritten(source, raw, lambda name: name.replace("model.", "model.language_model.", 1))
    others = {
        f"model.{part}.weight": torch.randn(5, 3) for part in ("vision_tower.a", "audio_tower.b", "embed_audio.c")
    }
    save_file(tensors_of(source) | others, source / "model.safetensors")
    assert_converts_and_comes_back(theirs, source, tmp_path)


STANDING_ALONE = [
    name
    for name in known_families()
    if family_of(name).tiny and not family_of(name).section and is_here(name) and name != "chameleon"
]


@pytest.mark.parametrize("name", only(["internlm2"], STANDING_ALONE))
def test_any_family_inside_a_wrapper_that_transformers_does_not_have(name, tmp_path):
    """InternVL is made of many: the files of a text model behind `language_model.` become what they become alone."""
    source, alone, zoo, back = (tmp_path / folder for folder in ("source", "alone", "zoo", "back"))
    family = family_of(name)
    build(their_class_config(name, family, family.tiny[0]), family).save_pretrained(source)
    convert(source, alone, **QUIET)
    part = json.loads((source / "config.json").read_text()) | {"model_type": model_type_of(name)}
    rewritten(source, {"model_type": "internvl_chat", "llm_config": part}, "language_model.{}".format)
    if name in NOT_INSIDE:
        with pytest.raises(ConversionError, match=f"with '{name}' inside"):
            convert(source, zoo, **QUIET)
        return
    convert(source, zoo, **QUIET)
    assert_same_tensors(tensors_of(zoo), tensors_of(alone))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (zoo, alone)]
    assert len({json.dumps(said, sort_keys=True) for said in map(own, configs)}) == 1
    convert(zoo, back, to="internvl_chat", **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))


def own(raw):
    """What a config of zoo says of the model, not of where that came from."""
    return {key: value for key, value in raw.items() if not key.startswith(("source_", "zoo_"))}


@pytest.mark.long
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_the_text_of_a_wrapper_in_eight_bits(name, tmp_path):
    """Its towers stay plain and are named in the config; transformers reads the numbers that zoo reads."""
    source, zoo, packed, again = (tmp_path / folder for folder in ("source", "zoo", "packed", "again"))
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    theirs = tiny_wrapper(name, text=sizes | {"head_dim": 16})
    theirs.save_pretrained(source)
    convert(source, zoo, **QUIET)
    convert(zoo, packed, to=name, quantize="fp8-block", **QUIET)
    tensors = tensors_of(packed)
    eight = [key for key, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]
    assert len(eight) >= 12 and not any("vis" in key or "proj_" in key for key in eight)
    convert(packed, again, dtype="float32", **QUIET)
    config = transformers.AutoConfig.from_pretrained(packed)
    config.quantization_config["dequantize"] = True
    theirs = type(theirs).from_pretrained(packed, config=config).float().eval()
    assert_equal_on_text(load(again).eval(), theirs)


def test_an_old_file_with_its_text_model_at_the_top(tmp_path):
    source = tmp_path / "source"
    theirs = tiny_wrapper("qwen2_vl")
    theirs.save_pretrained(source)
    raw = json.loads((source / "config.json").read_text())
    raw = raw.pop("text_config") | raw
    rotation = raw.pop("rope_parameters")
    raw["rope_theta"] = rotation["rope_theta"]
    raw["rope_scaling"] = {"type": "mrope", "mrope_section": rotation["mrope_section"]}
    rewritten(source, raw, lambda name: name)
    assert_converts_and_comes_back(theirs, source, tmp_path)
    assert import_config(raw).rope_parameters == {"rope_type": "default", "rope_theta": rotation["rope_theta"]}


def test_the_text_model_of_a_wrapper_can_leave_it(tmp_path):
    """As the model that transformers runs without the wrapper: Qwen3 out of Qwen3-VL."""
    source, zoo, alone = (tmp_path / name for name in ("source", "zoo", "alone"))
    tiny_wrapper("qwen3_vl").save_pretrained(source)
    convert(source, zoo, **QUIET)
    convert(zoo, alone, to="qwen3_vl", text_only=True, **QUIET)
    assert json.loads((alone / "config.json").read_text())["model_type"] == "qwen3"
    assert_equal_on_text(load(zoo).eval(), transformers.AutoModelForCausalLM.from_pretrained(alone).eval())


def text(model_type, **fields):
    return SIZES | TOKENS | {"model_type": model_type} | fields


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"model_type": "paligemma", "text_config": text("gemma")}, "'paligemma' cannot be converted: its prompt sees"),
        ({"model_type": "jev", "text_config": text("qwen3")}, "'jev' cannot be converted: its head chooses"),
        ({"model_type": "llava", "text_config": text("falcon_h1")}, "with 'falcon_h1' inside: its embeddings are"),
        ({"model_type": "llava", "text_config": text("blip_text_model")}, "is not known, nor is 'blip_text_model'"),
        ({"model_type": "mllama", "text_config": text("mllama_text_model")}, "is not known, nor is 'mllama_text_model"),
    ],
)
def test_what_the_text_model_alone_does_not_compute_is_refused(raw, said):
    with pytest.raises(ConversionError, match=said) as refused:
        import_config(raw)
    assert len(str(refused.value)) < 250


def test_another_text_model_in_a_wrapper_with_a_file_of_its_own(tmp_path):
    """The file of Mistral 3 is for Mistral and Ministral 3; with any other it is a wrapper as all are."""
    source = tmp_path / "source"
    theirs = tiny_wrapper("mistral3", text={"model_type": "ministral"})
    theirs.save_pretrained(source)
    assert_converts_and_comes_back(theirs, source, tmp_path)
    with pytest.raises(ConversionError, match="'mistral3' is not known, nor is 'blip_text_model'"):
        import_config({"model_type": "mistral3", "text_config": text("blip_text_model")})


def test_the_head_outside_caps_no_logits(tmp_path):
    """transformers' Gemma 3 around its text model, which alone caps them."""
    source = tmp_path / "source"
    theirs = tiny_wrapper("gemma3", text={"final_logit_softcapping": 1.5})
    theirs.save_pretrained(source)
    assert_converts_and_comes_back(theirs, source, tmp_path)


def test_inspect_says_what_stands_inside(zoo, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text("qwen2")}))
    code, out, _ = zoo("inspect", str(tmp_path / "config.json"))
    assert code == 0 and "ZooForCausalLM (from llava around qwen2)" in out
