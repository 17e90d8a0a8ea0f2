"""A whole Llama on a CPU: decoded tokens and prompts beside transformers, in fewer bits, and beside llama.cpp.

    python -m benchmarks whole --llama-cpp .venv-llama-cpp/bin/python --publish
    python -m benchmarks whole --case llama-309m --contexts 64 --prompts 512

One process, the same random weights, in turn; medians, of processor time too. Behind a context stands a cache of random
keys and values. llama.cpp runs the same weights in a process of its own, and says how many of the greedy tokens it
would have chosen. The limit is what moving a token's bytes takes at the speed at which this process reads memory.
"""

import argparse
import copy
import json
import statistics
import tempfile
import textwrap
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import conversion
from modeling_zoo.cache_upgrade import upgrade_cache
from zoo.inspection import reported

from . import peer
from .limit import read_speed
from .measuring import difference, seconds
from .table import HERE, processor

# 309 million numbers: 16 layers of 1024.
CASES = {
    "llama-309m": {
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64,
    },
    "tiny": {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip
SIDES = ("transformers", "zoo")
# Tokens decoded in a row; tokens that llama.cpp is asked about; tokens of a prompt that is read in parts.
RUN, ASKED, PART = 8, 16, 512
README = HERE.parent / "README.md"
BEGIN, END = "<!-- begin whole: python -m benchmarks whole --publish -->", "<!-- end whole -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", choices=CASES, default="llama-309m")
    parser.add_argument("--contexts", type=int, nargs="*", default=[64, 2048, 8192], help="tokens before a decoded one")
    parser.add_argument("--prompts", type=int, nargs="*", default=[64, 512, 2048], help="tokens of whole prompts")
    parser.add_argument("--chunked", type=int, nargs="*", default=[2048], help=f"tokens of prompts in parts of {PART}")
    parser.add_argument("--rounds", type=int, default=5, help="half as many of long prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", nargs="*", default=["int8", "int4"], choices=["int8", "int4"], help="by torchao")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="an interpreter that can import llama_cpp")
    parser.add_argument("--name", default="whole", help="file name in benchmarks/results")
    parser.add_argument("--out", help="folder of results instead of benchmarks/results")
    parser.add_argument("--publish", action="store_true", help="the README's table from the result as well")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


# -- the models --------------------------------------------------------------------------------------------------------


def models(case: str) -> dict[str, nn.Module]:
    """transformers' class and zoo's, on one set of random weights, in bfloat16."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**CASES[case], max_position_embeddings=16384)).to(torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return {"transformers": theirs, "zoo": conversion.load(Path(folder), torch.bfloat16).eval()}


def in_bits(model: nn.Module, words: list[str]) -> dict[str, nn.Module]:
    """Copies of a model in fewer bits; none without torchao."""
    from zoo.cli.errors import UserError
    from zoo.cli.low_bits import in_few_bits

    found = {}
    for word in words:
        try:
            changed = copy.deepcopy(model)
            in_few_bits(changed, word)
            found[word] = changed
        except UserError as error:
            print(error)
    return found


def filled_cache(model: nn.Module, context: int) -> DynamicCache:
    """A cache behind `context` tokens of random keys and values, as the class keeps them."""
    config, cache = model.config, DynamicCache(config=model.config)
    if config.model_type == "zoo":
        upgrade_cache(cache, config)
    generator = torch.Generator().manual_seed(1)
    shape = (1, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, generator=generator).bfloat16() for _ in range(2)), layer)
    return cache


def decoding(model: nn.Module, context: int) -> Callable:
    """What decodes `RUN` tokens behind `context` others, again and again."""
    cache, token = filled_cache(model, context), torch.ones(1, 1, dtype=torch.long)

    @torch.no_grad()
    def run() -> torch.Tensor:
        logits = [model(token, past_key_values=cache).logits for _ in range(RUN)]
        cache.crop(-RUN)
        return torch.cat(logits)

    return run


def reading(model: nn.Module, tokens: torch.Tensor, part: int) -> Callable:
    """What reads a prompt in parts of `part` tokens."""

    @torch.no_grad()
    def run() -> torch.Tensor:
        cache = None
        for piece in tokens.split(part, dim=1):
            output = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
        return output.logits

    return run


# -- measuring ---------------------------------------------------------------------------------------------------------


def in_turn(sides: dict[str, Callable], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Clock and processor seconds of every round, in which each side runs once, the order reversed from round to round.
    All have run before."""
    taken = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            taken[name].append(seconds(sides[name])[0])
    return taken


def row(kind: str, tokens: int, taken: dict, count: int, error: float) -> dict:
    """Medians for each of `count` tokens; ratios are medians of the rounds' ratios, in which other work on the machine
    counts once."""
    clock = {name: statistics.median(one for one, _ in found) / count for name, found in taken.items()}
    spent = {name: statistics.median(two for _, two in found) / count for name, found in taken.items()}
    pairs = list(zip(taken["transformers"], taken["zoo"], strict=True))
    ratios = [statistics.median(theirs[part] / ours[part] for theirs, ours in pairs) for part in (0, 1)]
    found = {"kind": kind, "tokens": tokens, "seconds": clock, "cpu_seconds": spent}
    return found | {"ratio": ratios[0], "cpu_ratio": ratios[1], "difference": error}


def measure(options: argparse.Namespace) -> dict:
    """{"rows": decode, prompt and chunked by tokens; what ran, where; "llama_cpp": what the worker found}."""
    made = models(options.case)
    few, speed, rows = in_bits(made["zoo"], options.bits), read_speed(), []
    vocabulary = made["zoo"].config.vocab_size
    most = max([*options.contexts, *options.prompts, *options.chunked, ASKED])
    tokens = torch.randint(3, vocabulary, (1, most), generator=torch.Generator().manual_seed(0))
    for context in options.contexts:
        # Fewer bits where reading weights is most of the time.
        here = made | (few if context == min(options.contexts) else {})
        sides = {name: decoding(model, context) for name, model in here.items()}
        ran = {name: run() for name, run in sides.items()}
        error = difference(ran["zoo"], ran["transformers"])
        one = row("decode", context, in_turn(sides, options.rounds), RUN, error)
        moved = reported(made["zoo"].config, context)["bytes_moved_per_token"]
        one["limit"] = {"bytes": moved, "seconds": moved / speed}
        rows.append(one)
    for kind, lengths in (("prompt", options.prompts), ("chunked", options.chunked)):
        for length in lengths:
            part = min(PART, -(-length // 2)) if kind == "chunked" else length
            sides = {name: reading(model, tokens[:, :length], part) for name, model in made.items()}
            error = difference(sides["zoo"](), sides["transformers"]())
            rounds = options.rounds if length <= PART else max(1, options.rounds // 2)
            rows.append(row(kind, length, in_turn(sides, rounds), 1, error))
    found = {
        "case": options.case, "parameters": sum(weight.numel() for weight in made["zoo"].parameters()),
        "processor": processor(), "threads": options.threads, "torch": torch.__version__, "date": str(date.today()),
        "transformers": transformers.__version__, "bytes_per_second": speed, "rows": rows,
    }  # fmt: skip
    if options.llama_cpp:
        found["llama_cpp"] = beside_llama_cpp(options, made, tokens)
    return found


@torch.no_grad()
def beside_llama_cpp(options: argparse.Namespace, made: dict[str, nn.Module], tokens: torch.Tensor) -> dict:
    """llama.cpp's times at the same contexts and prompts, and its agreement with zoo's greedy tokens."""
    prompt = tokens[:, :ASKED]
    greedy = {"max_new_tokens": ASKED, "min_new_tokens": ASKED, "do_sample": False, "pad_token_id": 0}
    answers = {name: model.generate(prompt, **greedy)[0, ASKED:].tolist() for name, model in made.items()}
    request = {
        "tokens": tokens[0].tolist(), "prompt": prompt[0].tolist(), "chosen": answers["zoo"], "rounds": options.rounds,
        "contexts": sorted(options.contexts), "prompts": options.prompts, "threads": options.threads, "run": RUN,
        "batch": PART,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        peer.write_gguf(made["transformers"], path)
        found = peer.run_llama_cpp(options.llama_cpp, path, request)
    return found | {"equal_tokens": answers["zoo"] == answers["transformers"]}


# -- showing -----------------------------------------------------------------------------------------------------------


def table(found: dict) -> list[str]:
    """A row for each context and prompt: milliseconds, ratios, shares of the limit."""
    other = found.get("llama_cpp")
    lines = [
        "| | tokens | transformers | zoo | ratio (processor time) | of the limit |" + (" llama.cpp |" if other else "")
    ]
    lines += ["|---|---|---|---|---|---|" + ("---|" if other else "")]
    names = {"decode": "decode, a token", "prompt": "prompt, whole", "chunked": f"prompt, in parts of {PART}"}
    for one in found["rows"]:
        theirs, ours = (milliseconds(one["seconds"][side]) for side in SIDES)
        share = ""
        if "limit" in one:
            share = " → ".join(f"{one['limit']['seconds'] / one['seconds'][side]:.0%}" for side in SIDES)
        cells = [
            names[one["kind"]],
            str(one["tokens"]),
            theirs,
            ours,
            f"{one['ratio']:.2f} ({one['cpu_ratio']:.2f})",
            share,
        ]
        if other:
            spent = other.get({"chunked": "none"}.get(one["kind"], one["kind"]), {}).get(str(one["tokens"]))
            cells.append("" if spent is None else milliseconds(spent[0]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def milliseconds(spent: float) -> str:
    return f"{spent * 1e3:,.1f} ms" if spent < 1 else f"{spent * 1e3:,.0f} ms"


def sentences(found: dict) -> list[str]:
    """What was run, fewer bits, and whether the tokens are the same."""
    where = f"{found['processor']}, {found['threads']} threads, reads {found['bytes_per_second'] / 1e9:.1f} GB/s"
    said = [
        f"A Llama of {found['parameters'] / 1e6:.0f} million numbers in bfloat16 on {where}; torch {found['torch']}, "
        f"transformers {found['transformers']}; {found['date']}. Ratio: transformers' time over zoo's."
    ]
    for one in found["rows"]:
        for word in ("int8", "int4"):
            if word in one["seconds"]:
                spent = milliseconds(one["seconds"][word])
                faster = one["seconds"]["transformers"] / one["seconds"][word]
                said.append(
                    f"`--quantize {word}` at {one['tokens']} tokens: {spent}, {faster:.2f} × transformers' speed."
                )
    other = found.get("llama_cpp")
    if other:
        said.append(
            f"llama.cpp (llama-cpp-python {other['version']}) in a process of its own, on the same weights, would have "
            f"chosen {other['agreed']} of {other['of']} greedy tokens; transformers and zoo chose "
            f"{'the same' if other['equal_tokens'] else 'different ones'}."
        )
    return said


def page(found: dict) -> str:
    """The result as a file for people."""
    head = ["# A whole model on a CPU", "", f"`python -m benchmarks whole --case {found['case']}`.", ""]
    return "\n".join([*head, *table(found), "", *(f"- {sentence}" for sentence in sentences(found)), ""])


def readme_part(folder: Path = HERE / "results", name: str = "whole") -> str:
    """The README's table of the result that is there; nothing where there is none."""
    store = folder / f"{name}.json"
    if not store.is_file():
        return ""
    found = json.loads(store.read_text())
    text = textwrap.wrap(" ".join(sentences(found)), 130, break_long_words=False, break_on_hyphens=False)
    return "\n".join(["", *text, "", *table(found), "", ""])


def part_of(text: str) -> str:
    """What stands between the marks."""
    return text.split(f"{BEGIN}\n")[1].split(END)[0]


def with_part(text: str, part: str) -> str:
    """The README with its part about the whole model replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{part}{END}{rest.split(END)[1]}"


def run(options: argparse.Namespace) -> str:
    """Measures, writes the result, and shows it."""
    if options.llama_cpp:
        peer.check_interpreter(options.llama_cpp)
    torch.set_num_threads(options.threads)
    found = measure(options)
    folder = Path(options.out) if options.out else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    # As read back: keys of JSON are words.
    text = json.dumps(found, indent=1) + "\n"
    found = json.loads(text)
    (folder / f"{options.name}.json").write_text(text, encoding="utf-8")
    (folder / f"{options.name}.md").write_text(page(found), encoding="utf-8")
    if options.publish:
        README.write_text(
            with_part(README.read_text(encoding="utf-8"), readme_part(folder, options.name)), encoding="utf-8"
        )
    return json.dumps(found) if options.json else page(found)
