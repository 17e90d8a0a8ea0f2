"""params.json beside consolidated files: the layout of Meta (pickles, one a rank) and Mistral (safetensors).

Both rotate interleaved pairs of channels; transformers' classes rotate halves: rows of queries and keys are permuted.
Sizes left out are those of Meta's reference code (https://github.com/meta-llama/llama-models, models/llama3/args.py).
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..files.checkpoint import StoredTensors, inside, is_there, read_json
from ..files.pickles import PickledTensors
from .relaid import Relaid, RelaidCheckpoint, on_all_ranks, one_after_another, renamed, to_halves

PARAMS, RANKS, WHOLE = "params.json", "consolidated.*.pth", "consolidated*.safetensors"
_INDEX = "consolidated.safetensors.index.json"
_WORDS = {
    "tok_embeddings": "model.embed_tokens", "output": "lm_head", "layers": "model.layers", "attention": "self_attn",
    "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "feed_forward": "mlp", "w1": "gate_proj",
    "w2": "down_proj", "w3": "up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "weight": "weight", "bias": "bias", "qscale_weight": "qscale_weight", "qscale_act": "qscale_act",
}  # fmt: skip
_EXPERT_WORDS = _WORDS | {
    "feed_forward": "block_sparse_moe", "experts": "experts", "gate": "gate", "w1": "w1", "w2": "w2", "w3": "w3",
}  # fmt: skip
_NEEDED = ("dim", "n_layers", "n_heads")
# Llama 3.1's rotation; the two small text models of 3.2 are stretched by 32.
_SCALED = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
_OTHER_MODELS = {
    "vision_encoder": "a vision encoder", "vision_chunk_size": "a vision encoder", "q_lora_rank": "latent attention",
    "quantization_args": "Meta's own quantisation", "lora_args": "adapters", "multimodal": "a vision encoder",
}  # fmt: skip


def recognises(folder: Path) -> bool:
    """Whether a folder has this layout, and not transformers' too."""
    has_files = any(next(folder.glob(pattern), None) for pattern in (RANKS, WHOLE))
    return (folder / PARAMS).exists() and has_files and not (folder / "config.json").exists()


def read_params(folder: Path) -> dict[str, Any]:
    """params.json; raises ConversionError where it is of a model that is read in transformers' layout alone."""
    params = read_json(inside(folder, PARAMS))
    params = params.get("model", params)
    if other := next((words for key, words in _OTHER_MODELS.items() if params.get(key)), None):
        raise ConversionError(f"{folder / PARAMS} is of a model with {other}: convert the layout of transformers.")
    for key in _NEEDED:
        if not isinstance(params.get(key), int) or params[key] < 1:
            raise ConversionError(f"{folder / PARAMS} has {key}={params.get(key)!r}, expected a positive number.")
    return params


def config(folder: Path) -> dict[str, Any]:
    """config.json as transformers would have it."""
    params = read_params(folder)
    dim, heads = params["dim"], params["n_heads"]
    raw = {
        "hidden_size": dim,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": params.get("n_kv_heads") or heads,
        "head_dim": head_dim(params),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "hidden_act": "silu",
    }
    own = _of_meta(params) if next(folder.glob(RANKS), None) else _of_mistral(params, folder)
    return raw | own


def head_dim(params: dict[str, Any]) -> int:
    return params.get("head_dim") or params["dim"] // params["n_heads"]


def _of_meta(params: dict[str, Any]) -> dict[str, Any]:
    """Llama 1 to 3.3: a vocabulary of -1 is that of the tokenizer, the context is that of the generation."""
    dim, multiple = params["dim"], params.get("multiple_of", 256)
    width = int((params.get("ffn_dim_multiplier") or 1) * int(8 * dim / 3))
    theta, vocabulary = params.get("rope_theta", 10000.0), params.get("vocab_size", -1)
    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary if vocabulary > 0 else 32000,
        "intermediate_size": params.get("hidden_dim") or multiple * ((width + multiple - 1) // multiple),
        "rope_theta": theta,
        "tie_word_embeddings": False,
    }
    if params.get("use_scaled_rope"):
        factor = 8.0 if dim > 3072 else 32.0
        return raw | _third_tokens(True) | {
            "max_position_embeddings": 131072, "rope_scaling": {**_SCALED, "factor": factor}
        }  # fmt: skip
    third = theta >= 500000 and vocabulary > 100000
    first = params.get("norm_eps") == 1e-6
    length = 8192 if third else 16384 if theta > 10000 else 2048 if first else 4096
    return raw | _third_tokens(third) | {"max_position_embeddings": length}


def _third_tokens(third: bool) -> dict[str, int]:
    return {"bos_token_id": 128000, "eos_token_id": 128001} if third else {"bos_token_id": 1, "eos_token_id": 2}


def _of_mistral(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    if not isinstance(params.get("hidden_dim"), int) or not isinstance(params.get("vocab_size"), int):
        raise ConversionError(f"{folder / PARAMS} lacks hidden_dim or vocab_size: it is incomplete.")
    window = params.get("sliding_window")
    theta = params.get("rope_theta", 10000.0)
    raw = {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": params["vocab_size"],
        "intermediate_size": params["hidden_dim"],
        "rope_theta": theta,
        "sliding_window": int(window) if window not in (None, "", "None") else None,
        "max_position_embeddings": params.get("max_position_embeddings") or params.get("max_seq_len") or 32768,
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
    }
    if experts := params.get("moe"):
        raw |= {
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": experts["num_experts"],
            "num_experts_per_tok": experts["num_experts_per_tok"],
        }
    if yarn := params.get("yarn"):
        raw["rope_parameters"] = {
            "rope_type": "yarn", "rope_theta": raw.pop("rope_theta"), "factor": float(yarn["factor"]),
            "original_max_position_embeddings": yarn["original_max_position_embeddings"],
            "beta_fast": float(yarn["beta"]), "beta_slow": float(yarn["alpha"]), "mscale": 1.0, "mscale_all_dim": 1.0,
        }  # fmt: skip
        if "max_position_embeddings" not in params and "max_seq_len" not in params:
            raw["max_position_embeddings"] = int(yarn["factor"] * yarn["original_max_position_embeddings"])
    if scaling := params.get("llama_4_scaling"):
        if "rope_parameters" not in raw or experts:
            raise ConversionError(f"{folder / PARAMS} has llama_4_scaling without yarn, or with experts: not known.")
        raw |= {"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"]}
        raw["rope_parameters"]["llama_4_scaling_beta"] = scaling["beta"]
    if params.get("quantization"):
        raw["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    return raw


def stored(folder: Path) -> tuple[str, list[Path]]:
    """The layout in words, and the files of the weights."""
    if ranks := sorted(folder.glob(RANKS)):
        return "Meta's layout (pickle)", ranks
    scaled = ", fp8" if read_params(folder).get("quantization") else ""
    return f"Mistral's layout (safetensors{scaled})", sorted(folder.glob(WHOLE))


def weights(folder: Path, allow_pickle: bool = False, dtype: torch.dtype | None = None) -> RelaidCheckpoint:
    """The tensors of all files by transformers' names. Raises ConversionError for pickles that are not allowed, a rank
    without a file, names or shapes that are not those of the model."""
    params = read_params(folder)
    if next(folder.glob(RANKS), None):
        ranks = _pickled_ranks(folder, allow_pickle)
    else:
        stored = StoredTensors(folder)
        if (folder / _INDEX).exists():
            stored.read_index(folder / _INDEX)
        else:
            for path in sorted(folder.glob(WHOLE)):
                is_there(path)
                stored.read_headers(inside(folder, path.name))
        ranks = [stored]
    words, tensors = _EXPERT_WORDS if params.get("moe") else _WORDS, {}
    for name in on_all_ranks(ranks):
        if name == "rope.freqs":
            continue
        ours = "model.norm.weight" if name == "norm.weight" else renamed(name, words, "this layout")
        tensors[ours] = _relaid(name, tuple((rank, name) for rank in ranks), params)
    return RelaidCheckpoint(folder, tensors)


def _pickled_ranks(folder: Path, allow_pickle: bool) -> list[StoredTensors]:
    found = {path.name: re.fullmatch(r"consolidated\.(\d+)\.pth", path.name) for path in folder.glob(RANKS)}
    numbers = sorted(int(match[1]) for match in found.values() if match)
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next((number for number in range(len(numbers)) if number not in numbers), 0)
        raise ConversionError(f"{folder} lacks consolidated.{missing:02d}.pth: the file of a rank is missing.")
    if not allow_pickle:
        raise ConversionError(
            f"{folder} has Meta's own layout, whose consolidated.*.pth are pickles that can run code when opened: get "
            "the layout of transformers, or convert what you trust with --allow-pickle (allow_pickle=True), which "
            "reads tensors and nothing else."
        )
    ranks = []
    for number in numbers:
        ranks.append(PickledTensors(folder))
        ranks[-1].read_headers(folder / f"consolidated.{number:02d}.pth")
    return ranks


def _relaid(name: str, pieces: tuple[tuple[StoredTensors, str], ...], params: dict[str, Any]) -> Relaid:
    """How the pieces of some ranks become one tensor: along rows, or columns of what reads them; norms are alike."""
    word, heads = name.split(".")[-2], params["n_heads"]
    if name.endswith(("qscale_weight", "qscale_act")) or word.endswith("norm") or word == "gate":
        return Relaid(pieces, lambda first, *_: first)
    if word in ("wq", "wk", "wv"):
        heads, width = heads if word == "wq" else params.get("n_kv_heads") or heads, head_dim(params)
        # More ranks than key heads: neighbours hold the same one.
        alike = max(1, len(pieces) // heads)
        turned = None if word == "wv" else partial(to_halves, head_dim=width)
        join = partial(_heads, alike=alike, rows=heads * width, turned=turned)
        return Relaid(pieces, join, 0, width, alike, turned)
    columns = word in ("wo", "w2")
    if word == "tok_embeddings":
        columns = pieces[0][0].headers[name].shape[-1] != params["dim"]
    return Relaid(pieces, partial(one_after_another, dim=int(columns)), int(columns))


def _heads(*pieces: Tensor, alike: int, rows: int, turned: Callable[[Tensor], Tensor] | None) -> Tensor:
    weight = one_after_another(*pieces[::alike])
    if weight.shape[0] != rows:
        raise RuntimeError("another number of rows than the heads have")
    return weight if turned is None else turned(weight)
