"""The tutorial notebook: its cells run from top to bottom, down to a repository of a local Hub."""

import ast
import json
import os
import subprocess
import sys

import pytest
from hub_fixtures import TOKENS
from hub_server import Hub
from places import ROOT

NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


def cells(kind):
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_is_code_between_words_and_has_no_outputs():
    for source in cells("code"):
        ast.parse(source)
    assert len(cells("markdown")) > 5 and '"outputs": []' in NOTEBOOK.read_text(encoding="utf-8")
    assert all(not cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


@pytest.mark.long
def test_the_notebook_runs_and_publishes(tmp_path):
    with Hub(TOKENS) as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_of_user"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        environment |= {"ZOO_TUTORIAL_OUTPUT": str(tmp_path / "output"), "ZOO_TUTORIAL_REPOSITORY": "user/mixed"}
        script = tmp_path / "tutorial.py"
        script.write_text("\n\n".join(cells("code")), encoding="utf-8")
        done = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    shown = done.stdout
    assert "all of them the same" in shown and shown.rstrip().endswith("sent")
    mixed, plain = (float(line.split()[4]) for line in shown.splitlines() if "over the last ten steps" in line)
    assert max(mixed, plain) < 4
    assert (tmp_path / "output" / "mixed.svg").read_text().startswith("<svg")
