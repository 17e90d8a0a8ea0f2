"""What an older transformers lacks is left out by name, and nothing else is; what it has computes the same there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from combinations import ROWS, SIZES
from places import ROOT, SUPPORT
from random_models import build, is_here, randomize, their_class_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion import ConversionError, export_config, family_of, import_config, known_families
from conversion.engine import their_config
from conversion.engine.registry import file_name
from modeling_zoo import ZooConfig, ZooForCausalLM

# Set up by `make test-versions`: version -> (its Python, what comes first on its path).
OTHERS = {
    "5.17.0": (Path(sys.executable), ROOT / ".cache" / "transformers-5.17.0"),
    "5.19.0": (ROOT / ".venv-serving" / "bin" / "python", None),
}
ALONE = ("norm", "block", "position", "mixer", "attention", "mlp", "embedding")
CASES = [f"{group} {index}" for group in ALONE for index in range(len(ROWS[group]))]
CASES += [name for name in known_families() if family_of(name).tiny]


def test_the_pinned_version_has_every_family():
    """Only older versions skip tests of families."""
    pinned = re.search(r"^transformers==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE).group(1)
    if transformers.__version__ != pinned:
        pytest.skip(f"transformers {transformers.__version__} is not the pinned {pinned}")
    assert [name for name in known_families() if not is_here(name)] == []


def test_a_family_that_is_not_there_is_one_sentence(monkeypatch):
    config = import_config({"model_type": "llama", "hidden_size": 24, "num_attention_heads": 3})
    monkeypatch.setattr(their_config, "CONFIG_MAPPING", {"llama": CONFIG_MAPPING["llama"]})
    said = f"transformers {re.escape(transformers.__version__)} has no config class for 'qwen3': install a newer one"
    with pytest.raises(ConversionError, match=said):
        import_config({"model_type": "qwen3"})
    with pytest.raises(ConversionError, match=said):
        export_config(config, "qwen3")


# -- the same model in another version --------------------------------------------------------------------------------


def prepare(name, folder):
    """A random model of the case in its folder, (transformers' name for its class or None, family or None), logits and
    tokens of the installed version."""
    group, _, index = name.partition(" ")
    if index:
        model = ZooForCausalLM(ZooConfig(**{**SIZES, **ROWS[group][int(index)]})).eval()
        randomize(model)
        model.tie_weights()
        reads = family = None
    else:
        family = family_of(name)
        model = build(their_class_config(name, family, family.tiny[0]), family)
        reads, family = family.reads or next(key for key in CONFIG_MAPPING if file_name(key) == name), name
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    vocabulary = model.config.get_text_config().vocab_size
    inputs = {"input_ids": torch.randint(1, vocabulary, (2, 11))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    torch.save(inputs, folder / "inputs.pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return (reads, family), (logits, tokens)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """(folder of all cases, {name: (logits, tokens)})."""
    folder, cases, results = tmp_path_factory.mktemp("versions"), {}, {}
    for name in CASES:
        torch.manual_seed(0)
        cases[name], results[name] = prepare(name, folder / name)
    torch.save(cases, folder / "cases.pt")
    return folder, results


@pytest.fixture(scope="module", params=OTHERS)
def found(request, expected):
    """What the worker found in another version."""
    python, first = OTHERS[request.param]
    if not (first or python).exists():
        pytest.skip("make test-versions sets it up")
    folder, _ = expected
    path = os.pathsep.join(str(part) for part in (first, ROOT) if part is not None)
    # No cache of code that another version has made.
    environment = os.environ | {"PYTHONPATH": path, "HF_MODULES_CACHE": str(folder / f"modules-{request.param}")}
    command = [str(python), str(SUPPORT / "version_worker.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(folder / f"found-{request.param}.pt")
    assert results["version"] == request.param
    return results


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_another_version_computes_the_same(name, found, expected):
    """Zoo folders, and checkpoints of every family that the version has, converted there. What the family's own class
    makes of them in that version does not matter: several had mistakes that are mended since."""
    logits, tokens = expected[1][name]
    if absent := found[name].get("absent"):
        pytest.skip(f"transformers {found['version']} {absent}")
    assert "error" not in found[name], found[name]["error"]
    assert (found[name]["logits"] - logits).abs().max() <= 2e-5 * logits.abs().max()
    assert torch.equal(found[name]["tokens"], tokens)
