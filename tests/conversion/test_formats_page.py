"""docs/formats.md: its table is of the code, and its commands do what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_checks import assert_same_tensors, tensors_of
from formats_page import JUDGES, PAGE, with_table
from gguf_files import write_gguf
from places import STORIES
from storage_formats import SCHEMES, packed
from transformers import AutoConfig, AutoModelForCausalLM

from conversion.formats.schemes import formats

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
# A clone of https://github.com/ggml-org/llama.cpp, or what holds its converter.
LLAMA_CPP = os.environ.get("LLAMA_CPP")


def test_the_table_is_made_of_the_code():
    assert with_table(PAGE.read_text()) == PAGE.read_text(), "python tests/support/formats_page.py"


def test_every_format_is_in_the_tables_of_the_tests():
    modules = {module.__name__.rpartition(".")[2] for module in formats().values()}
    assert modules <= JUDGES.keys()
    tested = {scheme["quant_method"] for _, _, scheme, _ in SCHEMES.values()}
    assert {formats()[method] for method in tested} == set(formats().values())


def commands():
    """The lines of the page that are shell."""
    return [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


def in_llama_cpp(line, folder):
    """Runs llama.cpp's converter as the page says."""
    words = [word.replace("llama.cpp/", f"{LLAMA_CPP}/") for word in line.split()[1:]]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_the_commands_run(zoo, tmp_path, monkeypatch):
    """Those of llama.cpp where LLAMA_CPP says where it is; else its file is written by gguf-py."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo("convert", published(tmp_path / "theirs"), "ZOO")
    assert code == 0, err
    packed("4 bits", Path("QUANTISED"))
    for line in commands():
        if line.startswith("zoo "):
            code, _, err = zoo(*line.split()[1:])
            assert code == 0, (line, err)
        elif "convert_hf_to_gguf" in line:
            if LLAMA_CPP:
                in_llama_cpp(line.replace("--outtype bf16", "--outtype f32"), tmp_path)
            else:
                write_gguf("model.gguf", "llama", AutoConfig.from_pretrained("FAMILY"), tensors_of("FAMILY"))
    assert_same_tensors(tensors_of("AGAIN"), tensors_of("ZOO"))
    assert_same_tensors(tensors_of("SERVED"), tensors_of("QUANTISED"))
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors_of("FP8").values())


def published(folder):
    """A Llama at random, with sides that blocks of 128 fit, and a tokenizer."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=512, num_key_value_heads=1, max_position_embeddings=64, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in STORIES.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.long
def test_onnx_computes_the_same(zoo, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    zoo("convert", published(tmp_path / "theirs"), "ZOO")
    zoo("convert", "ZOO", "FAMILY", "--to", "llama")
    (program,) = [block for kind, block in BLOCKS if kind == "python"]
    for folder in ("FAMILY", "ZOO"):
        exec(program.replace("FAMILY", folder), {})
        session = runtime.InferenceSession("model.onnx")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for length in (5, 11):
            tokens = torch.randint(1, model.config.vocab_size, (2, length))
            found = torch.tensor(session.run(None, {"input_ids": tokens.numpy()})[0])
            with torch.no_grad():
                torch.testing.assert_close(found, model(tokens).logits, atol=1e-4, rtol=1e-4)
