"""The package as a stranger gets it: a wheel, installed somewhere without this clone, and its public names."""

import os
import subprocess
import sys
from base64 import b64encode

import pytest
from places import ROOT, STORIES

import zoo

FACE = """
import sys, zoo
assert not {"torch", "transformers"} & {*sys.modules}, "importing the face loads nothing that takes its time"
assert sys.argv[1] in zoo.__file__, zoo.__file__
print(zoo.__version__, sorted(zoo.__all__) == sorted(name for name in dir(zoo) if name in zoo.__all__))
report = zoo.inspect(sys.argv[2])
zoo.convert(sys.argv[2], "zoo-folder", progress=False)
model = zoo.load("zoo-folder")
assert model.num_parameters() == report["parameters"] and type(model.config) is zoo.Config
"""


def test_every_public_name_is_there():
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        zoo.unknown  # noqa: B018


def test_a_report_for_whatever_names_a_model(tmp_path):
    config = zoo.Config(num_hidden_layers=2, vocab_size=61, hidden_size=24, num_attention_heads=3, intermediate_size=40)
    config.save_pretrained(tmp_path)
    of_config = zoo.inspect(config)
    assert (
        of_config["parameters"]
        == zoo.inspect(tmp_path)["parameters"]
        == zoo.inspect(tmp_path / "config.json")["parameters"]
    )
    assert zoo.inspect(STORIES)["source_model_type"] == "llama"
    with pytest.raises(ValueError, match="is neither a folder nor a file"):
        zoo.inspect(tmp_path / "nothing" / "here")


@pytest.mark.long
def test_a_built_wheel_works_away_from_the_clone(tmp_path):
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("modeling_zoo-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    assert {path.parent.name for path in installed.glob("*/py.typed")} >= {
        "configuration_zoo",
        "modeling_zoo",
        "conversion",
        "zoo",
    }
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FACE, str(installed), str(STORIES)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
    for module in ("zoo", "conversion"):
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=environment, capture_output=True
        )
        assert shown.returncode == 0, shown.stderr
    site = [sys.executable, "-m", "zoo", "site", "site"]
    done = subprocess.run(site, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("index.html", "models.json", "explorer/index.html", "explorer/run.html"):
        assert (tmp_path / "site" / name).stat().st_size > 1000
    page = (tmp_path / "site" / "explorer" / "run.js").read_text(encoding="utf-8")
    for folder in (STORIES, ROOT / "zoo" / "site" / "explorer" / "routed"):
        assert b64encode((folder / "model.safetensors").read_bytes()).decode() in page
    assert not STORIES.is_relative_to(installed) and "stories260K" in {path.name for path in installed.rglob("*")}
