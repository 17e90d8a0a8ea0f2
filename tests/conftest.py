"""What every test stands on: one thread, no network, one seed, an own cache of remote code."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections import Counter

# Read by libraries at import, so set before the first one. Workers that shared one cache of remote code would
# overwrite each other's files.
MODULES_CACHE = tempfile.mkdtemp(prefix="zoo-modules-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_MODULES_CACHE=MODULES_CACHE)
atexit.register(shutil.rmtree, MODULES_CACHE, ignore_errors=True)

# torch is imported by the tests only: the process that hands them out needs none, and its workers wait for it.
import pytest  # noqa: E402
from fetch_transformers_tests import location  # noqa: E402

if location().is_dir():
    sys.path.append(str(location()))


# Libraries, tests and configs stay to the end. Python would look through all of them for what nobody holds, again and
# again: an eighth of the suite's time.
gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """From here on only what tests make is looked through."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a table of cases marked `sampled(step)` each `step`-th runs every time, the others under `long`."""
    seen = Counter()
    for item in items:
        mark, table = item.get_closest_marker("sampled"), item.nodeid.partition("[")[0]
        if mark and not item.get_closest_marker("long"):
            if seen[table] % mark.args[0]:
                item.add_marker(pytest.mark.long)
            seen[table] += 1


# Tests that run the code of a folder, or read it. For all others a saved folder has every concept that its model needs,
# but not folded on its config, which takes seconds for each new one.
READ_THE_CODE = (
    "test_adapters", "test_cli", "test_combinations", "test_companions", "test_examples", "test_export",
    "test_export_config", "test_hub_names", "test_kills", "test_other_weights", "test_push", "test_rope_keys",
    "test_tools_against_original", "test_versions", "test_weight_decay",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick_saves(request, monkeypatch):
    if request.module.__name__.rpartition(".")[2] not in READ_THE_CODE:
        from modeling_zoo import export

        monkeypatch.setattr(export, "model_pieces", export.pieces_for)


@pytest.fixture(scope="session")
def libraries():
    """torch on one thread and transformers' logging without bars."""
    import torch
    from transformers.utils import logging

    # OMP_NUM_THREADS alone does not bind a torch that was imported by a plugin before this file.
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    return torch, logging


@pytest.fixture(autouse=True)
def same_start(libraries):
    """Every test starts from the same random numbers and the same log level, alone or among others."""
    torch, logging = libraries
    torch.manual_seed(0)
    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)


@pytest.fixture
def zoo(monkeypatch, capsys):
    """Runs one command line; -> (exit code, standard output, standard error)."""

    from zoo.cli.main import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def pytest_terminal_summary(terminalreporter):
    """What the nets came to (random configs, kills ...), over all shards and workers."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    figures = {}
    for report in reports:
        for name, found in report.user_properties if report.when == "call" else ():
            if isinstance(found, dict):
                figures.setdefault(name, Counter()).update(found)
    for title, found in figures.items():
        terminalreporter.section(title)
        terminalreporter.line(", ".join(f"{name}: {found[name]}" for name in sorted(found)))
