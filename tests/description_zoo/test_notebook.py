"""A config in a notebook: a table of what differs from the defaults, safe to show and complete."""

import random
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from configuration_zoo import ZooConfig
from description_zoo.flags import flags
from description_zoo.notebook import pattern

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}


def rows(config):
    """[(field, value)] of the table, and its headings."""
    tree = ElementTree.fromstring(config._repr_html_())
    cells = [["".join(cell.itertext()) for cell in row.iter("td")] for row in tree.iter("tr")]
    headings = [next(head.itertext()).strip() for head in tree.iter("th")]
    return {row[0]: row[1] for row in cells if row}, headings


def test_what_differs_is_there_under_its_concept():
    config = ZooConfig(**SIZES, qk_norm="rms_norm", precision={"rope": "float32_qk"})
    found, headings = rows(config)
    assert found["qk_norm"] == '"rms_norm"' and found["precision.rope"] == '"float32_qk"'
    assert found["hidden_size"] == "32 (4096)"
    assert not {"norm_type", "attention_sinks", "num_experts", "tie_word_embeddings"} & found.keys()
    assert headings == ["Model", "Attention", "Position", "MLP", "Precision", "Others"]
    said = {name for name in ZooConfig(**SIZES).to_diff_dict() if name != "precision"}
    assert said <= found.keys() | flags().keys()


def test_a_value_is_text_whatever_it_says():
    config = ZooConfig(**SIZES, source_config={"name": "<script>alert('&')</script>\x1b[31m"})
    config.note = "<img src=x>"
    page = config._repr_html_()
    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    found, _ = rows(config)
    assert "<script>alert('&')</script>" in found["source_config"] and found["note"] == '"<img src=x>"'


@pytest.mark.parametrize("seed", range(30))
def test_a_list_over_layers_is_shown_as_it_can_be_written(seed):
    rng = random.Random(seed)
    part = rng.choices(["full_attention", "sliding_attention"], k=rng.randint(1, 5))
    words = [part[index % len(part)] for index in range(rng.randint(1, 12))]
    sizes = SIZES | {"num_hidden_layers": len(words), "sliding_window": 8 if "sliding_attention" in words else None}
    assert ZooConfig(**sizes, layer_types=pattern(words)).layer_types == words
    assert len(pattern(words)) <= len(", ".join(words))


def test_help_says_what_every_field_means():
    """In the installed package; made when it is asked for, not when the config is imported."""
    code = "import sys, configuration_zoo as zoo; zoo.ZooConfig; assert 'description_zoo' not in sys.modules\n"
    code += "help(zoo.ZooConfig)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    said = " ".join(run.stdout.replace("|", " ").split())
    assert "A decoder, described by one name or number per concept." in said
    missing = [name for name, facts in flags().items() if f"{name}: {facts['takes']}; default" not in said]
    missing += [name for name, facts in flags().items() if f"{facts['meaning']} Source: {facts['source']}." not in said]
    assert missing == []
