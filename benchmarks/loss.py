"""One training step over a large vocabulary: memory and time of the loss with all logits at once and in chunks.

    python benchmarks/loss.py
    python benchmarks/loss.py --vocabulary 32000 --tokens 4096 --dtype bfloat16

Each way runs in a process of its own, on the same weights and tokens: transformers' LlamaForCausalLM, zoo with its
plain loss, zoo with `loss_chunk_size`. Memory is the largest resident size during forward and backward, less what the
process held before them; losses and the gradients' norms are compared.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

WAYS = ("transformers", "plain", "chunked")


def build(way: str, options: argparse.Namespace) -> torch.nn.Module:
    """A one-layer model whose head is all that matters, ready to train."""
    sizes = {
        "vocab_size": options.vocabulary, "hidden_size": options.width, "intermediate_size": 2 * options.width,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    if way == "transformers":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = ZooForCausalLM(ZooConfig(**sizes, loss_chunk_size=options.chunk if way == "chunked" else None))
    with torch.no_grad():
        # The same numbers whatever order the two classes draw in.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(sum(parameter.shape)))
    return model.to(getattr(torch, options.dtype)).train()


def resident(key: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes, as Linux counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure(way: str, options: argparse.Namespace) -> dict:
    """Memory, seconds, loss and gradient norm of one step in this process."""
    torch.set_num_threads(options.threads)
    model = build(way, options)
    tokens = torch.randint(options.vocabulary, (1, options.tokens), generator=torch.Generator().manual_seed(1))
    # Libraries allocate what they keep on their first call.
    model(tokens[:, :8], labels=tokens[:, :8]).loss.backward()
    model.zero_grad(set_to_none=True)
    before = resident("VmRSS")
    seconds = []
    for _ in range(options.rounds):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        seconds.append(time.perf_counter() - started)
    peak = resident("VmHWM")
    norm = torch.nn.utils.get_total_norm(parameter.grad.float() for parameter in model.parameters())
    return {"bytes": peak - before, "whole": peak, "seconds": min(seconds), "loss": loss.item(), "norm": norm.item()}


def compare(options: argparse.Namespace) -> dict[str, dict]:
    """{way: its numbers}, each from a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    results = {}
    for way in WAYS:
        done = subprocess.run([*command, "--way", way], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=128000)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=128, help="target tokens at a time")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    results = compare(options)
    if options.json:
        print(json.dumps(results))
        return
    print(f"one step, vocabulary {options.vocabulary}, {options.tokens} tokens, width {options.width}, {options.dtype}")
    for way, numbers in results.items():
        share = numbers["bytes"] / results["plain"]["bytes"]
        print(
            f"{way:>12}: {numbers['bytes'] / 1e6:8,.0f} MB ({share:.2f} of plain), {numbers['seconds']:.2f} s, "
            f"loss {numbers['loss']:.6f}, gradient norm {numbers['norm']:.6f}"
        )


if __name__ == "__main__":
    main()
