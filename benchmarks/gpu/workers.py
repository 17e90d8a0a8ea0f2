"""Sections in processes of their own: one that dies or hangs takes nothing with it, and what is left goes on."""

import gc
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from .harness import Options, Run, Section, perform

# Seconds beyond its time after which a process is ended.
GRACE = 10.0
# How a process ends that has sent a row about what happened to it.
TOLD = 3


def items_in_turn(run: Run, section: Section, taken) -> None:
    """Works off the items that no other process has taken; `taken` is a counter that all share.

    Raises what a device that is lost raises, once the row that says so is sent.
    """
    items = section.items(run)
    while True:
        with taken.get_lock():
            index, taken.value = taken.value, taken.value + 1
        if index >= len(items):
            return
        run.send({"begins": items[index].title})
        perform(run, section.name, items[index])
        run.send({"begins": None})


def serve(name: str, options: Options, stop: float, ceilings: dict, taken, pipe: Connection) -> None:
    """What a process runs: one section, rows into the pipe."""
    import torch
    from transformers.utils import logging

    from .sections import find

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    section, code = find(name), 0
    # What was there before is no garbage: collecting what a measurement leaves is quick.
    gc.freeze()
    if section.together:
        torch.set_num_threads(1)
        # The processes beside this one compile as well.
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        if "torch._inductor.config" in sys.modules:
            sys.modules["torch._inductor.config"].compile_threads = 1
    try:
        items_in_turn(Run(options, pipe.send, stop, ceilings), section, taken)
    except Exception:
        code = TOLD
    pipe.close()
    # Destructors of a lost device, or of a graph that was being recorded, would only fail again.
    os._exit(code)


@dataclass
class Worker:
    """A process, its pipe, and the title of the item it is at."""

    process: multiprocessing.Process
    pipe: Connection
    at: str | None = None


@dataclass
class Crew:
    """The processes that work on one section, and what becomes of their rows."""

    section: Section
    options: Options
    stop: float
    ceilings: dict
    add: Callable[[dict], None]
    workers: list[Worker] = field(default_factory=list)

    def run(self) -> None:
        """Until all items are done or the time is over."""
        self.context = multiprocessing.get_context(self.options.start)
        self.taken = self.context.Value("i", 0)
        titles = [item.title for item in self.section.items(Run(self.options, self.add))]
        count = min(self.options.workers, len(titles)) if self.section.together else 1
        for _ in range(count):
            self.start()
        while self.workers:
            left = self.stop + GRACE - time.time()
            ready = wait([worker.pipe for worker in self.workers], timeout=max(left, 0))
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                self.receive(worker, len(titles))
            if not ready and left <= 0:
                self.end_all()
        for title in titles[self.taken.value :]:
            self.add({"section": self.section.name, "name": title, "skipped": "no time left"})

    def start(self) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        arguments = (self.section.name, self.options, self.stop, self.ceilings, self.taken, theirs)
        process = self.context.Process(target=serve, args=arguments)
        process.start()
        theirs.close()
        self.workers.append(Worker(process, ours))

    def receive(self, worker: Worker, count: int) -> None:
        """One row of a process, or its end: the item it died at says so, and another process does the rest."""
        try:
            message = worker.pipe.recv()
        except EOFError:
            worker.process.join()
            self.workers.remove(worker)
            code = worker.process.exitcode
            if code not in (0, TOLD):
                reason = {"section": self.section.name, "name": worker.at or "start of a process"}
                self.add(reason | {"error": f"the process ended with exit code {code}"})
            if code != 0 and worker.at is not None and self.taken.value < count and time.time() < self.stop:
                self.start()
            return
        if "begins" in message:
            worker.at = message["begins"]
        else:
            self.add(message)

    def end_all(self) -> None:
        """The time is over: processes that are still at work are ended."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            self.add({"section": self.section.name, "name": worker.at or "", "skipped": "ended: no time left"})
        self.workers.clear()
