"""What a conversion costs, in memory and in time beside `cp`: a checkpoint into zoo and back, each in a process.

    python -m benchmarks storage                  a Llama and a Mixtral of 2.5 GB
    python -m benchmarks storage --case llama --rounds 5 --out results

Everything runs on one core. Start-up is the same command on a model of a few kilobytes; the ratio is what a conversion
takes beyond it over what `cp -r` takes of the folder that is read, alternately, medians, the files in the page cache.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .measuring import in_words
from .table import processor

BAR = 2.0
# Load from which on the ratio is judged in processor time.
BUSY = 1.5
# Sizes of Llama 3.2 1B, and of a Mixtral with experts of 7.3 MB: 2.5 GB each.
SIZES = {
    "llama": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "mixtral": {
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 13, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 32000, "num_local_experts": 8,
    },
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "num_local_experts": 2,
}  # fmt: skip
# The system counts this peak from where a program begins; that of getrusage may be its parent's.
_MEASURED = """
import re
from pathlib import Path
from zoo.cli.main import main
try:
    main()
finally:
    status = Path("/proc/self/status")
    held = re.search(r"VmHWM:\\s*(\\d+)", status.read_text()) if status.exists() else None
    print(1024 * int(held[1]) if held else None)
"""


def zoo_command(*arguments: str | Path) -> list[str]:
    """`zoo` with these arguments, whose last line says the most bytes of memory that it held."""
    return [sys.executable, "-c", _MEASURED, *map(str, arguments)]


def ran(command: list[str]) -> dict[str, Any]:
    """Runs a program -> its seconds by the clock and of the processor, and what it said last. Raises RuntimeError where
    it fails."""
    os.sync()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": spent, "last": (done.stdout.split() or [""])[-1]}


def published(folder: Path, case: str, sizes: dict[str, Any]) -> int:
    """Writes a random model of transformers' class in bfloat16 -> bytes of the folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(case, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="1GB")
    return sum(path.stat().st_size for path in folder.iterdir())


def medians(ways: dict[str, Callable[[], dict]], rounds: int) -> dict[str, dict]:
    """Every way in turn, one round ahead that does not count -> medians, and the most memory."""
    found: dict[str, list[dict]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            found[name].append(way())
    counted = {name: runs[1:] for name, runs in found.items()}
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu")}
        | {"memory": max((int(run["last"]) for run in runs if run["last"].isdigit()), default=None)}
        for name, runs in counted.items()
    }


def measured(case: str, rounds: int, tiny: bool) -> dict[str, Any]:
    """One model, in and out beside `cp`: seconds, ratios to it, memory."""
    with tempfile.TemporaryDirectory() as parent:
        large, small = Path(parent) / "large", Path(parent) / "small"
        size = published(large / "theirs", case, TINY if tiny else SIZES[case])
        published(small / "theirs", case, TINY)

        def convert(root: Path, source: str, target: str, *more: str) -> dict:
            rmtree(root / target, ignore_errors=True)
            return ran(zoo_command("convert", root / source, root / target, *more))

        def copy() -> dict:
            rmtree(large / "copy", ignore_errors=True)
            return ran(["cp", "-r", str(large / "theirs"), str(large / "copy")])

        ways = {
            "cp": copy,
            "start-up": lambda: convert(small, "theirs", "zoo"),
            "in": lambda: convert(large, "theirs", "zoo"),
            "start-up out": lambda: convert(small, "zoo", "back", "--to", case),
            "out": lambda: convert(large, "zoo", "back", "--to", case),
        }
        found = medians(ways, rounds)
    for name, start in (("in", "start-up"), ("out", "start-up out")):
        for key in ("seconds", "cpu"):
            found[name][f"ratio_{key}"] = (found[name][key] - found[start][key]) / found["cp"][key]
    return {"case": case, "bytes": size, "load": os.getloadavg()[0], **found}


def show(found: dict[str, Any]) -> str:
    """`llama, 2.5 GB: cp 1.2 s ...`"""
    lines = [
        f"{found['case']}, {found['bytes'] / 1e9:.2f} GB: cp {in_words(found['cp']['seconds'], 's')} "
        f"({in_words(found['cp']['cpu'], 's')} of the processor), load of the machine {found['load']:.1f}"
    ]
    for name, start in (("in", "start-up"), ("out", "start-up out")):
        one = found[name]
        held = "?" if one["memory"] is None else f"{one['memory'] / 1e9:.2f} GB"
        lines.append(
            f"  {name:3s} {in_words(one['seconds'], 's')} ({in_words(one['cpu'], 's')}), of which start-up "
            f"{in_words(found[start]['seconds'], 's')} ({in_words(found[start]['cpu'], 's')}): "
            f"{one['ratio_seconds']:.2f} × cp ({one['ratio_cpu']:.2f} in processor time), memory {held}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", choices=(*SIZES, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="every size small: whether it runs, not how fast")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--out", help="a folder for storage.md and storage.json")


def run(options: argparse.Namespace) -> str:
    """The measurement in words, or as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cases = SIZES if options.case == "all" else (options.case,)
    found = [measured(case, options.rounds, options.tiny) for case in cases]
    where = f"one core of {processor()}"
    words = "\n".join(show(one) for one in found)
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "storage.json").write_text(json.dumps({"machine": where, "results": found}, indent=1) + "\n")
        (folder / "storage.md").write_text(page(where, found))
    return json.dumps({"machine": where, "results": found}) if options.json else f"{where}\n{words}"


def page(where: str, found: list[dict[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# Conversions beside `cp`",
        "",
        f"`python -m benchmarks storage` on {where}. Start-up: the same command on a model of a few kilobytes. The "
        "ratio is what is beyond it over what `cp -r` takes of the folder that is read; in brackets in processor time, "
        f"which other work on the machine disturbs less: it is what counts under a load of more than {BUSY}.",
        "",
        "| model | GB | | cp | start-up | conversion | ratio | peak memory | target | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for name, start in (("in", "start-up"), ("out", "start-up out")):
            times = [f"{part['seconds']:.2f} s ({part['cpu']:.2f})" for part in (one["cp"], one[start], one[name])]
            way = one[name]
            held = "" if way["memory"] is None else f"{way['memory'] / 1e9:.2f} GB"
            ratio = f"{way['ratio_seconds']:.2f} ({way['ratio_cpu']:.2f})"
            # Other work on the core is in the seconds of the clock, not in those of the processor.
            judged = way["ratio_cpu" if one["load"] > BUSY else "ratio_seconds"]
            met = "met" if judged <= BAR else "missed"
            cells = [one["case"], f"{one['bytes'] / 1e9:.2f}", name, *times, ratio, held, f"≤ {BAR:g}: {met}"]
            lines.append("| " + " | ".join([*cells, f"{one['load']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"
