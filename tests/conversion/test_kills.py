"""Conversions that are killed at a random moment: the target is absent, old or complete, and the next run heals.

A process is forked for each, so that it is killed at work and not while it imports.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
from places import ROOT, STORIES

from conversion import convert

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# Which way, whether a model stands in the place of the target.
ROUNDS = (("zoo", False), ("zoo", True), ("llama", True))


def content(folder):
    """{name: checksum}, or None without a folder."""
    if not folder.exists():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def models(tmp_path_factory, libraries):
    """{family: (source, what its conversion gives)}."""
    folder = tmp_path_factory.mktemp("kills")
    convert(STORIES, folder / "zoo", progress=False)
    convert(folder / "zoo", folder / "llama", to="llama", progress=False)
    return {"zoo": (STORIES, content(folder / "zoo")), "llama": (folder / "zoo", content(folder / "llama"))}


def command(source, target, to, log):
    """What `zoo convert` is, from the moment at which its modules are there."""
    from zoo.cli.start import start

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["zoo", "convert", str(source), str(target), "--overwrite", *([] if to == "zoo" else ["--to", to])]
    start()


def run(source, target, to, log):
    process = multiprocessing.get_context("fork").Process(target=command, args=(source, target, to, log))
    process.start()
    while not log.exists():
        time.sleep(0.001)
    return process


def old_model(target):
    target.mkdir()
    (target / "config.json").write_text('{"model_type": "llama"}')
    (target / "model.safetensors").write_text("old")


def duration(models, tmp_path):
    started = time.monotonic()
    process = run(models["zoo"][0], tmp_path / "timed" / "target", "zoo", tmp_path / "log")
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def killed(models, folder, to, exists, number, delay):
    """One kill; -> what became of the target."""
    (source, complete), target, log = models[to], folder / "beside" / "target", folder / "log"
    target.parent.mkdir(parents=True)
    old_model(target) if exists else None
    before = content(target)
    process = run(source, target, to, log)
    process.join(delay)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode in (0, -number), log.read_text()
    assert log.read_text() == "", "a signal is no error"
    after = content(target)
    assert after in (before, complete) and (process.exitcode or after == complete)
    if number != signal.SIGKILL:
        assert {path.name for path in target.parent.iterdir()} <= {"target"}
        assert after is None or {path.name for path in target.iterdir()} == {name.partition("/")[0] for name in after}
    else:
        convert(source, target, None if to == "zoo" else to, overwrite=True, progress=False)
        assert content(target) == complete and [path.name for path in target.parent.iterdir()] == ["target"]
    return (
        "not in time" if process.exitcode == 0 else "complete" if after == complete else "old" if exists else "absent"
    )


@pytest.mark.parametrize("kills", [9, pytest.param(180, marks=pytest.mark.long)])
def test_killed_at_a_random_moment_a_target_is_absent_old_or_complete(kills, models, tmp_path, record_property):
    whole, choose, found = duration(models, tmp_path), random.Random(kills), Counter()
    for index in range(kills):
        (to, exists), number = ROUNDS[index // 3 % 3], SIGNALS[index % 3]
        delay, end = choose.uniform(0, 1.1 * whole), "not in time"
        # Sooner and sooner on a machine that became quicker since the first one was timed; at last at once.
        for attempt, share in enumerate((1, 0.5, 0.1, 0)):
            if end == "not in time":
                end = killed(models, tmp_path / f"{index}-{attempt}", to, exists, number, delay * share)
                found[end] += 1
    record_property("kills", dict(found))
    assert sum(found.values()) - found["not in time"] == kills


@pytest.mark.parametrize("module", ["zoo", pytest.param("conversion", marks=pytest.mark.long)])
def test_ctrl_c_while_modules_are_imported_shows_no_traceback(module, tmp_path):
    arguments = (["convert"] if module == "zoo" else []) + [str(STORIES), str(tmp_path / "target")]
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGINT, "") and list(tmp_path.iterdir()) == []


def test_a_signal_that_somebody_handles_is_left_to_him(tmp_path):
    from conversion.files.interrupts import cleaned_up

    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with cleaned_up():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
