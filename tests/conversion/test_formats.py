"""Storage formats: packed checkpoints become the numbers they stand for, against slow references and live libraries."""

import json
from itertools import product
from math import ceil

import pytest
import torch
from checkpoint_checks import assert_same_tensors, batch, tensors_of
from packed_checkpoints import is_projection, packed_checkpoint
from safetensors.torch import load_file, save_file
from samples import only
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, load
from zoo import inspect

QUIET = {"progress": False}
# Sides that are no multiple of a block.
SIZES = {"hidden_size": 192, "intermediate_size": 320}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


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


def by_number(q, factor_at):
    """float32(q) · factor, one number at a time."""
    q = q.float()
    factors = [[float(factor_at(i, j)) for j in range(q.shape[1])] for i in range(q.shape[0])]
    return q * torch.tensor(factors)


def in_blocks(scale_dtype, rows=128, columns=128, ending="_scale_inv"):
    def pack(name, tensor):
        if not is_projection(name, tensor) or tensor.dim() != 2:
            return None
        grid = torch.empty(ceil(tensor.shape[0] / rows), ceil(tensor.shape[1] / columns))
        q = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                factor = tensor[part].float().abs().max() / 448
                if scale_dtype in (torch.uint8, torch.float8_e8m0fnu):
                    factor = torch.exp2(torch.ceil(torch.log2(factor)))
                grid[i, j] = factor.to(torch.bfloat16) if scale_dtype == torch.bfloat16 else factor
                q[part] = (tensor[part].float() / grid[i, j]).to(q.dtype)
        scale = (grid.log2() + 127).to(torch.uint8) if scale_dtype == torch.uint8 else grid.to(scale_dtype)
        return {name: q, name + ending: scale}, by_number(q, lambda i, j: grid[i // rows, j // columns])

    return pack


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


def per_row(name, tensor):
    if not is_projection(name, tensor):
        return None
    scale = tensor.float().abs().amax(dim=1, keepdim=True) / 448
    q = (tensor.float() / scale).to(torch.float8_e4m3fn)
    return {name: q, name + "_scale": scale}, by_number(q, lambda i, j: scale[i, 0])


def with_one_scale(name, tensor):
    if not is_projection(name, tensor):
        return None
    scale = tensor.float().abs().max() / 448
    q = (tensor.float() / scale).to(torch.float8_e4m3fn)
    beside = {name.removesuffix("weight") + "activation_scale": torch.tensor(0.5)}
    return {name: q, name + "_scale_inv": scale} | beside, by_number(q, lambda i, j: scale)


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


def gpt_oss_experts(name, tensor):
    """Experts `[E, in, out]` as blocks and scales of `[E, out, in]`, their numbers worked out one by one."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return None
    generator = torch.Generator().manual_seed(len(name))
    experts, width, out = tensor.shape
    blocks = torch.randint(256, (experts, out, width // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(118, 124, (experts, out, width // 32), generator=generator, dtype=torch.uint8)
    levels = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    numbers = torch.empty(experts, width, out)
    for e, o in product(range(experts), range(out)):
        rows, exponents = blocks[e, o].tolist(), scales[e, o].tolist()
        for i in range(width):
            byte = rows[i // 32][i % 32 // 2]
            code = byte >> 4 if i % 2 else byte & 15
            value = levels[code & 7] * 2.0 ** (exponents[i // 32] - 127)
            numbers[e, i, o] = -value if code & 8 else value
    return {name + "_blocks": blocks, name + "_scales": scales}, numbers


MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


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

WHOLE = {"num_bits": 8, "type": "float", "symmetric": True}
INT = {"type": "int", "symmetric": True, "strategy": "group"}
# format -> settings of the weights: every strategy, width and sign that checkpoints are published in.
COMPRESSED = {
    "float, a tensor": ("float-quantized", WHOLE | {"strategy": "tensor"}),
    "float, rows": ("float-quantized", WHOLE | {"strategy": "channel"}),
    "float, blocks": ("float-quantized", WHOLE | {"strategy": "block", "block_structure": [16, 32]}),
    "int, rows": ("int-quantized", INT | {"num_bits": 8, "strategy": "channel"}),
    "int, rows, shifted": ("int-quantized", INT | {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "4 bits": ("pack-quantized", INT | {"num_bits": 4, "group_size": 16}),
    "4 bits, shifted": ("pack-quantized", INT | {"num_bits": 4, "group_size": 16, "symmetric": False}),
    "3 bits, rows": ("pack-quantized", INT | {"num_bits": 3, "strategy": "channel"}),
    "5 bits, shifted": ("pack-quantized", INT | {"num_bits": 5, "group_size": 16, "symmetric": False}),
    "8 bits": ("pack-quantized", INT | {"num_bits": 8, "group_size": 16}),
    "NVFP4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    "MXFP4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
}


def statistics(matrix, settings):
    """Scale and zero point of a matrix as the library expects them, odd ones."""
    rows, columns = matrix.shape
    group = settings.get("group_size")
    grid = {
        "tensor": (1,), "channel": (rows, 1), "block": (ceil(rows / 16), ceil(columns / 32)),
    }.get(settings["strategy"]) or (rows, columns // group)  # fmt: skip
    generator = torch.Generator().manual_seed(rows * columns)
    scale = torch.rand(grid, generator=generator) * 0.01 + 0.003
    bits = settings["num_bits"]
    zero = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), grid, generator=generator).to(torch.int8)
    return scale, zero


def by_library(format_name, settings):
    """A pack that leaves both ways to the library that writes such checkpoints."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    compressor = BaseCompressor.get_value_from_registry(format_name)
    scheme = QuantizationScheme(targets=["Linear"], weights=settings)

    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        scale, zero = statistics(tensor, settings)
        parts = {"weight": tensor, "weight_scale": scale.to(tensor.dtype)}
        if not settings.get("symmetric", True):
            parts["weight_zero_point"] = zero
        if format_name.startswith("nvfp4"):
            parts |= {"weight_scale": (scale * 3000).to(torch.float8_e4m3fn).to(tensor.dtype)}
            parts |= {"weight_global_scale": torch.tensor([2991.0])}
        if format_name.startswith("mxfp4"):
            parts["weight_scale"] = torch.exp2(torch.round(torch.log2(scale))).to(tensor.dtype)
        stored = compressor.compress(parts, scheme)
        numbers = compressor.decompress(dict(stored), scheme)["weight"]
        module = name.removesuffix("weight")
        # Beside activations of eight bits.
        stored["input_scale"] = torch.ones(1)
        return {module + part: value for part, value in stored.items()}, numbers

    return pack


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


def nvfp4(name, tensor):
    """Random codes, their numbers worked out one by one."""
    if not is_projection(name, tensor):
        return None
    rows, columns = tensor.shape
    generator = torch.Generator().manual_seed(rows * columns)
    packed = torch.randint(256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(rows, columns // 16, generator=generator) * 400).to(torch.float8_e4m3fn)
    second, levels = torch.tensor(1.7e-4), [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    numbers = torch.empty(rows, columns)
    for o, i in product(range(rows), range(columns)):
        code = int(packed[o, i // 2]) >> (4 if i % 2 else 0) & 15
        numbers[o, i] = levels[code & 7] * (-1.0 if code & 8 else 1.0)
    numbers *= (scale.float() * second).repeat_interleave(16, dim=1)
    stored = {name: packed, name + "_scale": scale, name + "_scale_2": second}
    return stored | {name.removesuffix("weight") + "input_scale": torch.tensor(1.0)}, numbers


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


def fields(rows, bits, order=None):
    """Numbers `[n][count]` -> int32 words, written bit by bit: number k into field order[k % 8] of its eight."""
    words = []
    for row in rows:
        stream = [0] * (len(row) * bits)
        for k, number in enumerate(row):
            place = k if order is None else k // 8 * 8 + order[k % 8]
            for bit in range(bits):
                stream[place * bits + bit] = number >> bit & 1
        words.append([sum(b << k for k, b in enumerate(stream[i : i + 32])) for i in range(0, len(stream), 32)])
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def random_groups(tensor, bits, group):
    """(codes [in, out], zeros [groups, out], scales [groups, out]) of a matrix [out, in]."""
    out, inputs = tensor.shape
    generator = torch.Generator().manual_seed(out * inputs)
    codes, zeros = (torch.randint(2**bits, (n, out), generator=generator) for n in (inputs, -(-inputs // group)))
    return codes, zeros, (torch.rand(zeros.shape, generator=generator) * 0.01 + 0.002).half()


def gptq(bits, group, version, in_order):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        codes, zeros, scales = random_groups(tensor, bits, group)
        inputs = len(codes)
        group_of = torch.arange(inputs) // group
        if not in_order:
            group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
        numbers = torch.empty(tensor.shape)
        for i in range(inputs):
            g = int(group_of[i])
            numbers[:, i] = scales[g].float() * (codes[i] - zeros[g])
        said = zeros - 1 if version == "gptq" else zeros
        layer = name.removesuffix("weight")
        stored = {
            layer + "qweight": fields(codes.T.tolist(), bits).T,
            layer + "qzeros": fields((said % 2**bits).tolist(), bits),
            layer + "scales": scales,
            layer + "g_idx": group_of.int(),
        }
        return stored, numbers

    return pack


# Sides that words of every width come out even on.
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


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
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        codes, zeros, scales = random_groups(tensor, 4, 16)
        numbers = torch.empty(tensor.shape)
        for i in range(len(codes)):
            numbers[:, i] = scales[i // 16].float() * (codes[i] - zeros[i // 16])
        layer, order = name.removesuffix("weight"), [0, 4, 1, 5, 2, 6, 3, 7]
        stored = {
            layer + "qweight": fields(codes.tolist(), 4, order),
            layer + "qzeros": fields(zeros.tolist(), 4, order),
            layer + "scales": scales,
        }
        return stored, numbers

    scheme = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    numbers = packed_checkpoint(tmp_path / "packed", "qwen2", pack, scheme, torch.float16, **EVEN)
    comes_back(tmp_path / "packed", "qwen2", numbers, tmp_path)


# -- bitsandbytes and torchao ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(kind, nested, tmp_path):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        packed, state = quantize_4bit(tensor, quant_type=kind, compress_statistics=nested)
        stored = {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        return {name: packed} | stored, dequantize_4bit(packed, state)

    scheme = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    sizes = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 64, "num_attention_heads": 2}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, **sizes)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_bitsandbytes_in_eight_bits(tmp_path):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        scale = tensor.float().abs().amax(dim=1)
        q = (tensor.float() * 127 / scale.unsqueeze(1)).round().to(torch.int8)
        layer = name.removesuffix("weight")
        stored = {name: q, layer + "SCB": scale, layer + "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return stored, by_number(q, lambda i, j: scale[i] / 127)

    scheme = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_torchao_in_eight_bits(tmp_path):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 120
        zero = torch.arange(len(tensor)).remainder(7).sub(3).to(torch.int8).unsqueeze(1)
        q = ((tensor.float() / scale).round() + zero).to(torch.int8)
        layer = name.removesuffix("weight")
        stored = {"_weight_qdata": q, "_weight_scale": scale, "_weight_zero_point": zero}
        return {layer + part: value for part, value in stored.items()}, (q.float() - zero.float()) * scale

    scheme = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)
