"""Decoding with the linear maps in bfloat16, eight and four bits (`zoo generate --quantize`), and transformers' Llama.

    python -m benchmarks bits
    python -m benchmarks bits --layers 16 --hidden-size 1024 --context 64 --threads 1

The same random weights, one process, in turn. The share says how much of the time reading the weights takes at the
speed at which this machine reads memory. torchao must be installed.
"""

import argparse
import copy
import json
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from conversion import load
from zoo.cli.low_bits import in_few_bits

from .limit import read_speed
from .measuring import alternate
from .table import processor

HEAD = 64


def models(options: argparse.Namespace) -> dict[str, nn.Module]:
    """transformers', zoo's on the same weights, and two copies of that in fewer bits."""
    torch.manual_seed(0)
    width = options.hidden_size
    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=width * 11 // 4 // 64 * 64, head_dim=HEAD,
        num_hidden_layers=options.layers, num_attention_heads=width // HEAD, num_key_value_heads=max(1, width // 128),
        max_position_embeddings=32768,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load(folder, torch.bfloat16).eval()
    found = {"transformers": theirs, "zoo": ours}
    for word in ("int8", "int4"):
        found[word] = copy.deepcopy(ours)
        in_few_bits(found[word], word)
    return found


def decoding(model: nn.Module, options: argparse.Namespace) -> Callable:
    """What decodes `new_tokens` tokens behind a prompt that has been read."""
    tokens = torch.randint(32000, (1, options.context), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values

    @torch.no_grad()
    def run() -> None:
        for _ in range(options.new_tokens):
            model(tokens[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-options.new_tokens)

    return run


def held(model: nn.Module) -> int:
    """Bytes of the linear maps, which every token reads."""
    maps = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(part.nbytes for weight in maps for part in parts(weight))


def parts(weight: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a weight is made of."""
    if type(weight) in (torch.Tensor, nn.Parameter):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options: argparse.Namespace) -> str:
    """The measurement in words, or as JSON."""
    torch.set_num_threads(options.threads)
    made = models(options)
    times, _ = alternate({name: decoding(model, options) for name, model in made.items()}, options.rounds)
    speed, rows = read_speed(), []
    for name, model in made.items():
        spent, size = times[name] / options.new_tokens, held(model)
        ratios = times["transformers"] / times[name], times.cpu["transformers"] / times.cpu[name]
        rows.append({"name": name, "seconds": spent, "ratio": ratios[0], "cpu_ratio": ratios[1], "bytes": size,
                     "share": size / speed / spent})  # fmt: skip
    found = {"processor": processor(), "threads": options.threads, "bytes_per_second": speed, "results": rows}
    if options.json:
        return json.dumps(found)
    lines = [f"{processor()}, {options.threads} threads, reads {speed / 1e9:.1f} GB/s; context {options.context}"]
    for one in rows:
        size = f"{one['bytes'] / 2**20:,.0f} MiB, {one['share']:.0%} of the limit"
        lines.append(
            f"{one['name']:12s} {one['seconds'] * 1e3:7.1f} ms per token, {one['ratio']:.2f} × transformers' speed "
            f"({one['cpu_ratio']:.2f} in processor time), {size}"
        )
    return "\n".join(lines)
