"""What the front page and `make demo` promise, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STORY = "Once upon a time, there was a little girl named Lily."


def run(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_front_page_tell_the_story(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert run([sys.executable, "-c", code], tmp_path).startswith(STORY)


@pytest.mark.long
def test_the_demo_does_the_main_job():
    shown = run([sys.executable, "examples/demo.py"], ROOT)
    for promise in (STORY, "No module named 'modeling_zoo'", "all 85 equal", "tensors are bit-equal to the source"):
        assert promise in shown
