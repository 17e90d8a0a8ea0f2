"""Every storage format: a family that is published in it, how its matrices are packed, the scheme, and sizes."""

from collections.abc import Callable
from pathlib import Path

import packs
import torch
from packed_checkpoints import packed_checkpoint

# Sides that are no multiple of a block.
SIZES = {"hidden_size": 192, "intermediate_size": 320}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
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
# Sides that words of every width come out even on.
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
BITNET = {"quant_method": "bitnet", "modules_to_not_convert": None}
AUTO = BITNET | {"linear_class": "autobitlinear"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
SMALL = {"hidden_size": 48, "intermediate_size": 80}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
# Widths that blocks of 64 come out even on.
EVEN_64 = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 64, "num_attention_heads": 2}
FEW_BITS = EVEN | {"head_dim": 16, "num_hidden_layers": 1}
MXFP4_SIZES = {"hidden_size": 64, "intermediate_size": 32}


def compressed(kind):
    format_name, settings = COMPRESSED[kind]
    groups = {"group_0": {"targets": ["Linear"], "weights": settings}}
    scheme = {"quant_method": "compressed-tensors", "format": format_name, "config_groups": groups}
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 24, "num_attention_heads": 4}
    return "llama", lambda: packs.by_library(format_name, settings), scheme, sizes


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "sym": False}
# name -> (family, pack, scheme, sizes)
SCHEMES = {
    "fp8": ("llama", lambda: packs.in_blocks(torch.float32), FP8, SIZES),
    "fp8, experts": ("deepseek_v3", lambda: packs.in_blocks(torch.float32), FP8, SIZES),
    "fp8, bfloat16": ("qwen3", lambda: packs.in_blocks(torch.bfloat16), FP8, SIZES),
    "fp8, powers of two": ("llama", lambda: packs.in_blocks(torch.float8_e8m0fnu), FP8, SIZES),
    "fp8, exponents": (
        "llama", lambda: packs.in_blocks(torch.uint8, 1, 32), FP8 | {"weight_block_size": [1, 32]},
        SMALL,
    ),
    "fp8, rows": ("mistral", lambda: packs.per_row, {"quant_method": "fbgemm_fp8"}, {}),
    "fp8, one scale": ("mistral", lambda: packs.with_one_scale, FP8 | {"weight_block_size": None}, {}),
    "mxfp4": ("gpt_oss", lambda: packs.gpt_oss_experts, MXFP4, MXFP4_SIZES),
    "modelopt": ("llama", lambda: packs.nvfp4, MODELOPT, {"head_dim": 24, "num_attention_heads": 2} | SMALL),
    "fp4 beside fp8": ("llama", lambda: packs.in_halves, FP8 | {"expert_dtype": "fp4"}, FEW_BITS),
    "modelopt, fp8": ("llama", lambda: packs.with_one_scale, MODELOPT | {"quant_algo": "FP8"}, SMALL),
    "awq": ("qwen2", lambda: packs.awq(16), AWQ, EVEN),
    "nf4": ("llama", lambda: packs.bitsandbytes("nf4", False), NF4, EVEN_64),
    "nf4, nested": ("llama", lambda: packs.bitsandbytes("nf4", True), NF4, EVEN_64),
    "fp4": ("llama", lambda: packs.bitsandbytes("fp4", False), NF4 | {"bnb_4bit_quant_type": "fp4"}, EVEN_64),
    "llm.int8": ("llama", lambda: packs.bitsandbytes_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {}),
    "torchao": ("llama", lambda: packs.torchao, TORCHAO, {}),
    "bitnet": ("llama", lambda: packs.in_quarters(False), BITNET, FEW_BITS),
    "bitnet, multiplied": ("llama", lambda: packs.in_quarters(True), AUTO | {"quantization_mode": "offline"}, FEW_BITS),
    "bitnet, as trained": ("llama", lambda: packs.as_trained, AUTO | {"quantization_mode": "online"}, FEW_BITS),
    "gptq, 3 bits": (
        "llama", lambda: packs.gptq(3, 16, "gptq", True), GPTQ | {"bits": 3, "desc_act": False}, EVEN,
    ),
    "gptq_v2": (
        "llama", lambda: packs.gptq(8, 16, "gptq_v2", False), GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"}, EVEN,
    ),
    "gptq": ("llama", lambda: packs.gptq(4, 16, "gptq", False), GPTQ, EVEN),
} | {kind: compressed(kind) for kind in COMPRESSED}  # fmt: skip


def packed(name: str, folder: Path, pack: Callable | None = None) -> str:
    """Writes a small checkpoint in a format of the table -> its family."""
    model_type, pack_of, scheme, sizes = SCHEMES[name]
    layers = {} if model_type in ("gpt_oss", "deepseek_v3") else {"num_hidden_layers": 1}
    packed_checkpoint(folder, model_type, pack or pack_of(), scheme, **sizes | layers)
    return model_type
