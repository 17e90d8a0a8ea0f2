"""How published checkpoints store one matrix, format by format: what is stored, and the numbers that it stands for.

Most work the numbers out one by one; others leave both ways to the library that writes such checkpoints.
"""

from itertools import product
from math import ceil

import torch
from packed_checkpoints import is_projection
from transformers.integrations import bitnet

from conversion.formats.packing import E2M1


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


def awq(group):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        codes, zeros, scales = random_groups(tensor, 4, group)
        numbers = torch.empty(tensor.shape)
        for i in range(len(codes)):
            numbers[:, i] = scales[i // group].float() * (codes[i] - zeros[i // group])
        layer, order = name.removesuffix("weight"), [0, 4, 1, 5, 2, 6, 3, 7]
        stored = {
            layer + "qweight": fields(codes.tolist(), 4, order),
            layer + "qzeros": fields(zeros.tolist(), 4, order),
            layer + "scales": scales,
        }
        return stored, numbers

    return pack


def bitsandbytes(kind, nested):
    """By the library itself."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        packed, state = quantize_4bit(tensor, quant_type=kind, compress_statistics=nested)
        stored = {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        return {name: packed} | stored, dequantize_4bit(packed, state)

    return pack


def bitsandbytes_int8(name, tensor):
    if not is_projection(name, tensor):
        return None
    scale = tensor.float().abs().amax(dim=1)
    q = (tensor.float() * 127 / scale.unsqueeze(1)).round().to(torch.int8)
    layer = name.removesuffix("weight")
    stored = {name: q, layer + "SCB": scale, layer + "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, by_number(q, lambda i, j: scale[i] / 127)


def torchao(name, tensor):
    if not is_projection(name, tensor):
        return None
    scale = tensor.float().abs().amax(dim=1, keepdim=True) / 120
    zero = torch.arange(len(tensor)).remainder(7).sub(3).to(torch.int8).unsqueeze(1)
    q = ((tensor.float() / scale).round() + zero).to(torch.int8)
    layer = name.removesuffix("weight")
    stored = {"_weight_qdata": q, "_weight_scale": scale, "_weight_zero_point": zero}
    return {layer + part: value for part, value in stored.items()}, (q.float() - zero.float()) * scale


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


def in_quarters(times):
    def pack(name, tensor):
        if not is_projection(name, tensor):
            return None
        torch.manual_seed(len(name))
        with torch.compiler.set_stance("force_eager"):  # compiling takes longer than the few lines run
            packed = bitnet.pack_weights(torch.randint(-1, 2, tensor.shape).float())
            numbers = bitnet.unpack_weights(packed, torch.float32)
        scale = torch.rand(1) + 0.5
        return {name: packed, f"{name}_scale": scale}, numbers * scale if times else numbers * (1 / scale)

    return pack


def as_trained(name, tensor):
    return ({name: tensor}, bitnet.WeightQuant.apply(tensor)) if is_projection(name, tensor) else None


def in_plain_numbers(name, tensor):
    packed = in_quarters(True)(name, tensor)
    return packed and ({**packed[0], name: bitnet.unpack_weights(packed[0][name], torch.bfloat16)}, packed[1])
