"""Storage formats of four bits and less: DeepSeek-V4's experts and BitNet, by number and by transformers' own code."""

import json

import pytest
import torch
from packed_checkpoints import is_projection, packed_checkpoint
from safetensors.torch import save_file
from test_formats import FP8, QUIET, comes_back
from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights

from conversion import ConversionError, convert
from conversion.formats.packing import E2M1

BITNET = {"quant_method": "bitnet", "modules_to_not_convert": None}
AUTO = BITNET | {"linear_class": "autobitlinear"}
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def uncompiled():
    """transformers compiles its few lines, which takes longer than they run."""
    with torch.compiler.set_stance("force_eager"):
        yield


# -- DeepSeek-V4 -------------------------------------------------------------------------------------------------------


def in_halves(name, tensor):
    """Two numbers a byte, the first in the low half, 32 columns a scale that is a power of two."""
    if not is_projection(name, tensor):
        return None
    torch.manual_seed(len(name))
    packed = torch.randint(-128, 128, (tensor.shape[0], tensor.shape[1] // 2), dtype=torch.int8)
    scale = torch.exp2(torch.randint(-6, -2, (tensor.shape[0], tensor.shape[1] // 32)).float())
    numbers = torch.empty(tensor.shape)
    for i in range(tensor.shape[0]):
        for j in range(tensor.shape[1]):
            byte = int(packed[i, j // 2]) & 255
            numbers[i, j] = E2M1[byte >> 4 if j % 2 else byte & 15] * scale[i, j // 32]
    return {name: packed, name.removesuffix("weight") + "scale": scale.to(torch.float8_e8m0fnu)}, numbers


def test_fp4_beside_fp8(tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "llama", in_halves, FP8 | {"expert_dtype": "fp4"}, **SIZES)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def test_fp4_is_what_transformers_reads(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from conversion.formats.fp8 import decode_halves

    packed = torch.randint(-128, 128, (32, 48), dtype=torch.int8)
    scale = torch.exp2(torch.randint(-6, 6, (32, 3)).float()).to(torch.float8_e8m0fnu)
    theirs = Fp8Dequantize(None)._dequantize_one(packed, scale, torch.float32)
    assert torch.equal(decode_halves(torch.float32, packed, scale), theirs)


def test_fp4_with_scales_that_do_not_fit(tmp_path):
    def too_few(name, tensor):
        packed = in_halves(name, tensor)
        return packed and ({key: part[:-1] if "scale" in key else part for key, part in packed[0].items()}, packed[1])

    packed_checkpoint(tmp_path / "packed", "llama", too_few, FP8, **SIZES)
    with pytest.raises(ConversionError, match="32 numbers belong to each scale"):
        convert(tmp_path / "packed", tmp_path / "zoo", **QUIET)


# -- BitNet ------------------------------------------------------------------------------------------------------------


def in_quarters(times):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        torch.manual_seed(len(name))
        packed = pack_weights(torch.randint(-1, 2, tensor.shape).float())
        scale = torch.rand(1) + 0.5
        numbers = unpack_weights(packed, torch.float32)
        return {name: packed, f"{name}_scale": scale}, numbers * scale if times else numbers * (1 / scale)

    return pack


def as_trained(name, tensor):
    return ({name: tensor}, WeightQuant.apply(tensor)) if is_projection(name, tensor) else None


def in_plain_numbers(name, tensor):
    packed = in_quarters(True)(name, tensor)
    return packed and ({**packed[0], name: unpack_weights(packed[0][name], torch.bfloat16)}, packed[1])


@pytest.mark.parametrize(
    ("pack", "scheme"),
    [
        (in_quarters(False), BITNET),
        (in_quarters(True), AUTO | {"quantization_mode": "offline"}),
        (in_plain_numbers, AUTO | {"quantization_mode": "offline"}),
        (as_trained, AUTO | {"quantization_mode": "online"}),
    ],
    ids=["divided", "multiplied", "not packed", "as trained"],
)
def test_bitnet(pack, scheme, tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, **SIZES)
    comes_back(tmp_path / "packed", "llama", numbers, tmp_path)


def scale_lost(tensors, scheme):
    del tensors[next(name for name in tensors if name.endswith("weight_scale"))]


def weight_lost(tensors, scheme):
    del tensors[next(name for name in tensors if name.endswith("q_proj.weight"))]


def with_norms(tensors, scheme):
    scheme["use_rms_norm"] = True


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (scale_lost, "weight_scale' of one number: the checkpoint is incomplete"),
        (weight_lost, "weight_scale' is a scale without a weight"),
        (with_norms, "use_rms_norm: norms inside linear layers are not read"),
    ],
)
def test_bitnet_that_is_incomplete(damage, said, tmp_path):
    from safetensors.torch import load_file

    folder = tmp_path / "packed"
    packed_checkpoint(folder, "llama", in_quarters(True), AUTO, **SIZES)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damage(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=said):
        convert(folder, tmp_path / "zoo", **QUIET)
