"""What another weight is stored as in the scheme of an old one: by the library of the format, or number by number."""

from itertools import product
from math import floor, log2

import torch
from packs import fields
from storage_formats import COMPRESSED, SCHEMES
from transformers.integrations import bitnet

LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Two floats of four bits a byte behind a name.
_PACKED = {"modelopt": "", "NVFP4": "_packed", "MXFP4": "_packed", "fp4 beside fp8": "", "mxfp4": "_blocks"}


def encoded(name, parameter, weight, before):
    """{stored name: tensor} of a weight in the scheme of a table's row; `before` has the stored tensors of the old."""
    if name in ("NVFP4", "MXFP4", "modelopt", "fp4 beside fp8", "mxfp4"):
        return floats_of_four_bits(name, parameter, weight.float(), before)
    for beginning, encode in ENCODERS.items():
        if name.startswith(beginning):
            return encode(name, parameter, weight.float(), before)
    return {}


def by_its_pack(name, parameter, weight, before):
    stored, _ = SCHEMES[name][1]()(parameter, weight.to(torch.bfloat16))
    return {key: tensor for key, tensor in stored.items() if "activation" not in key}


def nearest_level(number):
    """Ties to the even code."""
    distance = (LEVELS - abs(number)).abs()
    codes = (distance == distance.min()).nonzero().flatten().tolist()
    return min(codes, key=lambda code: code % 2) + 8 * (number < 0)


def floats_of_four_bits(name, parameter, weight, before):
    """One by one; scales are powers of two, or in FP8 below one of all."""
    size = 16 if name in ("modelopt", "NVFP4") else 32
    groups = weight.unflatten(-1, (-1, size))
    largest, whole = groups.abs().amax(dim=-1), weight.abs().max() / 2688
    if size == 32:
        scales = torch.tensor([2.0 ** (floor(log2(number)) - 2) for number in largest.flatten().tolist()])
        factors = scales = scales.view(largest.shape)
    else:
        scales = (largest / 6 / whole).to(torch.float8_e4m3fn)
        factors = scales.float() * whole
    quotients = (groups / factors.unsqueeze(-1)).flatten(-2)
    codes = torch.tensor([nearest_level(number) for number in quotients.flatten().tolist()]).view(quotients.shape)
    packed = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    if name == "mxfp4":
        packed = packed.unflatten(-1, (-1, 16))
        return {parameter + "_blocks": packed, parameter + "_scales": (scales.log2() + 127).to(torch.uint8)}
    scale = parameter.removesuffix("weight") + "scale" if name == "fp4 beside fp8" else parameter + "_scale"
    scales = (scales.log2() + 127).to(torch.uint8) if before[scale].dtype == torch.uint8 else scales
    found = {parameter + _PACKED[name]: packed, scale: scales.to(before[scale].dtype)}
    if size == 16:
        second = {"modelopt": ("_scale_2", whole), "NVFP4": ("_global_scale", 1 / whole)}[name]
        found[parameter + second[0]] = second[1]
    return found


def in_eight_bits(name, parameter, weight, before):
    """Blocks one by one."""
    old, scales = before[parameter], before[parameter + "_scale"]
    largest = 127 if old.dtype == torch.int8 else 448
    q, grid = torch.empty_like(old), scales.clone().view(-1, scales.shape[-1])
    high, wide = (-(-side // count) for side, count in zip(old.shape, grid.shape, strict=True))
    for i, j in product(*map(range, grid.shape)):
        part = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
        grid[i, j] = weight[part].abs().max() / largest
        numbers = (weight[part] / grid[i, j].float()).clamp(-largest, largest)
        q[part] = (numbers.round() if largest == 127 else numbers).to(old.dtype)
    return {parameter: q, parameter + "_scale": grid.view(scales.shape)}


def by_compressed_tensors(name, parameter, weight, before):
    """The library's own scales and zero points, and its own packing."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    format_name, settings = COMPRESSED[name]
    scale = before[parameter + "_scale"]
    groups = weight.unflatten(1, (scale.shape[1], -1))
    args = QuantizationArgs(**settings)
    scales, zeros = calculate_qparams(groups.amin(dim=2), groups.amax(dim=2), args)
    parts = {"weight": weight, "weight_scale": scales.to(scale.dtype).float()}
    if not settings["symmetric"]:
        parts["weight_zero_point"] = zeros
    compressor = BaseCompressor.get_value_from_registry(format_name)
    stored = compressor.compress(parts, QuantizationScheme(targets=["Linear"], weights=settings))
    stored["weight_scale"] = stored["weight_scale"].to(scale.dtype)
    return {parameter.removesuffix("weight") + part: tensor for part, tensor in stored.items()}


def groups_of_integers(name, parameter, weight, before):
    """GPTQ's and AWQ's rounding without data, group by group."""
    scheme, layer = SCHEMES[name][2], parameter.removesuffix("weight")
    top, symmetric = 2 ** scheme["bits"] - 1, scheme.get("sym", False)
    inputs = weight.shape[1]
    group_of = before.get(layer + "g_idx", torch.arange(inputs) // scheme["group_size"]).tolist()
    scales = before[layer + "scales"].clone()
    zeros, codes = [[0] * len(weight) for _ in scales], [[0] * len(weight) for _ in range(inputs)]
    for o, g in product(range(len(weight)), range(len(scales))):
        columns = [i for i in range(inputs) if group_of[i] == g]
        numbers = weight[o, columns]
        low, high = numbers.min().clamp_max(0), numbers.max().clamp_min(0)
        exact = 2 * max(-low, high) / top if symmetric else (high - low) / top
        scales[g, o] = exact
        zeros[g][o] = (top + 1) // 2 if symmetric else min(max(int((-low / exact).round()), 0), top)
        for i, number in zip(columns, (numbers / scales[g, o].float() + zeros[g][o]).tolist(), strict=True):
            codes[i][o] = min(max(round(number), 0), top)
    shift = 1 if name.startswith("gptq") and scheme.get("checkpoint_format") != "gptq_v2" else 0
    zeros = [[zero - shift & top for zero in row] for row in zeros]
    found = {layer + "scales": scales}
    if name == "awq":
        order = [0, 4, 1, 5, 2, 6, 3, 7]
        return found | {layer + "qweight": fields(codes, 4, order), layer + "qzeros": fields(zeros, 4, order)}
    packed = fields([list(row) for row in zip(*codes, strict=True)], scheme["bits"]).T
    return found | {layer + "qweight": packed, layer + "qzeros": fields(zeros, scheme["bits"])}


def by_bitsandbytes(name, parameter, weight, before):
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    if name == "llm.int8":
        q, scale, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weight)
        return {parameter: q, parameter.removesuffix("weight") + "SCB": scale}
    packed, state = quantize_4bit(weight, quant_type=name[:3])
    if "nested" not in name:
        return {parameter: packed, parameter + ".absmax": state.absmax}
    said = next(tensor for key, tensor in before.items() if key.startswith(parameter + ".quant_state"))
    offset = float(bytes(said.tolist()).decode().partition('"nested_offset": ')[2].rstrip("}"))
    codes = before[parameter + ".nested_quant_map"]
    scales, second = quantize_blockwise(state.absmax - offset, code=codes, blocksize=256)
    return {parameter: packed, parameter + ".absmax": scales, parameter + ".nested_absmax": second.absmax}


def by_row(name, parameter, weight, before):
    """torchao's symmetric integers."""
    layer = parameter.removesuffix("weight")
    scale = weight.abs().amax(dim=1, keepdim=True) * 2 / 255
    q = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    zero = torch.zeros_like(before[layer + "_weight_zero_point"])
    return {layer + "_weight_qdata": q, layer + "_weight_scale": scale, layer + "_weight_zero_point": zero}


def by_transformers(name, parameter, weight, before):
    """BitNet's ternary numbers."""
    if name.endswith("as trained"):
        return {parameter: weight.to(torch.bfloat16)}
    factor = weight.abs().mean()
    with torch.compiler.set_stance("force_eager"):
        numbers = bitnet.WeightQuant.apply(weight)
        packed = bitnet.pack_weights((numbers / factor).round())
    return {parameter: packed, parameter + "_scale": (factor if "multiplied" in name else 1 / factor).view(1)}


ENCODERS = {
    "fp8": by_its_pack,
    "modelopt, fp8": by_its_pack,
    "gptq": groups_of_integers,
    "awq": groups_of_integers,
    "nf4": by_bitsandbytes,
    "fp4": by_bitsandbytes,
    "llm.int8": by_bitsandbytes,
    "torchao": by_row,
    "bitnet": by_transformers,
    "int, rows, shifted": by_compressed_tensors,
    "int, rows": in_eight_bits,
    "float": in_eight_bits,
} | dict.fromkeys((name for name in COMPRESSED if "bits" in name), by_compressed_tensors)
