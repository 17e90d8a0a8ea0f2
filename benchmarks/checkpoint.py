"""zoo against transformers' own class on one foreign checkpoint, in one process, measured alternately.

    python -m benchmarks checkpoint examples/stories260K --prompt-tokens 256 --new-tokens 64

Both run the same weights on the same input. Rounds alternate between the two, so that a busy machine slows both; the
best round of each counts. The logits are compared first: a fast wrong model is no result.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import conversion


def timed(work) -> float:
    """Seconds `work` takes, everything queued on an accelerator included."""
    started = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def round_of(model, prompt, new_tokens: int) -> dict[str, float]:
    """Tokens per second of one prefill and of greedy decoding after it."""
    greedy = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
    prefill = timed(lambda: model(prompt))
    whole = timed(lambda: model.generate(prompt, **greedy))
    return {"prefill": prompt.numel() / prefill, "decode": prompt.shape[0] * new_tokens / max(whole - prefill, 1e-9)}


@torch.no_grad()
def measure(folder: Path, options) -> dict:
    """-> {"difference": relative, "transformers" | "zoo": {"prefill": tokens/s, "decode": tokens/s}}."""
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    models = {
        "transformers": AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
        "zoo": conversion.load(folder, dtype=dtype),
    }
    models = {name: model.to(device).eval() for name, model in models.items()}
    shape = (options.batch, options.prompt_tokens)
    prompt = torch.randint(models["zoo"].config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    theirs, ours = (model(prompt).logits.float() for model in models.values())
    results = {"difference": ((ours - theirs).abs().max() / theirs.abs().max()).item()}
    rounds = [
        {name: round_of(model, prompt, options.new_tokens) for name, model in models.items()}
        for _ in range(options.rounds + 1)
    ][1:]  # the first one warms up
    for name in models:
        results[name] = {kind: max(one[name][kind] for one in rounds) for kind in ("prefill", "decode")}
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a foreign checkpoint of a family zoo knows")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options) -> str:
    """The measurement in words, or as JSON."""
    torch.set_num_threads(options.threads)
    results = measure(options.folder, options)
    if options.json:
        return json.dumps(results)
    lines = [f"largest relative difference of the logits: {results['difference']:.1e}"]
    for kind in ("prefill", "decode"):
        theirs, ours = results["transformers"][kind], results["zoo"][kind]
        ratio = f"{ours / theirs:.2f} times as fast"
        lines.append(f"{kind}: transformers {theirs:,.0f} tokens/s, zoo {ours:,.0f} tokens/s, {ratio}")
    return "\n".join(lines)
