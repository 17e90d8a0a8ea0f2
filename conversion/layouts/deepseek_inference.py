"""DeepSeek's inference layout: config.json in the words of its reference code, one safetensors file a rank.

`model{rank}-mp{ranks}.safetensors` hold rows or columns of each matrix, and whole experts; scales of FP8 are split as
their weights. Sizes left out are the defaults of https://github.com/deepseek-ai/DeepSeek-V3, inference/model.py; names
and the way of splitting are those of inference/convert.py there. Rotary pairs stay interleaved, as in the families.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors, inside, is_there, read_json
from .relaid import Relaid, RelaidCheckpoint, one_after_another, renamed

PATTERN = "model*-mp*.safetensors"
_FILE = re.compile(r"model(\d+)-mp(\d+)\.safetensors")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_BLOCK = [128, 128]
_WORDS = {
    "embed": "model.embed_tokens", "head": "lm_head", "layers": "model.layers", "attn": "self_attn", "ffn": "mlp",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "wq": "q_proj", "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm", "wq_b": "q_b_proj", "wkv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj", "wo": "o_proj", "gate": "gate", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj",
    "experts": "experts", "shared_experts": "shared_experts", "weight": "weight", "bias": "bias",
    "scale": "weight_scale_inv",
}  # fmt: skip
# What every rank holds a part of: rows, or columns; all else is alike on all ranks.
_ROWS, _COLUMNS = ("embed", "head", "wq", "wq_b", "wkv_b", "w1", "w3"), ("wo", "w2")
_SIZES = {
    "vocab_size": ("vocab_size", 102400), "hidden_size": ("dim", 2048), "intermediate_size": ("inter_dim", 10944),
    "moe_intermediate_size": ("moe_inter_dim", 1408), "num_hidden_layers": ("n_layers", 27),
    "first_k_dense_replace": ("n_dense_layers", 1), "num_attention_heads": ("n_heads", 16),
    "num_key_value_heads": ("n_heads", 16), "n_routed_experts": ("n_routed_experts", 64),
    "n_shared_experts": ("n_shared_experts", 2), "num_experts_per_tok": ("n_activated_experts", 6),
    "n_group": ("n_expert_groups", 1), "topk_group": ("n_limited_groups", 1),
    "routed_scaling_factor": ("route_scale", 1.0), "kv_lora_rank": ("kv_lora_rank", 512),
    "qk_nope_head_dim": ("qk_nope_head_dim", 128), "qk_rope_head_dim": ("qk_rope_head_dim", 64),
    "v_head_dim": ("v_head_dim", 128),
}  # fmt: skip


def recognises(folder: Path) -> bool:
    """Whether a folder has this layout: files of ranks, and a config.json without a model_type."""
    if not folder.is_dir() or next(folder.glob(PATTERN), None) is None or not (folder / "config.json").is_file():
        return False
    return "model_type" not in read_json(inside(folder, "config.json"))


def config(folder: Path) -> dict[str, Any]:
    """config.json as transformers would have it. Raises ConversionError for a size that is none, and for the indexer of
    V3.2, which is read in transformers' layout alone."""
    args = read_json(inside(folder, "config.json"))
    if args.get("index_n_heads"):
        raise ConversionError(f"{folder} has the sparse indexer of V3.2: convert the layout of transformers.")
    raw: dict[str, Any] = {}
    for name, (key, default) in _SIZES.items():
        raw[name] = args.get(key, default)
        if not isinstance(raw[name], (int, float)) or raw[name] <= 0:
            raise ConversionError(f"{folder / 'config.json'} has {key}={raw[name]!r}, expected a positive number.")
    third = args.get("score_func", "softmax") == "sigmoid"
    raw |= {
        "model_type": "deepseek_v3" if third else "deepseek_v2",
        "architectures": ["DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM"],
        "q_lora_rank": args.get("q_lora_rank") or None,
        "norm_topk_prob": third,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 163840,
    }
    if not third:
        raw["topk_method"] = "greedy" if raw["n_group"] == 1 else "group_limited_greedy"
    if args.get("dtype") == "fp8":
        raw["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": _BLOCK,
        }  # fmt: skip
    return raw | _rotation(args)


def _rotation(args: dict[str, Any]) -> dict[str, Any]:
    """The reference code always stretches: its longest sequence is beyond the first one."""
    length, factor = args.get("original_seq_len", 4096), args.get("rope_factor", 40)
    if args.get("max_seq_len", 4 * 4096) <= length:
        return {"rope_theta": args.get("rope_theta", 10000.0)}
    mscale = float(args.get("mscale", 1.0))
    yarn = {
        "type": "yarn", "factor": factor, "original_max_position_embeddings": length, "mscale": mscale,
        "beta_fast": args.get("beta_fast", 32), "beta_slow": args.get("beta_slow", 1), "mscale_all_dim": mscale,
    }  # fmt: skip
    longest = int(length * factor)
    return {"rope_theta": args.get("rope_theta", 10000.0), "rope_scaling": yarn, "max_position_embeddings": longest}


def files(folder: Path) -> list[Path]:
    """The files of all ranks. Raises ConversionError where one is missing, or they are of several splits."""
    found = {path.name: _FILE.fullmatch(path.name) for path in sorted(folder.glob(PATTERN))}
    counts = {int(match[2]) for match in found.values() if match}
    if len(counts) != 1:
        raise ConversionError(f"{folder} holds ranks of several splits ({', '.join(found)}): keep one of them.")
    count = counts.pop()
    paths = [folder / f"model{rank}-mp{count}.safetensors" for rank in range(count)]
    if missing := [path.name for path in paths if not is_there(path)]:
        raise ConversionError(f"{folder} lacks {missing[0]}: the file of a rank is missing.")
    return paths


def stored(folder: Path) -> tuple[str, list[Path]]:
    """The layout in words, and its files."""
    packed = ", fp8" if read_json(inside(folder, "config.json")).get("dtype") == "fp8" else ""
    return f"DeepSeek's inference layout (safetensors{packed})", files(folder)


def weights(folder: Path, allow_pickle: bool = False, dtype: torch.dtype | None = None) -> RelaidCheckpoint:
    """The tensors of all ranks by transformers' names. Raises ConversionError for a part that a rank lacks."""
    ranks = []
    for path in files(folder):
        ranks.append(StoredTensors(folder))
        ranks[-1].read_headers(inside(folder, path.name))
    tensors: dict[str, Relaid] = {}
    for name in dict.fromkeys(name for rank in ranks for name in rank.headers):
        holders = [rank for rank in ranks if name in rank.headers]
        if _EXPERT.search(name):
            # An expert is on one rank, whole.
            if len(holders) > 1:
                raise ConversionError(f"{name!r} is on {len(holders)} ranks, expected one: the checkpoint is damaged.")
        elif len(holders) < len(ranks):
            lacking = next(number for number, rank in enumerate(ranks) if name not in rank.headers)
            raise ConversionError(f"{name!r} is not in the file of rank {lacking}: the checkpoint is incomplete.")
        tensors[_named(name)] = _relaid(name, tuple((rank, name) for rank in holders))
    return RelaidCheckpoint(folder, tensors)


def _named(name: str) -> str:
    if name == "norm.weight":
        return "model.norm.weight"
    if name.endswith("ffn.gate.bias"):
        name, ending = name.removesuffix("bias"), "e_score_correction_bias"
        return f"{renamed(name + 'weight', _WORDS, 'this layout').removesuffix('weight')}{ending}"
    return renamed(name, _WORDS, "this layout")


def _relaid(name: str, pieces: tuple[tuple[StoredTensors, str], ...]) -> Relaid:
    """Parts of rows or of columns one after another; of what is alike the first."""
    word = name.split(".")[-2]
    if _EXPERT.search(name) or word not in (*_ROWS, *_COLUMNS):
        return Relaid(pieces, lambda first, *_: first)
    dim = int(word in _COLUMNS)
    return Relaid(pieces, partial(one_after_another, dim=dim), dim)
