"""The card of a folder: its numbers are the model's own, its picture is a picture, its licence the original's."""

import json
import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from combinations import EXPERTS, ROWS, SIZES
from huggingface_hub import ModelCard
from places import ROOT, STORIES
from safetensors.torch import load_file
from samples import only
from transformers import DynamicCache

from conversion import convert
from description_zoo.card import replace_empty_card, write_plain_card
from description_zoo.card_adapter import is_blank_card
from description_zoo.card_origin import carried_over, front_matter, read_front_matter
from description_zoo.measure import repetitions
from modeling_zoo import ZooConfig, ZooForCausalLM
from zoo.training import write_card

FLOAT = {"dtype": "float32"}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 4}
ORIGINAL = """---
license: other
license_name: community
license_link: LICENSE
base_model:
- owner/base
language:
- en
pipeline_tag: text-generation
tags:
- llama
---
# Theirs
"""


def card_of(folder, **flags):
    config = ZooConfig(**{**SIZES, **FLOAT, **flags})
    write_plain_card(folder, config)
    return config, (folder / "README.md").read_text()


@pytest.mark.parametrize("flags", [{}, SLIDING, {**EXPERTS, "n_shared_experts": 1}, {"tie_word_embeddings": True}])
def test_parameters_and_cache_bytes_are_those_of_the_model(flags, tmp_path):
    config, card = card_of(tmp_path, **flags)
    model = ZooForCausalLM(config)
    assert f"{model.num_parameters():,} parameters" in card
    cache = DynamicCache(config=config)
    sizes = []
    for _ in range(2):
        model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
        held = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
        sliding = [name == "sliding_attention" for name in config.layer_types]
        sizes.append(sum(size for size, slides in zip(held, sliding, strict=True) if not slides))
    assert f"takes {sizes[1] - sizes[0]:,} bytes per token" in card
    # All but the token itself, in each window.
    assert not any(sliding) or f"{3 * held[0] // 2:,} bytes for windows" in card


@pytest.mark.parametrize("group", only(["block"], ["block", "position", "mixer"]))
def test_every_architecture_has_a_table_and_a_picture(group, tmp_path):
    for flags in ROWS[group]:
        config, card = card_of(tmp_path, **flags)
        table = card.split("## Architecture")[1].split("## ")[0]
        rows = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")][2:]
        layers = [range(int(row.split("-")[0]), int(row.split("-")[-1]) + 1) for row in rows]
        assert [index for part in layers for index in part] == list(range(config.num_hidden_layers))
        picture = ElementTree.parse(tmp_path / re.search(r"!\[.*\]\((.*)\)", card)[1]).getroot()
        boxes = [element for element in picture.iter() if element.tag.endswith("rect")]
        assert picture.tag.endswith("svg") and len(boxes) >= len(rows) + 3
        for part in ("## Load", "## Fine-tune", "## Serve", "LoraConfig("):
            assert part in card


@pytest.mark.parametrize("word", ["a", "abab", "aabaab", "cababab", "abcabcd", "abcd"])
def test_repetitions_in_a_picture_unfold_to_the_layers(word):
    runs = [(index, index, {"layer": index, "kind": letter}) for index, letter in enumerate(word)]
    found = repetitions(runs)
    assert "".join(times * "".join(run[2]["kind"] for run in part) for times, part in found) == word
    assert len(found) == {"a": 1, "abab": 1, "aabaab": 1, "cababab": 2, "abcabcd": 2, "abcd": 4}[word]


def test_licence_and_base_are_carried_over_and_nothing_else(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text(ORIGINAL)
    carried = carried_over(tmp_path)
    assert carried["license"] == "other" and carried["base_model"] == ["owner/base"] and "tags" not in carried
    data = ModelCard(front_matter(carried) + "# A model").data
    assert (data.license, data.license_name, data.library_name) == ("other", "community", "transformers")
    assert data.tags == ["zoo", "custom_code"] and data.language == ["en"]


@pytest.mark.parametrize("text", ["no card", "---\n: [\n---\n", "---\n- a list\n---\n", ""])
def test_a_card_without_readable_metadata_carries_nothing(text):
    assert read_front_matter(text) == {}


def test_only_an_empty_card_is_replaced(tmp_path):
    config = ZooConfig(**SIZES)
    (tmp_path / "README.md").write_text("mine")
    replace_empty_card(tmp_path, config)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").write_text("... This model card has been automatically generated.")
    replace_empty_card(tmp_path, config)
    assert "# A zoo model" in (tmp_path / "README.md").read_text()


@pytest.mark.long
def test_the_lines_of_a_card_run_as_they_stand(tmp_path):
    """Loading and fine-tuning, by a reader who pastes them; nothing is asked on the way."""
    convert(STORIES, tmp_path / "zoo", progress=False)
    load, tune, _ = re.findall(r"```python\n(.*?)```", (tmp_path / "zoo" / "README.md").read_text(), flags=re.DOTALL)
    code = load.replace("path/to/this/folder", "zoo") + tune + "print(type(tokenizer), type(model.get_base_model()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trainable params" in done.stdout and "transformers_modules.zoo." in done.stdout
    assert "y/N" not in done.stdout + done.stderr


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA on a converted folder, as PEFT leaves it."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapters")
    convert(STORIES, folder / "zoo", progress=False)
    model = ZooForCausalLM.from_pretrained(folder / "zoo")
    settings = peft.LoraConfig(r=3, lora_alpha=6, task_type="CAUSAL_LM", **model.lora_targets())
    peft.get_peft_model(model, settings).save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_an_adapter_gets_a_card_in_place_of_the_template(adapter):
    assert is_blank_card((adapter / "README.md").read_text())
    write_card(adapter)
    text = (adapter / "README.md").read_text()
    assert not is_blank_card(text) and str(adapter.parent) not in text
    stored = sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values())
    assert f"| {stored:,} in F32 |" in text and "| rank | 3 |" in text and "zoo convert merged back --to llama" in text
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "peft",
        "text-generation",
        ["zoo", "custom_code", "lora"],
    )


def test_an_adapter_on_a_repository_names_it(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "owner/name", "peft_type": "IA3", "target_modules": ["<b>|x`"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    write_card(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation, data.tags) == ("owner/name", "adapter", ["ia3"])
    assert "# An IA3 for `owner/name`" in text and 'from_pretrained("owner/name"' in text and "<b>" not in text


@pytest.mark.long
def test_the_lines_of_an_adapter_s_card_run_as_they_stand(adapter):
    """Loading, merging and the way back, by a reader who pastes them."""
    write_card(adapter)
    load, merge = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text(), flags=re.DOTALL)
    code = load.replace("path/to/this/folder", "adapter").replace("path/to/the/base", "zoo") + merge
    run_in(adapter.parent, sys.executable, "-c", code)
    run_in(adapter.parent, sys.executable, "-m", "zoo", "convert", "merged", "back", "--to", "llama")
    original, back = (load_file(folder / "model.safetensors") for folder in (STORIES, adapter.parent / "back"))
    # An adapter that has learned nothing yet adds zeros.
    assert original.keys() == back.keys() and all(torch.equal(original[name], back[name]) for name in original)


def run_in(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no config.json or adapter_config.json: there is no model or adapter to describe."),
        ({"config.json": '{"model_type": "llama"}'}, r"has no zoo model: convert it first \(zoo convert\)."),
        ({"adapter_config.json": "{}"}, "has no adapter_model.safetensors: save the adapter there with PEFT's"),
        (
            {"adapter_config.json": "[", "adapter_model.safetensors": ""},
            "is not a JSON object: save the adapter",
        ),
    ],
)
def test_a_folder_with_neither_is_refused(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_card(tmp_path)
