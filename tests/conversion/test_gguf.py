"""GGUF in: files written by gguf-py from tiny models, against transformers' own class on what is stored."""

import json
import os

import pytest
import torch
from checkpoint_checks import assert_same_tensors, batch, tensors_of
from gguf_files import write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from conversion import ConversionError, convert, load
from conversion.engine import streaming
from conversion.layouts import gguf as gguf_layout
from zoo import inspect

QUIET = {"progress": False}
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {
    "llama": ("llama", {"rope_theta": 500.0}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("llama", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"rope_theta": 5000.0}),
    "qwen2_moe": ("qwen2moe", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_moe": ("qwen3moe", EXPERTS | {"norm_topk_prob": True}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 5}),
    "gemma3_text": ("gemma3", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 5}),
}


def tiny(kind, tmp_path):
    """A model of transformers at random, and its tensors as it saves them."""
    architecture, options = MODELS[kind]
    config = AutoConfig.for_model(kind.split()[0], **SIZES | options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "theirs")
    return architecture, model, tensors_of(tmp_path / "theirs")


@pytest.mark.parametrize("kind", MODELS)
def test_numbers_of_32_bits_come_in_exactly(kind, tmp_path):
    architecture, theirs, tensors = tiny(kind, tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture, theirs.config, tensors)
    ours, inputs = load(path).eval(), batch(96)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=2e-5, rtol=2e-5)
    convert(path, tmp_path / "zoo", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to=theirs.config.model_type, **QUIET)
    exact = not kind.startswith("gemma")  # 1 + weight was rounded when it was written
    back = tensors_of(tmp_path / "back")
    if exact:
        assert_same_tensors(back, tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("storage", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_blocks_come_in_as_gguf_py_reads_them(kind, storage, tmp_path):
    architecture, theirs, tensors = tiny(kind, tmp_path)
    path = tmp_path / "model.gguf"
    stored = write_gguf(path, architecture, theirs.config, tensors, storage)
    expected = {}
    for name, tensor in stored.items():
        if name in tensors:
            expected[name] = tensor
        else:
            head, _, tail = name.partition(".experts.")
            expected |= {f"{head}.experts.{i}.{tail}": one for i, one in enumerate(tensor)}
    for dtype in (None, "float32"):
        folder = tmp_path / str(dtype)
        convert(path, folder / "zoo", dtype=dtype, **QUIET)
        convert(folder / "zoo", folder / "back", to=kind, **QUIET)
        target = torch.float32 if dtype else torch.float16 if storage == "F16" else torch.bfloat16
        assert_same_tensors(tensors_of(folder / "back"), {name: one.to(target) for name, one in expected.items()})


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_blocks_of_256_are_those_of_gguf_py(kind, tmp_path):
    """gguf-py reads these blocks and cannot write them: random ones, with scales that are numbers."""
    import gguf
    import numpy as np

    from conversion.layouts.gguf import GgufCheckpoint

    number_type = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number_type]
    data = np.random.default_rng(0).integers(0, 255, (8, 512 // block * size), dtype=np.uint8)
    view = data.reshape(-1, size)
    for start in {"Q4_K": (0, 2), "Q6_K": (size - 2,)}[kind]:
        view[:, start : start + 2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in {"embedding_length": 512, "attention.head_count": 2, "attention.head_count_kv": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=number_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufCheckpoint(tmp_path / "m.gguf", torch.float32).read("model.layers.0.mlp.up_proj.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(data, number_type).copy())
    assert read.isfinite().all() and torch.equal(read, expected) and expected.shape == (8, 512)


def test_factors_of_llama_3_become_its_rotation(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    config = AutoConfig.for_model("llama", **SIZES | {"rope_parameters": scaling})
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", config, theirs.state_dict(), further={"rope_freqs.weight": factors})
    inputs = batch(96)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
    write_gguf(path, "llama", config, theirs.state_dict(), further={"rope_freqs.weight": factors * 1.5})
    with pytest.raises(ConversionError, match="rotation factors that are not Llama 3's"):
        load(path)


def written(tmp_path, **changes):
    architecture, theirs, tensors = tiny("qwen3", tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf(path, changes.pop("architecture", architecture), theirs.config, tensors, **changes)
    return path


def test_another_architecture_is_refused_by_name(tmp_path):
    path = written(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"qwen3", b"bloom"))
    with pytest.raises(ConversionError, match="architecture 'bloom', which is not read here .known are llama, qwen2"):
        convert(path, tmp_path / "zoo", **QUIET)


def test_a_file_that_was_cut_off_is_refused_in_one_sentence(tmp_path):
    path = written(tmp_path)
    for size in (0, 100, 3000, len(path.read_bytes()) - 1000):
        path.write_bytes(path.read_bytes()[:size] if size else b"")
        with pytest.raises(ConversionError, match="cut off or damaged") as refusal:
            convert(path, tmp_path / "zoo", **QUIET)
        assert "\n" not in str(refusal.value)
        path = written(tmp_path)


def test_without_gguf_py_a_sentence_says_so(tmp_path, monkeypatch):
    path = written(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConversionError, match="pip install gguf"):
        convert(path, tmp_path / "zoo", **QUIET)


def test_a_missing_part_is_named(tmp_path):
    path = written(tmp_path)
    path = path.rename(tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(ConversionError, match="lacks model-00002-of-00002.gguf"):
        convert(path, tmp_path / "zoo", **QUIET)


def test_the_report_says_what_was_read(tmp_path):
    path = written(tmp_path, kind="Q8_0")
    report = convert(path, tmp_path / "zoo", **QUIET)
    assert (report.read_as, report.read_bytes) == ("GGUF (Q8_0)", path.stat().st_size)
    assert report.written_as == "bfloat16" and report.written_bytes == 2 * report.parameters
    assert json.loads((tmp_path / "zoo/source/manifest.json").read_text())["stored_as"] == "GGUF (Q8_0)"


def test_blocks_are_not_kept_and_not_rounded_again(tmp_path):
    path = written(tmp_path, kind="Q8_0")
    with pytest.raises(ConversionError, match="is GGUF, which is read and not written here: keep the file itself"):
        convert(path, tmp_path / "zoo", keep_quantized=True, **QUIET)
    with pytest.raises(ConversionError, match=r"is quantised already \(GGUF \(Q8_0\)\)"):
        convert(path, tmp_path / "zoo", quantize="fp8-block", **QUIET)


@pytest.mark.parametrize(
    ("place", "said"), [("outside", "leads out of the folder"), ("missing", "no file"), ("pipe", "no file")]
)
@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_a_file_found_in_a_folder_is_its_own(place, said, part, tmp_path):
    path, folder = written(tmp_path), tmp_path / "folder"
    folder.mkdir()
    other = folder / ("model-00002-of-00002.gguf" if part else "model.gguf")
    if part:
        path.rename(folder / "model-00001-of-00002.gguf")
    if place == "pipe":
        os.mkfifo(other)
    else:
        other.symlink_to(tmp_path / ("theirs/model.safetensors" if place == "outside" else "folder/nowhere"))
    for source in (folder, folder / "model-00001-of-00002.gguf") if part else (folder,):
        for read in (convert, inspect):
            with pytest.raises(ValueError, match=said):
                read(source, tmp_path / "zoo") if read is convert else read(str(source))


def test_the_tokenizer_inside_is_written(tmp_path):
    from transformers import AutoTokenizer

    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokens = {"vocabulary": ["<|endoftext|>", *letters, "Ġ", "th", "the"], "merges": ["t h", "th e"]}
    path = written(tmp_path, tokens=tokens)
    report = convert(path, tmp_path / "zoo", **QUIET)
    assert not report.lacks_tokenizer
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "zoo")
    ids = tokenizer("the cat")["input_ids"]
    assert [tokens["vocabulary"][one] for one in ids] == ["the", "Ġ", "c", "a", "t"]
    assert tokenizer.decode(ids) == "the cat"


def test_the_command_line(tmp_path, capsys):
    from zoo.cli.main import app, run

    path = written(tmp_path, kind="Q8_0")
    assert run(app, "zoo", ["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["stored_as"], report["stored_bytes"]) == ("GGUF (Q8_0)", path.stat().st_size)
    assert run(app, "zoo", ["convert", str(path), str(tmp_path / "zoo")]) == 0
    assert "tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_parts_are_what_is_decoded_at_once(kind, tmp_path, monkeypatch):
    """Rows of a head together, as llama.cpp orders them."""
    architecture, theirs, tensors = tiny(kind, tmp_path)
    write_gguf(tmp_path / "model.gguf", architecture, theirs.config, tensors, "Q8_0")
    convert(tmp_path / "model.gguf", tmp_path / "whole", **QUIET)
    monkeypatch.setattr(streaming, "PART", 4096)
    monkeypatch.setattr(gguf_layout, "_AT_ONCE", 1024)
    convert(tmp_path / "model.gguf", tmp_path / "parts", **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole"))
