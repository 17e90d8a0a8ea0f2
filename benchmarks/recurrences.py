"""Recurrences on a CPU: zoo's functions against the torch functions of transformers, and whole models token by token.

    python benchmarks/recurrences.py                                  every case at full size, one thread and two
    python benchmarks/recurrences.py --case kda --tokens 512          one of them, shorter
    python benchmarks/recurrences.py --case step-gdn step-kda step-ssd --rounds 200
    python benchmarks/recurrences.py --memory --write                 and a table in benchmarks/results/recurrences.md

The same random inputs for both, turns alternate, medians count, and the largest relative difference of the outputs is
printed. transformers' side is what its models run without the kernels of flash-linear-attention and mamba-ssm: the
chunked functions for a prompt (of Kimi Linear for KDA, in chunks of 64; of Mamba-2 for SSD, in chunks of 256), the
recurrent ones for a token. A step is what a layer does with its state for one token: read it from its cache, length one
for queries and keys, recurrence, put it back; a turn is 16 tokens, one after the other. Memory is what a prompt of
twice as many tokens needs, against that of the prompt.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from transformers import DynamicCache, Mamba2Config, Mamba2ForCausalLM
from transformers.cache_utils import LinearAttentionLayer
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next
from transformers.utils import logging

import conversion
from benchmarks.measuring import difference, in_turns, peak_memory
from benchmarks.models import pair
from benchmarks.recurrence_results import RESULTS, show, write
from modeling_zoo.cache_recurrent import RecurrentLayer
from modeling_zoo.caches import upgrade_cache
from modeling_zoo.recurrences import delta_rule
from modeling_zoo.state_space import state_space_duality

HEADS, WIDTH = 16, 128
# Mean of the logarithm of the decay per token.
STRONG, MILD = 1.3, 0.03
# Tokens of a turn where each takes less than a millisecond.
STEPS = 16
MAMBA2 = {
    "vocab_size": 512, "hidden_size": 1024, "num_hidden_layers": 8, "num_heads": 32, "head_dim": 64, "state_size": 128,
    "n_groups": 1,
}  # fmt: skip
SMALL_MAMBA2 = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16}


@dataclass
class Case:
    """`build(options)` -> {side: a call that returns outputs}; the ratio transformers / zoo that is to be reached; how
    many tokens a call of a step takes, one after the other."""

    build: Callable
    bar: float | None = None
    rounds: int = 3
    steps: int = 1


def random_inputs(tokens: int, options, decay: float, per_channel: bool = False) -> dict[str, torch.Tensor]:
    """q, k, v `[1, L, H, 128]`, beta `[1, L, H]` and the logarithm of a decay with mean -`decay`."""
    generator = torch.Generator().manual_seed(0)
    heads, width = (2, 16) if options.small else (HEADS, WIDTH)
    shape = (1, tokens, heads, width)
    inputs = {name: torch.randn(shape, generator=generator) for name in ("query", "key", "value")}
    inputs["beta"] = torch.rand(shape[:3], generator=generator)
    inputs["g"] = -2 * decay * torch.rand(shape if per_channel else shape[:3], generator=generator)
    return inputs


def delta(module_function: Callable, decay: float, per_channel: bool = False) -> Callable:
    """The gated delta rule over a prompt."""

    def build(options) -> dict[str, Callable]:
        inputs = random_inputs(options.tokens, options, decay, per_channel)
        ours = [inputs[name] for name in ("query", "key", "value", "beta", "g")]
        arguments = {"initial_state": None, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
        return {
            "transformers": lambda: module_function(**inputs, **arguments)[0],
            "zoo": lambda: delta_rule(*ours, normalize=True)[0],
        }

    return build


def cache_layer(kind: type, state: torch.Tensor):
    """A cache layer of either side that holds a copy of `state`."""
    layer = kind()
    layer.update_recurrent_state(state.clone())
    layer.has_previous_state[0] = True
    return layer


def repeated(step: Callable) -> Callable:
    """`step`, `STEPS` times; gives the output of the last."""

    def turn() -> torch.Tensor:
        for _ in range(STEPS):
            output = step()
        return output

    return turn


def delta_step(module_function: Callable, decay: float, per_channel: bool = False) -> Callable:
    """The gated delta rule over one token behind a state, which comes from a cache and goes back there."""

    def build(options) -> dict[str, Callable]:
        inputs = random_inputs(1, options, decay, per_channel)
        # Parts of one tensor, as behind the convolution of a mixer.
        sizes = [inputs[name].shape[2:].numel() for name in ("query", "key", "value")]
        mixed = torch.cat([inputs[name].flatten(2) for name in ("query", "key", "value")], dim=-1).split(sizes, dim=-1)
        shape = inputs["key"].shape
        inputs |= {name: part.view(shape) for name, part in zip(("query", "key", "value"), mixed, strict=True)}
        ours = [inputs[name] for name in ("query", "key", "value", "beta", "g")]
        state = torch.randn(1, shape[2], shape[3], shape[3], generator=torch.Generator().manual_seed(1))
        theirs, own = cache_layer(LinearAttentionLayer, state), cache_layer(RecurrentLayer, state)
        arguments = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}

        def transformers() -> torch.Tensor:
            output, after = module_function(**inputs, initial_state=theirs.recurrent_states[0], **arguments)
            theirs.update_recurrent_state(after)
            return output

        def zoo() -> torch.Tensor:
            output, after = delta_rule(*ours, own.recurrent_states[0], normalize=True)
            own.update_recurrent_state(after, num_tokens=1)
            return output

        return {"transformers": repeated(transformers), "zoo": repeated(zoo)}

    return build


def duality(step: bool = False) -> Callable:
    """Mamba-2's recurrence over a prompt, or over one token behind a state."""

    def build(options) -> dict[str, Callable]:
        generator = torch.Generator().manual_seed(0)
        tokens, (heads, width) = 1 if step else options.tokens, (2, 16) if options.small else (HEADS, WIDTH)
        x = torch.randn(1, tokens, heads, width, generator=generator)
        time_step = torch.rand(1, tokens, heads, generator=generator) * 0.2
        rates, skip = -torch.rand(heads, generator=generator) * 4 * MILD / 0.2, torch.ones(heads)
        write, read = (torch.randn(1, tokens, 1, width, generator=generator) for _ in range(2))
        state = torch.randn(1, heads, width, width, generator=generator)
        # Theirs is value-first.
        states = [state.transpose(2, 3).contiguous(), state.clone()]

        def prompt():
            return mamba2.mamba2_chunk_scan(
                x, time_step, rates, write, read, chunk_size=256, D=skip, return_final_states=True
            )[0]

        def token():
            steps, skips = time_step[:, 0, :, None].expand(1, heads, width), skip[:, None].expand(heads, width)
            spread = rates[:, None, None].expand(heads, width, width)
            output = mamba2.mamba2_selective_state_update(
                states[0], x[:, 0], steps, spread, write[:, 0], read[:, 0], skips
            )
            return output[:, None]

        # Both write into the state they are given, which is the cache's.
        def zoo():
            return state_space_duality(x, time_step, rates, write, read, skip, states[1] if step else None)[0]

        return {"transformers": repeated(token), "zoo": repeated(zoo)} if step else {"transformers": prompt, "zoo": zoo}

    return build


def qwen3_next_pair(options) -> dict:
    """Three layers of gated delta rule and one of attention, wide as published, few experts."""
    return pair("gdn", torch.float32, tiny=options.small)


def mamba2_pair(options) -> dict:
    """Eight Mamba-2 layers."""
    torch.manual_seed(0)
    model = Mamba2ForCausalLM(Mamba2Config(**MAMBA2 | (SMALL_MAMBA2 if options.small else {})))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {"transformers": model.eval(), "zoo": conversion.load(Path(folder)).eval()}


def decoding(models: Callable) -> Callable:
    """One more token of a whole model behind a prompt of 64."""

    def build(options) -> dict[str, Callable]:
        sides = {}
        for side, model in models(options).items():
            name = "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
            cache = DynamicCache(config=model.config)
            if side == "zoo":
                upgrade_cache(cache, model.config)
            vocabulary = torch.Generator().manual_seed(2)
            prompt = torch.randint(1, 64, (1, 64), generator=vocabulary)
            model(prompt, **{name: cache}, use_cache=True)
            sides[side] = stepper(model, {name: cache}, vocabulary)
        return sides

    return build


def stepper(model, cache: dict, generator: torch.Generator) -> Callable:
    return lambda: model(torch.randint(1, 64, (1, 1), generator=generator), **cache, use_cache=True).logits


CASES = {
    "gdn-strong": Case(delta(qwen3_next.torch_chunk_gated_delta_rule, STRONG), 3.0),
    "gdn-mild": Case(delta(qwen3_next.torch_chunk_gated_delta_rule, MILD), 1.0),
    "kda": Case(delta(kimi.chunk_kimi_delta_attention, MILD, per_channel=True), 8.0),
    "ssd": Case(duality(), 2.0),
    "step-gdn": Case(delta_step(qwen3_next.torch_recurrent_gated_delta_rule, MILD), 4.0, 50, STEPS),
    "step-kda": Case(delta_step(kimi.recurrent_kimi_delta_attention, MILD, per_channel=True), 4.0, 50, STEPS),
    "step-ssd": Case(duality(step=True), 4.0, 50, STEPS),
    "decode-qwen3-next": Case(decoding(qwen3_next_pair), 1.1, 30),
    "decode-mamba2": Case(decoding(mamba2_pair), 1.1, 30),
}
PROMPTS = ("gdn-strong", "gdn-mild", "kda", "ssd")


def memory_of(case: Case, options) -> dict:
    """{side: [bytes of a prompt, of one twice as long]}, each after a first call that is not counted."""
    found = {}
    for side in ("transformers", "zoo"):
        found[side] = []
        for factor in (1, 2):
            longer = argparse.Namespace(**vars(options) | {"tokens": factor * options.tokens})
            work = case.build(longer)[side]
            work()
            found[side].append(peak_memory(work))
    return found


@torch.no_grad()
def measure(name: str, options) -> dict:
    """Medians, ratio and difference for each number of threads; memory of a prompt."""
    case = CASES[name]
    results = {"case": name, "bar": case.bar, "threads": {}}
    for threads in options.threads:
        torch.set_num_threads(threads)
        sides = case.build(options)
        times, outputs = in_turns(sides, options.rounds or (1 if options.small else case.rounds))
        error = difference(outputs["zoo"], outputs["transformers"])
        ratio = times["transformers"] / times["zoo"]
        seconds = {side: taken / case.steps for side, taken in times.items()}
        results["threads"][threads] = {"ratio": ratio, "seconds": seconds, "difference": error}
    if name in PROMPTS and options.memory:
        results["memory"] = memory_of(case, options)
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, default=2048, help="length of a prompt")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--memory", action="store_true", help="measure that of prompts too")
    parser.add_argument("--small", action="store_true", help="every size small: whether it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="one JSON object per case instead of lines")
    parser.add_argument("--write", nargs="?", const=RESULTS, type=Path, help="keep all in a table in this folder")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in options.case:
        found = measure(name, options)
        print(json.dumps(found) if options.json else show(found), flush=True)
        if options.write is not None:
            write(options.write, found, list(CASES))


if __name__ == "__main__":
    main()
