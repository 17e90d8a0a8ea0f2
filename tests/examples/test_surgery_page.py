"""The page on surgery: its commands run, and what they write is what the page says."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from conversion import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "examples/surgery.md").read_text()


def commands():
    """Every line of every block."""
    return [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]


@pytest.mark.long
def test_the_commands_of_the_page_run(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands():
        words = [word.replace("output/", f"{tmp_path}/") for word in line.split()[1:]]
        code, _, error = zoo(*words)
        assert code == 0, (line, error)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        expected = load(ROOT / "examples/stories260K")(ids).logits
        assert torch.equal(load(tmp_path / "latent")(ids).logits, expected)
        mixtral = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "experts")
        torch.testing.assert_close(mixtral(ids).logits, expected, rtol=1e-4, atol=1e-4)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half-llama")
    assert half.config.num_key_value_heads == 2 and "healed" in (tmp_path / "half/README.md").read_text()


def test_every_command_names_what_exists():
    from zoo.cli.main import COMMANDS

    names = {command.__name__ for command in COMMANDS}
    for line in commands():
        program, name, *words = line.split()
        assert program == "zoo" and name in names
        assert all((ROOT / word).exists() for word in words if word.startswith("examples/"))
