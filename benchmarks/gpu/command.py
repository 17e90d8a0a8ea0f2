"""`python -m benchmarks gpu`: the sections one after the other within the time limit, rows written as they come, the
table last."""

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .harness import Options, Section
from .page import Results, publish, shown, table
from .sections import SECTIONS, wanted
from .workers import Crew

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "transformers", "flash-linear-attention")
# Kept back from the time that is given: for imports, for a section that is ended late, for the table.
RESERVE = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: whether it runs, tiny sizes")
    parser.add_argument("--seconds", type=float, default=330, help="all of it, the start included")
    parser.add_argument("--only", default="", help=f"of {', '.join(one.name for one in SECTIONS)}; by comma")
    parser.add_argument("--mixers", default="", help="of the small models, by semicolon")
    parser.add_argument("--out", default="gpu_results", help="folder for gpu.json and gpu.md")
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--start", default="fork", choices=("fork", "spawn"), help="how a process begins")
    parser.add_argument("--publish", metavar="NAME", help="do not measure: --out's results to benchmarks/results/NAME")


def run(arguments: argparse.Namespace) -> int:
    """Measures, or publishes what was measured; 0."""
    if arguments.publish:
        print(publish(Path(arguments.out) / "gpu.json", arguments.publish))
        return 0
    options = Options(
        device=arguments.device,
        seconds=arguments.seconds,
        only=tuple(name for name in arguments.only.split(",") if name),
        mixers=tuple(name for name in arguments.mixers.split(";") if name),
        out=arguments.out,
        workers=arguments.workers,
        start=arguments.start,
    )
    unknown = set(options.only) - {section.name for section in SECTIONS}
    if unknown:
        raise SystemExit(f"no such section: {', '.join(sorted(unknown))}")
    check = Check(options)
    check.run(wanted(options.only))
    print(table(check.results), flush=True)
    return 0


class Check:
    """The run of all sections: this process measures nothing and never touches the device."""

    def __init__(self, options: Options):
        self.options, self.started = options, time.time()
        self.folder = Path(options.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(info={"device": options.device, **versions(), **commit()}, rows=[])

    def run(self, sections: list[Section]) -> None:
        """Each section has its share of what is left, so that what one does not use goes to those behind it."""
        # An answer about the device from the driver's own library: a process that has asked CUDA cannot fork.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        print(self.results.info, flush=True)
        end, ceilings = self.started + self.options.seconds - RESERVE, {}
        for index, section in enumerate(sections):
            share = section.weight / sum(one.weight for one in sections[index:])
            stop = time.time() + (end - time.time()) * share
            self.work(section, stop, ceilings)
            if section.name == "ceilings":
                if not self.measured() and self.options.start == "fork":
                    # The device cannot be used in a fork: from here on every process is started from scratch.
                    self.options.start = self.results.info["start"] = "spawn"
                    self.results.rows.clear()
                    self.work(section, stop + 20, ceilings)
                ceilings = next(iter(self.measured()), {})
                self.results.info["device"] = ceilings.get("device", self.options.device)
            self.results.info["seconds"][section.name] = round(time.time() - self.started, 1)
        self.write()

    def work(self, section: Section, stop: float, ceilings: dict) -> None:
        Crew(section, self.options, stop, ceilings, self.add).run()

    def measured(self) -> list[dict]:
        """The rows with the ceilings of this card: one, or none where measuring them failed."""
        return [row for row in self.results.rows if "copy_GBps" in row]

    def add(self, row: dict) -> None:
        """A row: shown and written at once, so that a run that is cut off loses nothing."""
        self.results.rows.append(row)
        hidden = ("section", "name", "all", "trace", "model", "context", "batch", "side", "cache", "form", "of")
        values = {key: shown(value) for key, value in row.items() if key not in hidden}
        print(f"[{time.time() - self.started:5.1f}s] {row['section']:9s} {row['name']}: {values}", flush=True)
        self.write()

    def write(self) -> None:
        self.results.write(self.folder, "gpu")


def versions() -> dict:
    """Versions of what computes, the date, the machine's processor count; nothing that asks the device."""
    found = {"date": date.today().isoformat(), "python": sys.version.split()[0], "cores": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"machine": platform.machine(), "seconds": {}}


def commit() -> dict:
    """The commit of this checkout, where git tells."""
    line = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return {"commit": subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("ZOO_COMMIT")}
