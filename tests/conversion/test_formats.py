"""Storage formats: packed checkpoints become the numbers they stand for, against slow references and live libraries."""

import json

import pytest
import torch
from checkpoint_checks import assert_same_tensors, batch, tensors_of
from packed_checkpoints import packed_checkpoint
from packs import (
    awq,
    bitsandbytes,
    bitsandbytes_int8,
    by_library,
    gpt_oss_experts,
    gptq,
    in_blocks,
    nvfp4,
    per_row,
    torchao,
    with_one_scale,
)
from safetensors.torch import load_file, save_file
from samples import only
from storage_formats import AWQ, COMPRESSED, EVEN, EVEN_64, FP8, INT, MXFP4, NF4, SIZES, TORCHAO
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, load
from zoo import inspect

QUIET = {"progress": False}


def comes_back(folder, model_type, numbers, tmp_path):
    """`load` and `convert` read the checkpoint as `numbers`, with which transformers' own class computes the same."""
    says_what_it_read(convert(folder, tmp_path / "zoo", **QUIET), folder, tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "back", to=model_type, **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "back"), numbers)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization_config" not in json.dumps(config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    ours = load(folder).float().eval()
    inputs = batch(ours.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=2e-4, rtol=2e-4)


def says_what_it_read(report, folder, target):
    """The report and `zoo inspect` name the format, and the bytes and parameters that are in the files."""
    read, written = (sum(t.numel() * t.element_size() for t in tensors_of(path).values()) for path in (folder, target))
    inspected, beside = inspect(str(folder)), folder / "hf_quant_config.json"
    scheme = json.loads((folder / "config.json").read_text()).get("quantization_config")
    assert (report.read_as, report.read_bytes) == (inspected["stored_as"], inspected["stored_bytes"])
    assert report.read_bytes == read and report.written_bytes == written
    assert report.read_as.startswith(scheme["quant_method"] if scheme else "modelopt") and (scheme or beside.exists())
    assert report.written_as in ("bfloat16", "float16", "float32")
    assert report.parameters == inspected["parameters"]


# -- FP8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "scale_dtype"),
    [
        pytest.param("deepseek_v3", torch.float32, id="deepseek"),
        pytest.param("qwen3", torch.bfloat16, id="qwen", marks=pytest.mark.long),
        pytest.param("deepseek_v3", torch.float8_e8m0fnu, id="powers of two", marks=pytest.mark.long),
    ],
)
def test_fp8_in_blocks(model_type, scale_dtype, tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", model_type, in_blocks(scale_dtype), FP8, **SIZES)
    comes_back(tmp_path / "packed", model_type, numbers, tmp_path)


def test_fp8_in_small_blocks_with_exponents(tmp_path):
    scheme = FP8 | {"weight_block_size": [1, 32]}
    pack = in_blocks(torch.uint8, 1, 32)
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, hidden_size=48, intermediate_size=80)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


@pytest.mark.parametrize(
    ("pack", "scheme"),
    [
        (per_row, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
        (with_one_scale, FP8 | {"activation_scheme": "static", "weight_block_size": None}),
    ],
    ids=["a scale per row", "one scale"],
)
def test_fp8_without_blocks(pack, scheme, tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "mistral", pack, scheme)
    comes_back(tmp_path / "packed", "mistral", numbers, tmp_path)


def test_a_dtype_is_rounded_to_once(tmp_path):
    """float32 keeps every digit of q · scale; what is written is one rounding away from it."""
    numbers = packed_checkpoint(tmp_path / "packed", "llama", per_row, {"quant_method": "fbgemm_fp8"}, torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        convert(tmp_path / "packed", tmp_path / name, dtype=dtype, **QUIET)
        convert(tmp_path / name, tmp_path / f"{name}-back", to="llama", **QUIET)
        assert_same_tensors(tensors_of(tmp_path / f"{name}-back"), {key: t.to(dtype) for key, t in numbers.items()})


# -- MXFP4 -------------------------------------------------------------------------------------------------------------


def test_mxfp4(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    numbers = packed_checkpoint(tmp_path / "packed", "gpt_oss", gpt_oss_experts, MXFP4, **sizes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16).state_dict()
    assert_same_tensors({name: theirs[name] for name in numbers}, numbers)
    comes_back(tmp_path / "packed", "gpt_oss", numbers, tmp_path)


# -- what does not fit -------------------------------------------------------------------------------------------------


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


PROJECTION = "model.layers.0.self_attn.q_proj.weight"
WRONG_FP8 = {
    "a weight without its scale": (lambda t: t.pop(PROJECTION + "_scale_inv"), f"'{PROJECTION}' is .* no scale"),
    "a scale without its weight": (lambda t: t.pop(PROJECTION), f"'{PROJECTION}_scale_inv' is a scale without"),
    "a scale of plain numbers": (
        lambda t: t.update({PROJECTION: t[PROJECTION].bfloat16()}),
        f"'{PROJECTION}_scale_inv' is a scale without a weight of eight bits",
    ),
    "a grid that does not fit": (
        lambda t: t.update({PROJECTION + "_scale_inv": torch.ones(3, 1)}),
        r"_scale_inv' is \[3, 1\] beside .* of \[\d+, 192\], but blocks of 128 × 128 make it \[\d, 2\]",
    ),
}


@pytest.mark.parametrize("fault", WRONG_FP8)
def test_what_does_not_fit_is_named(fault, tmp_path):
    change, match = WRONG_FP8[fault]
    packed_checkpoint(tmp_path / "packed", "llama", in_blocks(torch.float32), FP8, num_hidden_layers=1, **SIZES)
    change_tensors(tmp_path / "packed", change)
    with pytest.raises(ConversionError, match=match):
        convert(tmp_path / "packed", tmp_path / "zoo", **QUIET)
    with pytest.raises(ConversionError, match=match):
        load(tmp_path / "packed")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("missing", ["_blocks", "_scales"])
def test_half_a_pair_of_mxfp4_is_named(missing, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    packed_checkpoint(tmp_path / "packed", "gpt_oss", gpt_oss_experts, MXFP4, **sizes)
    name = "model.layers.0.mlp.experts.down_proj"
    change_tensors(tmp_path / "packed", lambda tensors: tensors.pop(name + missing))
    with pytest.raises(ConversionError, match=f"'{name}_.*(no scales|without blocks)"):
        load(tmp_path / "packed")


def test_an_unknown_scheme_is_named(tmp_path):
    packed_checkpoint(tmp_path / "packed", "llama", per_row, {"quant_method": "vptq"})
    with pytest.raises(ConversionError, match=r"quantised \(vptq\), which is not read here \(known are .*fp8"):
        load(tmp_path / "packed")


def test_plain_weights_that_are_said_to_be_packed(tmp_path):
    packed_checkpoint(tmp_path / "packed", "llama", lambda name, tensor: None, FP8)
    with pytest.raises(ConversionError, match=r"quantised \(fp8\), but none of its tensors is stored so"):
        load(tmp_path / "packed")


def test_inspect_says_the_format_and_the_bytes_of_the_files(tmp_path, zoo):
    packed_checkpoint(tmp_path / "packed", "llama", in_blocks(torch.float32), FP8, num_hidden_layers=1, **SIZES)
    convert(tmp_path / "packed", tmp_path / "zoo", **QUIET)
    for folder, word in ((tmp_path / "packed", "fp8 (e4m3)"), (tmp_path / "zoo", "bfloat16")):
        size = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
        code, out, err = zoo("inspect", folder, "--json")
        assert (code, err) == (0, "")
        report = json.loads(out)
        assert (report["stored_as"], report["stored_bytes"]) == (word, size)
        assert report["parameters"] * 2 == report["bytes"]
        code, out, err = zoo("inspect", folder)
        assert (code, err) == (0, "") and f"stored as   {word}, " in out


# -- compressed-tensors ------------------------------------------------------------------------------------------------


OFTEN = ("float, blocks", "5 bits, shifted", "NVFP4", "MXFP4")


@pytest.mark.parametrize("kind", only(OFTEN, COMPRESSED))
def test_compressed_tensors(kind, tmp_path):
    format_name, settings = COMPRESSED[kind]
    scheme = {
        "quant_method": "compressed-tensors", "format": format_name, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}}, "ignore": ["lm_head"],
    }  # fmt: skip
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 24, "num_attention_heads": 4}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", by_library(format_name, settings), scheme, **sizes)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_groups_of_columns_in_any_order(tmp_path):
    """`weight_g_idx`, as older checkpoints with activation order have it, in one of two groups of layers."""
    settings = INT | {"num_bits": 4, "group_size": 16}
    plain = by_library("pack-quantized", settings)

    def pack(name, tensor):
        if (packed := plain(name, tensor)) is None or "self_attn" in name:
            return packed and eight(name, tensor)
        stored, numbers = packed
        scale, columns = stored[name + "_scale"].float(), tensor.shape[1]
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
        group_of = (torch.arange(columns) // 16)[order].int()
        integers = numbers.float() / scale.repeat_interleave(16, dim=1)
        stored[name + "_g_idx"] = group_of
        rows = [[float(scale[o, group_of[i]]) for i in range(columns)] for o in range(len(scale))]
        return stored, integers.round() * torch.tensor(rows)

    eight = by_library("int-quantized", INT | {"num_bits": 8, "strategy": "channel"})
    groups = {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": INT | {"num_bits": 8, "strategy": "channel"}},
        "rest": {"targets": ["Linear"], "weights": settings | {"actorder": "group"}},
    }
    scheme = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 24, "num_attention_heads": 4}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, **sizes)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


# -- ModelOpt ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["hf_quant_config.json", "config.json"])
@pytest.mark.parametrize(("pack", "algorithm"), [(nvfp4, "NVFP4"), (with_one_scale, "FP8")], ids=["NVFP4", "FP8"])
def test_modelopt(pack, algorithm, beside, tmp_path):
    inner = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    sizes = {"hidden_size": 48, "intermediate_size": 80, "head_dim": 24, "num_attention_heads": 2}
    scheme = {"quant_method": "modelopt"} | inner
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, **sizes)
    if beside:
        config = json.loads((tmp_path / "packed" / "config.json").read_text())
        del config["quantization_config"]
        (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
        said = {"producer": {"name": "modelopt"}, "quantization": inner}
        (tmp_path / "packed" / "hf_quant_config.json").write_text(json.dumps(said))
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


# -- GPTQ and AWQ ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "version", "in_order"),
    [
        (4, "gptq", False),
        (3, "gptq", True),
        (2, "gptq_v2", True),
        pytest.param(4, "gptq", True, marks=pytest.mark.long),
        pytest.param(8, "gptq", False, marks=pytest.mark.long),
    ],
)
def test_gptq(bits, version, in_order, tmp_path):
    scheme = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": not in_order, "sym": False}
    scheme["checkpoint_format"] = version
    pack = gptq(bits, 16, version, in_order)
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, torch.float16, **EVEN)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_awq(tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "qwen2", awq(16), AWQ, torch.float16, **EVEN)
    comes_back(tmp_path / "packed", "qwen2", numbers, tmp_path)


# -- bitsandbytes and torchao ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(kind, nested, tmp_path):
    scheme = NF4 | {"bnb_4bit_quant_type": kind}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", bitsandbytes(kind, nested), scheme, **EVEN_64)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_bitsandbytes_in_eight_bits(tmp_path):
    scheme = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", bitsandbytes_int8, scheme)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_torchao_in_eight_bits(tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "llama", torchao, TORCHAO)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)
