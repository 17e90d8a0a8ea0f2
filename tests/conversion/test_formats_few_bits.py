"""Storage formats of four bits and less: DeepSeek-V4's experts and BitNet, by number and by transformers' own code."""

import json

import pytest
import torch
from packed_checkpoints import packed_checkpoint
from packs import as_trained, in_halves, in_plain_numbers, in_quarters
from safetensors.torch import save_file
from storage_formats import AUTO, BITNET, FEW_BITS, FP8
from test_formats import QUIET, comes_back

from conversion import ConversionError, convert


@pytest.fixture(autouse=True)
def uncompiled():
    """transformers compiles its few lines, which takes longer than they run."""
    with torch.compiler.set_stance("force_eager"):
        yield


# -- DeepSeek-V4 -------------------------------------------------------------------------------------------------------


def test_fp4_beside_fp8(tmp_path):
    numbers = packed_checkpoint(tmp_path / "packed", "llama", in_halves, FP8 | {"expert_dtype": "fp4"}, **FEW_BITS)
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

    packed_checkpoint(tmp_path / "packed", "llama", too_few, FP8, **FEW_BITS)
    with pytest.raises(ConversionError, match="32 numbers belong to each scale"):
        convert(tmp_path / "packed", tmp_path / "zoo", **QUIET)


# -- BitNet ------------------------------------------------------------------------------------------------------------


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
    numbers = packed_checkpoint(tmp_path / "packed", "llama", pack, scheme, **FEW_BITS)
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
    packed_checkpoint(folder, "llama", in_quarters(True), AUTO, **FEW_BITS)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damage(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=said):
        convert(folder, tmp_path / "zoo", **QUIET)
