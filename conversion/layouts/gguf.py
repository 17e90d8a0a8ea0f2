"""GGUF: one file (or its parts) with metadata, tokenizer and tensors in blocks, as llama.cpp runs them.

Read by gguf-py, which must be installed (`pip install gguf`); a tensor is dequantised when it is read. What llama.cpp
changes on its way in is undone: rows of queries and keys in interleaved pairs (llama), norms that hold 1 + weight
(gemma), experts in one tensor, rotation factors in a tensor of their own (https://github.com/ggml-org/llama.cpp,
gguf-py/gguf/constants.py and convert_hf_to_gguf.py).
"""

import os
import re
from contextlib import suppress
from functools import lru_cache
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConversionError, one_line
from ..files.checkpoint import RowTensors, inside, is_there
from .relaid import to_halves

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMED = _LLAMA | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{}.gate_proj", "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}  # fmt: skip
_MIXTRAL = _LLAMA | {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3", "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}  # fmt: skip
_FOUR_NORMS = _NORMED | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
# general.architecture -> model_type, class, names of tensors.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM", _LLAMA),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", _LLAMA),
    "qwen2moe": ("qwen2_moe", "Qwen2MoeForCausalLM", _LLAMA | _EXPERTS),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", _NORMED),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM", _NORMED | _EXPERTS),
    "gemma": ("gemma", "GemmaForCausalLM", _LLAMA),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", _FOUR_NORMS),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", _FOUR_NORMS),
}
_FIELDS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base", "head_dim": "attention.key_length",
}  # fmt: skip
_FURTHER = {
    "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "attention.sliding_window",
}  # fmt: skip
# Numbers that are decoded at once.
_AT_ONCE = 2**22
_FREQUENCIES = "rope_freqs.weight"
_PLAIN = ("F64", "F32", "F16", "BF16")


def recognises(path: Path) -> bool:
    """Whether this is a GGUF file, or a folder with one and without config.json."""
    if path.suffix == ".gguf" and path.is_file():
        return True
    return path.is_dir() and not (path / "config.json").exists() and bool(next(path.glob("*.gguf"), None))


def files(path: Path) -> list[Path]:
    """The parts of a model. Raises ConversionError where one is missing or, of those that are found by their names, no
    file of the folder itself, and where a folder holds several models."""
    named = None if path.is_dir() else path
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if len({_PART.sub(r"\1", one.name) for one in found}) > 1:
            raise ConversionError(f"{path} holds several GGUF models: name the file.")
        path = found[0]
    paths = _parts(path)
    for one in paths:
        if one != named:
            is_there(inside(path.parent, one.name))
    return paths


def _parts(path: Path) -> list[Path]:
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part[3])
    parts = [path.with_name(f"{part[1]}-{number + 1:05d}-of-{count:05d}.gguf") for number in range(count)]
    if missing := [one.name for one in parts if not os.path.lexists(one)]:
        raise ConversionError(f"{path.parent} lacks {missing[0]}: a part of the model is missing.")
    return parts


@lru_cache(maxsize=1)
def _readers(paths: tuple[Path, ...], changed: tuple[int, ...]) -> list[Any]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConversionError("a GGUF file is read by gguf-py: install it with `pip install gguf`.") from error
    readers = []
    for path in paths:
        try:
            readers.append(GGUFReader(path))
        except Exception as error:  # whatever a damaged file makes the library stumble over
            raise ConversionError(f"{path} is cut off or damaged ({one_line(error)[:200]}): copy it again.") from error
    return readers


class Opened:
    """Metadata and tensors of a model, by the names the files give them. Raises ConversionError for an architecture
    that is not known."""

    def __init__(self, path: Path):
        paths = tuple(files(path))
        readers = _readers(paths, tuple(one.stat().st_mtime_ns for one in paths))
        self.fields = {name: field for reader in reversed(readers) for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        self.file_of = {
            tensor.name: one for one, reader in zip(paths, readers, strict=True) for tensor in reader.tensors
        }
        self.architecture = self.value("general.architecture")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConversionError(
                f"{path} is a GGUF model of the architecture {self.architecture!r}, which is not read here (known are "
                f"{known}): convert the checkpoint it was made from."
            )
        self.model_type, self.class_name, self.words = ARCHITECTURES[self.architecture]
        if self.architecture == "llama" and self.own("expert_count"):
            self.model_type, self.class_name, self.words = "mixtral", "MixtralForCausalLM", _MIXTRAL

    def value(self, key: str) -> Any:
        """A metadata value; None where the file has none."""
        return self.fields[key].contents() if key in self.fields else None

    def own(self, key: str) -> Any:
        """The value of a key of the architecture."""
        return self.value(f"{self.architecture}.{key}")

    def plain(self) -> set[str]:
        """The types in which its matrices are stored, in words."""
        return {tensor.tensor_type.name for tensor in self.tensors.values() if len(tensor.shape) > 1}

    def head_dim(self) -> int:
        return self.own("attention.key_length") or self.own("embedding_length") // self.own("attention.head_count")


def config(path: Path) -> dict[str, Any]:
    """config.json as transformers would have it. Raises ConversionError for what the metadata lacks."""
    opened = Opened(path)
    keys = _FIELDS | _FURTHER
    if opened.model_type == "mixtral":
        keys = _FIELDS | {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
    raw = {name: opened.own(key) for name, key in keys.items()}
    raw = {name: value for name, value in raw.items() if value is not None}
    needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    for name in needed:
        if not isinstance(raw.get(name), int):
            key = f"{opened.architecture}.{_FIELDS[name]}"
            raise ConversionError(f"{path} has {key}={raw.get(name)!r}, expected one number for all layers.")
    if "token_embd.weight" not in opened.tensors:
        raise ConversionError(f"{path} holds no token_embd.weight: it is not a whole model.")
    raw["vocab_size"] = int(opened.tensors["token_embd.weight"].shape[1])
    raw |= {"model_type": opened.model_type, "architectures": [opened.class_name]}
    raw["head_dim"] = opened.head_dim()
    raw["tie_word_embeddings"] = "output.weight" not in opened.tensors
    raw["torch_dtype"] = str(_dtype(opened)).removeprefix("torch.")
    for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        raw[name] = opened.value(f"tokenizer.ggml.{key}_token_id")
    if opened.architecture == "qwen3moe":
        raw["norm_topk_prob"] = True
    if opened.architecture in ("gemma2", "gemma3"):
        # The largest scale by another size, as llama.cpp tells them: by their depth.
        largest = {"gemma2": 46, "gemma3": 62}[opened.architecture]
        by_width = raw["hidden_size"] // raw["num_attention_heads"]
        raw["query_pre_attn_scalar"] = by_width if raw["num_hidden_layers"] == largest else raw["head_dim"]
    return raw | _rotation(opened, path)


def _dtype(opened: Opened) -> torch.dtype:
    """float32 or float16 where every matrix is stored so, else bfloat16."""
    return {("F32",): torch.float32, ("F16",): torch.float16}.get(tuple(opened.plain()), torch.bfloat16)


def _rotation(opened: Opened, path: Path) -> dict[str, Any]:
    """`rope_scaling` of a model that stretches its rotation; {} for the others."""
    kind, factor = opened.own("rope.scaling.type"), opened.own("rope.scaling.factor")
    length = opened.own("rope.scaling.original_context_length")
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        yarn = {"rope_type": "yarn", "factor": factor}
        return {"rope_scaling": yarn | ({"original_max_position_embeddings": length} if length else {})}
    if kind not in (None, "none"):
        raise ConversionError(f"{path} stretches its rotation by {kind!r}, which is not read here.")
    if _FREQUENCIES not in opened.tensors:
        return {}
    factors = torch.tensor(opened.tensors[_FREQUENCIES].data)
    said = {
        "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    expected = llama3_factors(said, opened.own("rope.freq_base") or 10000.0, opened.head_dim())
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-4):
        raise ConversionError(f"{path} has rotation factors that are not Llama 3's: convert the original checkpoint.")
    return {"rope_scaling": said}


def llama3_factors(said: dict[str, Any], theta: float, head_dim: int) -> Tensor:
    """By what each frequency is divided: 1 where a wave is short, `factor` where it is long, between by a ramp."""
    wave = 2 * pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    low, high, factor = said["low_freq_factor"], said["high_freq_factor"], said["factor"]
    ramp = ((said["original_max_position_embeddings"] / wave - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - ramp) / factor + ramp)).float()


def stored(path: Path) -> tuple[str, list[Path]]:
    """The format in words, and its files."""
    return f"GGUF ({', '.join(sorted(Opened(path).plain()))})", files(path)


def is_packed(path: Path) -> bool:
    """Whether matrices are stored in blocks of integers, which are decoded, and not as plain floating numbers."""
    return not Opened(path).plain() <= set(_PLAIN)


class GgufCheckpoint(RowTensors):
    """`headers` (name -> meta tensor) and `read(name)` by transformers' names, decoded in float32 and rounded once."""

    def __init__(self, path: Path, dtype: torch.dtype | None = None):
        self.folder, self.opened = path, Opened(path)
        self.dtype = dtype or _dtype(self.opened)
        self.places: dict[str, tuple[str, int | None]] = {}
        for name, tensor in self.opened.tensors.items():
            if name != _FREQUENCIES:
                self._place(name, tensor)
        self.headers = {name: self._header(*place) for name, place in self.places.items()}

    def rename(self, names: dict[str, str]) -> None:
        """Calls every tensor by another name from here on."""
        self.places = {names[name]: place for name, place in self.places.items()}
        self.headers = {names[name]: header for name, header in self.headers.items()}

    def _place(self, name: str, tensor: Any) -> None:
        block, _, rest = name.removeprefix("blk.").partition(".") if name.startswith("blk.") else ("", "", name)
        word, _, ending = rest.rpartition(".")
        ours = (self.opened.words if block else _TOP).get(word)
        if ours is None:
            raise ConversionError(f"{name!r} is no tensor of the GGUF architecture {self.opened.architecture!r}.")
        ours = f"model.layers.{block}.{ours}.{ending}" if block else f"{ours}.{ending}"
        if "{}" in ours:
            for expert in range(int(tensor.shape[-1])):
                self.places[ours.format(expert)] = name, expert
        else:
            self.places[ours] = name, None

    def _header(self, name: str, expert: int | None) -> Tensor:
        shape = [int(side) for side in reversed(self.opened.tensors[name].shape)]
        shape = shape[1:] if expert is not None else shape
        shape = [1, *shape] if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1 else shape
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        return self.read_rows(name, 0, self.headers[name].shape[0])

    def unit(self, name: str) -> int:
        return 0 if self.headers[name].dim() < 2 else self._heads(self.places[name][0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        header, (stored, expert) = self.headers[name], self.places[name]
        if header.dim() < 2:
            return self._numbers(stored, 0, 1, header.shape)[start:stop]
        first, unit = (expert or 0) * header.shape[0], self._heads(stored)
        tensor = torch.empty(stop - start, *header.shape[1:], dtype=self.dtype)
        step = unit * max(1, _AT_ONCE // (unit * header.shape[1:].numel()))
        for row in range(start, stop, step):
            last = min(row + step, stop)
            shape = (last - row, *header.shape[1:])
            tensor[row - start : last - start] = self._numbers(stored, first + row, first + last, shape)
        return tensor

    def _numbers(self, stored: str, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        """Some rows, read from the file, since what is read of a mapping stays in memory."""
        from gguf.quants import dequantize

        tensor = self.opened.tensors[stored]
        width, dtype = tensor.data.shape[-1], tensor.data.dtype
        place = tensor.data_offset + start * width * dtype.itemsize
        data = np.fromfile(self.opened.file_of[stored], dtype, (stop - start) * width, offset=place)
        numbers = torch.from_numpy(dequantize(data.reshape(-1, width), tensor.tensor_type)).float()
        return self._undone(stored, numbers.reshape(shape)).to(self.dtype)

    def _heads(self, stored: str) -> int:
        """Rows that belong together: those of a head, where llama.cpp has put them in another order."""
        permuted = self.opened.architecture == "llama" and re.search(r"\.attn_[qk]\.", stored)
        return self.opened.head_dim() if permuted else 1

    def _undone(self, stored: str, numbers: Tensor) -> Tensor:
        """What llama.cpp's converter did to a tensor, taken back."""
        if (rows := self._heads(stored)) > 1:
            return to_halves(numbers, rows)
        architecture = self.opened.architecture
        return numbers - 1 if architecture.startswith("gemma") and stored.endswith("norm.weight") else numbers


def weights(path: Path, allow_pickle: bool = False, dtype: torch.dtype | None = None) -> GgufCheckpoint:
    """The tensors by transformers' names. Raises ConversionError for a tensor the architecture has not."""
    return GgufCheckpoint(path, dtype)


def write_tokenizer(path: Path, target: Path) -> bool:
    """Writes the tokenizer inside a model into a folder, by transformers' own conversion; False where it cannot."""
    from transformers import AutoTokenizer

    first = files(path)[0]
    with suppress(Exception):  # of an unknown kind, without merges, of a test
        AutoTokenizer.from_pretrained(first.parent, gguf_file=first.name).save_pretrained(target)
        return True
    return False
