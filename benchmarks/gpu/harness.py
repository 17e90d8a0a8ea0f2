"""What every section is made of: items of work that give rows, the clock they have, and timers of device work."""

import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

HALF = torch.bfloat16


@dataclass
class Options:
    """What the command line says."""

    device: str = "cuda"
    seconds: float = 330.0
    only: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    out: str = "gpu_results"
    workers: int = 8
    start: str = "fork"


@dataclass(frozen=True)
class Item:
    """One piece of work. `work()` gives the values of a row called `title`, or yields (title, values) of several.

    It is not begun with less than `needs` seconds left.
    """

    title: str
    work: Callable[[], dict | Iterable[tuple[str, dict]] | None]
    needs: float = 1.0


@dataclass(frozen=True)
class Section:
    """A question and the items that answer it; `weight` is its share of the time.

    Items of a section that runs `together` are spread over several processes at once: nothing is timed there. An
    `optional` section runs only where it is named.
    """

    name: str
    items: Callable[["Run"], list[Item]]
    weight: float
    together: bool = False
    optional: bool = False


@dataclass
class Run:
    """One process at work: the device, the ceilings measured so far, the time that is left, and where rows go."""

    options: Options
    send: Callable[[dict], object]
    stop: float = math.inf
    ceilings: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)

    def __post_init__(self):
        self.device = torch.device(self.options.device)
        self.cuda = self.device.type == "cuda"
        # Without a GPU the sizes are small: whether everything runs, not how fast.
        self.tiny = not self.cuda

    def left(self) -> float:
        """Seconds until this section has to end."""
        return self.stop - time.time()

    def clear(self) -> None:
        """Gives back what nothing refers to any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()


def perform(run: Run, section: str, item: Item) -> None:
    """Sends the rows of an item; a row that says why where it fails or no time is left."""
    if run.left() < item.needs:
        run.send({"section": section, "name": item.title, "skipped": "no time left"})
        return
    try:
        found = item.work()
        for title, values in [(item.title, found)] if isinstance(found, dict) else found or ():
            run.send({"section": section, "name": title} | judged(values))
    except Exception as error:  # a check reports whatever happens and goes on
        run.send(
            {"section": section, "name": item.title, "error": said(error), "trace": traceback.format_exc(limit=-3)}
        )
        # An illegal access leaves the process without a device: the exception of this call ends it.
        run.wait()
    finally:
        run.clear()


def judged(values: dict) -> dict:
    """The values with `met`, where they have a `bar` for the value called `of`."""
    if values.get("bar") is None:
        return values
    return values | {"met": values[values["of"]] >= values["bar"]}


def attempt(work: Callable[[], dict]) -> dict:
    """The values of `work()`, or the error: where one of several things that are compared may fail alone.

    What breaks the device is raised.
    """
    try:
        return work()
    except Exception as error:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return {"error": said(error), "trace": traceback.format_exc(limit=-3)}


def said(error: Exception, most: int = 200) -> str:
    """The type and the first line of an exception."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:most]


def label(context: int) -> str:
    """32768 → "32k"."""
    return f"{context // 1024}k" if context >= 1024 else str(context)


def seconds(run: Run, work: Callable[[int], object], rounds: int = 7, sets: int = 1) -> float:
    """Median seconds of `work(i)` by device events, i going round `sets` inputs so that no cache holds them."""
    for i in range(min(3, sets + 1)):
        work(i % sets)
    run.wait()
    taken = []
    for i in range(rounds):
        if run.cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work(i % sets)
            last.record()
            last.synchronize()
            taken.append(first.elapsed_time(last) / 1000)
        else:
            begun = time.perf_counter()
            work(i % sets)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def captured(work: Callable[[], object]) -> tuple["torch.cuda.CUDAGraph", object]:
    """A CUDA graph of `work()`, which has run once before on a stream aside, and what it returned while recording."""
    aside(work)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def aside(work: Callable[[], object]) -> object:
    """`work()` on a stream of its own, as a recording wants its warm-up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def replayed(
    run: Run, work: Callable[[int], object], sets: int = 1, rounds: int = 9
) -> tuple[float | None, str | None]:
    """Seconds of `work(i)` without its launches, by a CUDA graph that calls it once per input set; (None, why) where
    it cannot be captured. On a CPU simply its time."""
    if not run.cuda:
        return seconds(run, work, 2, sets), None
    try:
        graph, _ = captured(lambda: [work(i) for i in range(sets)] and None)
    except Exception as error:
        torch.cuda.synchronize()
        return None, said(error, 160)
    return seconds(run, lambda _: graph.replay(), rounds) / sets, None


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in float64 on the CPU; infinite where something is not finite."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    if not torch.isfinite(found).all():
        return math.inf
    return ((found - expected).norm() / expected.norm()).item()


class PeakMemory:
    """Bytes allocated at most within a block beyond what was there before, as values of a row; none on a CPU."""

    def __init__(self, run: Run):
        self.cuda = run.cuda

    def __enter__(self) -> "PeakMemory":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *error) -> None:
        peak = torch.cuda.max_memory_allocated() - self.before if self.cuda else 0
        self.values = {"peak_GiB": peak / 2**30} if self.cuda else {}
