"""The card of a folder: its numbers are the model's own, its picture is a picture, its licence the original's."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from combinations import EXPERTS, ROWS, SIZES
from huggingface_hub import ModelCard
from places import STORIES
from samples import only
from transformers import DynamicCache

from conversion import convert
from description_zoo.card import replace_empty_card, write_plain_card
from description_zoo.card_origin import carried_over, front_matter, read_front_matter
from description_zoo.measure import repetitions
from modeling_zoo import ZooConfig, ZooForCausalLM

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
