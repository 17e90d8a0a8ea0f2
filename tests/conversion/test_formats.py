"""Storage formats: packed checkpoints become the numbers they stand for, against slow references and live libraries."""

import json
from itertools import product
from math import ceil

import pytest
import torch
from checkpoint_checks import assert_same_tensors, batch, tensors_of
from packed_checkpoints import is_projection, packed_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, load

QUIET = {"progress": False}
# Sides that are no multiple of a block.
SIZES = {"hidden_size": 192, "intermediate_size": 320}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def comes_back(folder, model_type, numbers, tmp_path):
    """`load` and `convert` read the checkpoint as `numbers`, with which transformers' own class computes the same."""
    convert(folder, tmp_path / "zoo", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to=model_type, **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "back"), numbers)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization_config" not in json.dumps(config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    ours = load(folder).float().eval()
    inputs = batch(ours.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=2e-4, rtol=2e-4)


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
    [("deepseek_v3", torch.float32), ("qwen3", torch.bfloat16), ("deepseek_v3", torch.float8_e8m0fnu)],
    ids=["deepseek", "qwen", "powers of two"],
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
    packed_checkpoint(tmp_path / "packed", "llama", in_blocks(torch.float32), FP8, **SIZES)
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
