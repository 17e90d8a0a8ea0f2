"""Recurrences on a CPU: zoo's functions against the torch functions of transformers, and whole models token by token.

    python benchmarks/recurrences.py                                  every case at full size, one thread and two
    python benchmarks/recurrences.py --case kda --tokens 512          one of them, shorter
    python benchmarks/recurrences.py --case step-gdn step-kda step-ssd --rounds 200
    python benchmarks/recurrences.py --memory --write                 and a table in benchmarks/results/recurrences.md

The same random inputs for both, turns alternate, medians count, and the largest relative difference of the outputs is
printed. transformers' side is what its models run without the kernels of flash-linear-attention and mamba-ssm: the
chunked functions for a prompt (of Kimi Linear for KDA, in chunks of 64; of Mamba-2 for SSD, in chunks of 256), the
recurrent ones for a token. A step is what a layer does with its state for one token: take it from its cache, length one
for queries and keys, recurrence, put it back; a turn is 16 tokens, one after the other. zoo defers the writes of single
tokens, as RecurrentCacheView.recur does, and passes over the state with all of them every 16 tokens: each turn contains
one such pass.
Memory is what a prompt of twice as many tokens needs, against that of the prompt.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from transformers import DynamicCache, Mamba2Config, Mamba2ForCausalLM
from transformers.cache_utils import Cache, LinearAttentionLayer
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next
from transformers.utils import logging

import conversion
from benchmarks.measuring import alternate, difference, peak_memory
from benchmarks.models import pair
from benchmarks.recurrence_results import RESULTS, show, write
from modeling_zoo.cache_recurrent import RecurrentLayer
from modeling_zoo.cache_recurrent_view import RecurrentCacheView
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.ops_recurrence import delta_rule
from modeling_zoo.ops_recurrence_decode import SLOTS
from modeling_zoo.ops_state_space import state_space_duality

HEADS, WIDTH = 16, 128
STRONG, MILD = 1.3, 0.03  # mean of the logarithm of the decay per token
# Tokens of a turn where each takes less than a millisecond: after so many zoo writes them into its state.
STEPS = SLOTS
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


def each(step: Callable, tokens: list) -> Callable:
    """`step` of every token, one after the other; gives the output of the last."""

    def turn() -> torch.Tensor:
        for token in tokens:
            output = step(token)
        return output

    return turn


def delta_tokens(options, decay: float, per_channel: bool) -> list[dict[str, torch.Tensor]]:
    """`random_inputs` of tokens; q, k and v are parts of one tensor, as behind a convolution, "pair" is q and k."""
    tokens, names = [], ("query", "key", "value")
    for inputs in split_tokens(random_inputs(STEPS, options, decay, per_channel)):
        mixed = torch.stack([inputs[name] for name in names], dim=2)
        parts = dict(zip(names, mixed.unbind(2), strict=True))
        tokens.append(inputs | parts | {"pair": mixed[:, :, :2]})
    return tokens


def split_tokens(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Tensors `[1, L, ...]` -> those of each token, `[1, 1, ...]`."""
    parts = [states.clone().split(1, dim=1) for states in inputs.values()]
    return [dict(zip(inputs, token, strict=True)) for token in zip(*parts, strict=True)]


def delta_step(module_function: Callable, decay: float, per_channel: bool = False) -> Callable:
    """The gated delta rule over one token behind a state, which comes from a cache and goes back there."""

    def build(options) -> dict[str, Callable]:
        tokens = delta_tokens(options, decay, per_channel)
        heads, width = tokens[0]["key"].shape[2:]
        state = torch.randn(1, heads, width, width, generator=torch.Generator().manual_seed(1))
        theirs = cache_layer(LinearAttentionLayer, state)
        cache = Cache(layers=[cache_layer(RecurrentLayer, state)])
        arguments = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}

        def transformers(inputs) -> torch.Tensor:
            output, after = module_function(**inputs, initial_state=theirs.recurrent_states[0], **arguments)
            theirs.update_recurrent_state(after)
            return output

        def zoo(inputs) -> torch.Tensor:
            return delta_rule(*inputs, RecurrentCacheView(cache, 0).deferred_state(), normalize=True)[0]

        ours = [(token.pop("pair"), None, token["value"], token["beta"], token["g"]) for token in tokens]
        return {"transformers": each(transformers, tokens), "zoo": each(zoo, ours)}

    return build


def duality_inputs(tokens: int, options) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """x `[1, L, H, P]`, time steps `[1, L, H]`, what writes and what reads `[1, L, 1, N]`; rates and skips `[H]`."""
    generator, (heads, width) = torch.Generator().manual_seed(0), (2, 16) if options.small else (HEADS, WIDTH)
    inputs = {"x": torch.randn(1, tokens, heads, width, generator=generator)}
    inputs["time_step"] = torch.rand(1, tokens, heads, generator=generator) * 0.2
    rates = -torch.rand(heads, generator=generator) * 4 * MILD / 0.2
    inputs |= {name: torch.randn(1, tokens, 1, width, generator=generator) for name in ("write", "read")}
    return inputs, rates, torch.ones(heads)


def duality(options) -> dict[str, Callable]:
    """Mamba-2's recurrence over a prompt."""
    inputs, rates, skip = duality_inputs(options.tokens, options)
    x, time_step, write, read = inputs.values()
    arguments = {"chunk_size": 256, "D": skip, "return_final_states": True}
    return {
        "transformers": lambda: mamba2.mamba2_chunk_scan(x, time_step, rates, write, read, **arguments)[0],
        "zoo": lambda: state_space_duality(x, time_step, rates, write, read, skip)[0],
    }


def duality_step(options) -> dict[str, Callable]:
    """Mamba-2's recurrence over one token behind a state in a cache."""
    inputs, rates, skip = duality_inputs(STEPS, options)
    heads, width = inputs["x"].shape[2:]
    # Theirs is value-first, and written into as it lies in the cache.
    state = torch.randn(1, heads, width, width, generator=torch.Generator().manual_seed(1))
    their_state = state.transpose(2, 3).contiguous()
    cache = Cache(layers=[cache_layer(RecurrentLayer, state)])

    def transformers(token) -> torch.Tensor:
        x, time_step, write, read = (states[:, 0] for states in token.values())
        steps, skips = time_step[..., None].expand(1, heads, width), skip[:, None].expand(heads, width)
        spread = rates[:, None, None].expand(heads, width, width)
        return mamba2.mamba2_selective_state_update(their_state, x, steps, spread, write, read, skips)[:, None]

    def zoo(token) -> torch.Tensor:
        x, time_step, write, read = token.values()
        return state_space_duality(
            x, time_step, rates, write, read, skip, RecurrentCacheView(cache, 0).deferred_state()
        )[0]

    return {"transformers": each(transformers, split_tokens(inputs)), "zoo": each(zoo, split_tokens(inputs))}


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


def one_more(model, cache: dict, generator: torch.Generator) -> torch.Tensor:
    return model(torch.randint(1, 64, (1, 1), generator=generator), **cache, use_cache=True).logits


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
            sides[side] = partial(one_more, model, {name: cache}, vocabulary)
        return sides

    return build


CASES = {
    "gdn-strong": Case(delta(qwen3_next.torch_chunk_gated_delta_rule, STRONG), 3.0),
    "gdn-mild": Case(delta(qwen3_next.torch_chunk_gated_delta_rule, MILD), 1.0),
    "kda": Case(delta(kimi.chunk_kimi_delta_attention, MILD, per_channel=True), 8.0),
    "ssd": Case(duality, 2.0),
    "step-gdn": Case(delta_step(qwen3_next.torch_recurrent_gated_delta_rule, MILD), 4.0, 50, STEPS),
    "step-kda": Case(delta_step(kimi.recurrent_kimi_delta_attention, MILD, per_channel=True), 4.0, 50, STEPS),
    "step-ssd": Case(duality_step, 4.0, 50, STEPS),
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
        times, outputs = alternate(sides, options.rounds or (1 if options.small else case.rounds))
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
