"""Whole models of one layer: one decoded token behind a long context, a prompt, transformers' own loop, both sides."""

import math
import time

import torch

from .core import BATCHES, CONTEXTS, MOST_CACHE
from .harness import Item, PeakMemory, Run, attempt, label, replayed, seconds
from .models import (
    NAMES,
    SIDES,
    all_heads,
    cache_bytes,
    decoder,
    kept_model,
    new_cache,
    one_layer,
    prompt_flops,
    weight_bytes,
)

# Those that everybody asks for first.
FIRST = ((8192, 1), (32768, 1), (131072, 1), (32768, 8), (8192, 64))
MOST_MEMORY = 6e10
PLANS = "cuDNN plans again for each length"

# -- one token ---------------------------------------------------------------------------------------------------------


def step_items(run: Run) -> list[Item]:
    others = [(c, b) for c in CONTEXTS for b in BATCHES if (c, b) not in FIRST]
    shapes = [(64, 1), (64, 2)] if run.tiny else [*FIRST, *sorted(others, key=lambda pair: pair[0] * pair[1])]
    return [
        Item(f"{name} {label(context)}×{batch}", lambda case=(name, context, batch): step_rows(run, *case), needs=4)
        for context, batch in shapes
        for name in NAMES
        if name != "moe"
    ]


def step_rows(run: Run, name: str, context: int, batch: int):
    """A row for each side and cache, then their ratios, transformers over zoo."""
    times, case = {}, {"model": name, "context": context, "batch": batch}
    for side in SIDES:
        for kind in ("dynamic", "static") if name != "dsa" else ("dynamic",):
            values = attempt(lambda side=side, kind=kind: one_step(run, side, name, kind, context, batch))
            yield f"{name} {label(context)}×{batch} {side} {kind}", case | {"side": side, "cache": kind} | values
            if "us" in values:
                times[side, kind] = values
            run.clear()
    ratios = ratios_of(times)
    if ratios:
        bar = {} if run.tiny else {"bar": 1.0, "of": "ratio"}
        yield f"{name} {label(context)}×{batch}", case | ratios | bar


def ratios_of(times: dict[tuple[str, str], dict]) -> dict:
    """transformers over zoo: the best of each, each cache, and the growing cache without cuDNN's plans."""
    best = {side: min((v["us"] for (s, _), v in times.items() if s == side), default=None) for side in SIDES}
    if None in best.values():
        return {}
    found = {"ratio": best["transformers"] / best["zoo"]}
    for kind in ("dynamic", "static"):
        theirs, ours = (times.get((side, kind)) for side in SIDES)
        if theirs and ours:
            found[f"{kind}_ratio"] = theirs["us"] / ours["us"]
            if "us_without_cudnn" in theirs or "us_without_cudnn" in ours:
                theirs, ours = (one.get("us_without_cudnn", one["us"]) for one in (theirs, ours))
                found[f"{kind}_ratio_without_cudnn"] = theirs / ours
                found["note"] = PLANS
    return found


def one_step(run: Run, side: str, name: str, kind: str, context: int, batch: int) -> dict:
    """Microseconds of a token, its share of the copy's bandwidth, memory; over a static cache as a captured graph."""
    model = kept_model(run, side, name, **all_heads(run, name))
    per_token, per_row = cache_bytes(name, model.config)
    held = batch * context * (per_token or 4096)
    twice = 2 if kind == "dynamic" and side == "transformers" else 1
    expanded = batch * context * 128 * 320 * 2 if side == "transformers" and name == "mla" else 0
    if held > MOST_CACHE or held * twice + expanded > MOST_MEMORY:
        return {"skipped": "does not fit"}
    step = decoder(run, side, model, kind, context, batch)
    step()
    with PeakMemory(run) as peak:
        taken, values = seconds(run, step, 5), {}
        if kind == "static":
            values["eager_us"] = taken * 1e6
            recorded, why = replayed(run, step, rounds=5)
            values |= {"not_captured": why} if why else {}
            taken = recorded or taken
        elif run.cuda:
            values |= without_cudnn(run, step, taken)
    needed = batch * (context * per_token + per_row) + weight_bytes(model, batch)
    values |= {"us": taken * 1e6, "tokens_per_s": batch / taken}
    return values | {"share": needed / taken / 1e9 / run.ceilings.get("copy_GBps", math.inf)} | peak.values


def without_cudnn(run: Run, step, taken: float) -> dict:
    """The time without cuDNN's attention, where planning for each new length takes it most of the time."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        alone = seconds(run, step, 5)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    return {"us_without_cudnn": alone * 1e6, "note": PLANS} if taken > 2 * alone else {}


# -- a prompt ----------------------------------------------------------------------------------------------------------


def prompt_items(run: Run) -> list[Item]:
    return [Item(name, lambda name=name: prompt_rows(run, name), needs=3) for name in NAMES]


def prompt_rows(run: Run, name: str):
    """A row for each side, then the ratio, transformers over zoo."""
    times, length = {}, 64 if run.tiny else 8192
    for side in SIDES:
        values = attempt(lambda side=side: prompt(run, side, name, length))
        yield f"{name} {side}", {"model": name, "context": length, "side": side} | values
        times[side] = values.get("ms")
        run.clear()
    if all(times.values()):
        bar = {} if run.tiny else {"bar": 0.97, "of": "ratio"}
        yield name, {"model": name, "context": length, "ratio": times["transformers"] / times["zoo"]} | bar


@torch.no_grad()
def prompt(run: Run, side: str, name: str, length: int) -> dict:
    """Milliseconds, TFLOP/s over the operations of the model itself, their share of the product, peak memory."""
    model = one_layer(run, side, name)
    tokens = torch.randint(model.config.vocab_size, (1, length), device=run.device)

    def once(_=0):
        model(tokens, past_key_values=new_cache(side, model, "dynamic"), logits_to_keep=1)

    once()
    with PeakMemory(run) as peak:
        taken = seconds(run, once, 3)
    rate = prompt_flops(name, model, length) / taken / 1e12
    return {"ms": taken * 1e3, "TFLOPS": rate, "share": rate / run.ceilings.get("bf16_TFLOPS", math.inf)} | peak.values


# -- transformers' own loop --------------------------------------------------------------------------------------------


def generate_items(run: Run) -> list[Item]:
    return [
        Item(f"{name} {side} {kind}", lambda case=(name, side, kind): generated(run, *case),
             needs=1 if run.tiny else 20 if kind == "static" else 6)
        for kind in ("dynamic", "static") for name in ("mla", "gqa") for side in SIDES
    ]  # fmt: skip


def generated(run: Run, name: str, side: str, kind: str) -> dict:
    """Tokens per second of the second call; over the static cache, which generate compiles."""
    model = one_layer(run, side, name)
    model.generation_config.pad_token_id = 0
    prompt = torch.randint(1, model.config.vocab_size, (1, 32 if run.tiny else 1024), device=run.device)
    more = 8 if run.tiny else 128
    options = {"max_new_tokens": more, "min_new_tokens": more, "do_sample": False}
    options |= {"cache_implementation": "static"} if kind == "static" else {}
    for _ in range(2):
        run.wait()
        begun = time.perf_counter()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        run.wait()
        taken = time.perf_counter() - begun
    return {"model": name, "side": side, "cache": kind, "tokens_per_s": more / taken}
