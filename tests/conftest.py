"""What every test stands on: one thread, no network, one seed, an own cache of remote code."""

import atexit
import os
import shutil
import sys
import tempfile

# Read by libraries at import, so set before the first one. Workers that shared one cache of remote code would
# overwrite each other's files.
MODULES_CACHE = tempfile.mkdtemp(prefix="zoo-modules-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_MODULES_CACHE=MODULES_CACHE)
atexit.register(shutil.rmtree, MODULES_CACHE, ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
from fetch_transformers_tests import location  # noqa: E402
from transformers.utils import logging  # noqa: E402

from zoo_cli.main import main  # noqa: E402

# OMP_NUM_THREADS alone does not bind a torch that was imported by a plugin before this file.
torch.set_num_threads(1)
logging.disable_progress_bar()
if location().is_dir():
    sys.path.append(str(location()))


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same random numbers and the same log level, alone or among others."""
    torch.manual_seed(0)
    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)


@pytest.fixture
def zoo(monkeypatch, capsys):
    """Runs one command line; -> (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run
