"""Alternating timings, peak memory, difference: what is measured of two sides that do the same."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: str) -> None:
    """Wait for everything queued on `device`."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


class Times(dict):
    """Median seconds by side; `cpu`: processor seconds of all threads, which other work disturbs less."""

    cpu: dict


def seconds(work: Callable, device: str = "cpu") -> tuple[tuple[float, float], object]:
    """How long `work` takes by the clock and in processor time, everything it queues included, and what it returns."""
    synchronize(device)
    started, spent = time.perf_counter(), time.process_time()
    result = work()
    synchronize(device)
    return (time.perf_counter() - started, time.process_time() - spent), result


def alternate(sides: dict[str, Callable], rounds: int, device: str = "cpu", warm: bool = False) -> tuple[Times, dict]:
    """Median seconds per side of `rounds` rounds in which every side runs once; what they last returned.

    The order is reversed from round to round. Unless all is `warm`, one round goes ahead that does not count.
    """
    times, results = {name: [] for name in sides}, {}
    for turn in range(1 if warm else 0, rounds + 1):
        order = list(sides)[:: 1 if turn % 2 else -1]
        for name in order:
            results.pop(name, None)
            taken, results[name] = seconds(sides[name], device)
            times[name].append(taken)
    medians = Times({name: statistics.median(clock for clock, _ in taken[-rounds:]) for name, taken in times.items()})
    medians.cpu = {name: statistics.median(spent for _, spent in taken[-rounds:]) for name, taken in times.items()}
    return medians, results


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest number."""
    found, expected = found.float(), expected.float()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def peak_memory(work: Callable, device: str = "cpu") -> int | None:
    """Bytes that `work` held at once beyond what was there before: on a CPU the process' resident memory, None where
    the system does not tell."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        before = _resident("VmRSS")
        work()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, AttributeError, StopIteration):
        work()
        return None


def _resident(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def result(kind: str, case: str, context: int, times: dict, error: float | None, memory: dict, **more) -> dict:
    """One measurement: what ran, medians in seconds, the ratio transformers / zoo, memory in bytes, difference."""
    cpu = getattr(times, "cpu", None)
    if cpu is not None and memory:
        more = {"cpu_seconds": cpu, "cpu_ratio": cpu["transformers"] / max(cpu["zoo"], 1e-9)} | more
    return {
        "kind": kind,
        "case": case,
        "context": context,
        "ratio": times["transformers"] / times["zoo"],
        "seconds": times,
        "memory": memory,
        "difference": error,
        **more,
    }


def in_words(value: float | None, unit: str) -> str:
    """A number with its unit, short."""
    if value is None:
        return "not measured"
    if unit == "s":
        return f"{1000 * value:.2f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value / 2**20:,.1f} MiB"


def show(one: dict) -> str:
    """A measurement as lines for people."""
    times, memory = one["seconds"], one["memory"]
    by_processor = f", in processor time {one['cpu_ratio']:.2f}" if "cpu_ratio" in one else ""
    lines = [f"{one['kind']} {one['case']}, context {one['context']}: ratio {one['ratio']:.2f}{by_processor}"]
    for side in ("transformers", "zoo"):
        held = in_words(memory.get(side), "B")
        lines.append(f"  {side:12s} median {in_words(times[side], 's')}, peak memory {held}")
    if one["difference"] is not None:
        lines.append(f"  largest relative difference of the {one.get('compared', 'logits')}: {one['difference']:.1e}")
    if "limit" in one:
        from .limit import in_words as limit_in_words

        lines.append(f"  {limit_in_words(one['limit'])}")
    lines += [f"  {name}: {value}" for name, value in one.get("notes", {}).items()]
    return "\n".join(lines)
