"""zoo against transformers: the same converted weights, one process, alternately, medians.

    python -m benchmarks                                       the cases
    python -m benchmarks decode --case mla --context 8192      one of them
    python -m benchmarks table                                 all of them, as benchmarks/results/<name>.md
    python -m benchmarks plot --max 16384                      decode time against context, a picture and a table
    python -m benchmarks checkpoint examples/stories260K       both classes on a checkpoint you have
    python -m benchmarks storage                               a conversion beside cp: time on one core, memory
    python -m benchmarks mtp                                   decoding with drafts by a model's own prediction layers
    python -m benchmarks bits                                  decoding with weights of eight and four bits
    python -m benchmarks whole                                 a whole Llama of 309M, beside llama.cpp too
    python -m benchmarks gpu --out results                     everything that one GPU can say in six minutes

Each prints its ratio, both medians, peak memory and the largest relative difference of the logits.
"""

import argparse
import json
import sys
from dataclasses import replace

import torch
from transformers.utils import logging

from . import cases, checkpoint, curves, low_bits, multi_token, storage, table
from . import whole as whole_model
from .gpu import command as gpu

# Scripts of their own beside the cases.
SCRIPTS = ("recurrences", "loss")


def listing() -> str:
    """Every case with its context and target."""
    lines = [__doc__.strip(), "", "kind        case      context  target"]
    for case in cases.CASES:
        bar = "" if case.bar is None else f"{'memory ≤' if case.measure == 'memory' else '≥'} {case.bar:g}"
        lines.append(f"{case.kind:11s} {case.case:9s} {case.context:7d}  {bar}".rstrip())
    lines += ["", "plot        gqa, sliding, mla, dsa, gdn"]
    lines += [f"python benchmarks/{name}.py" for name in SCRIPTS if (table.HERE / f"{name}.py").is_file()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """One subcommand per kind of measurement, and those that run many."""
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(dest="command")
    for kind in cases.KINDS:
        one = commands.add_parser(kind)
        names = sorted({case.case for case in cases.CASES if case.kind == kind})
        one.add_argument("--case", choices=names, default=names[0])
        one.add_argument("--context", type=int, help="tokens; the case's own when left out")
    everything = commands.add_parser("table")
    everything.add_argument("--name", default="cpu", help="file name in benchmarks/results")
    everything.add_argument("--only", nargs="*", default=[], help="kinds or cases; all when left out")
    plot = commands.add_parser("plot")
    plot.add_argument("--case", nargs="*", default=list(curves.CASES), choices=curves.CASES)
    plot.add_argument("--min", type=int, default=256)
    plot.add_argument("--max", type=int, default=65536)
    plot.add_argument("--name", default="decode", help="file name in benchmarks/results")
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--rounds", type=int)
        command.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
        command.add_argument("--device", default="cpu")
        command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
        command.add_argument("--tiny", action="store_true", help="every size small: whether it runs, not how fast")
        command.add_argument("--out", help="folder of results instead of benchmarks/results")
    checkpoint.add_arguments(commands.add_parser("checkpoint"))
    low_bits.add_arguments(commands.add_parser("bits"))
    multi_token.add_arguments(commands.add_parser("mtp"))
    storage.add_arguments(commands.add_parser("storage"))
    whole_model.add_arguments(commands.add_parser("whole"))
    gpu.add_arguments(commands.add_parser("gpu"))
    return whole


def single(arguments, options: cases.Options) -> str:
    """One case, as the table has it or at the context that is asked for."""
    case = cases.find(arguments.command, arguments.case, arguments.context)
    found = cases.run(replace(case, rounds=case.rounds if arguments.rounds is None else arguments.rounds), options)
    return json.dumps(found) if arguments.json else cases.KINDS[case.kind][1](found)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command is None:
        print(listing())
        return 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    others = {"checkpoint": checkpoint.run, "bits": low_bits.run, "mtp": multi_token.run, "storage": storage.run}
    others["whole"] = whole_model.run
    if arguments.command in others:
        print(others[arguments.command](arguments))
        return 0
    if arguments.command == "gpu":
        return gpu.run(arguments)
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    options = cases.Options(arguments.rounds or 3, dtype, arguments.device, arguments.tiny)
    commands = {"table": table.write, "plot": curves.draw}
    print(commands.get(arguments.command, single)(arguments, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
