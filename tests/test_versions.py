"""What an older transformers lacks is left out by name, and nothing else is."""

import re
from pathlib import Path

import pytest
import transformers
from random_models import is_here
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion import ConversionError, config_bridge, export_config, import_config, known_families

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def test_the_pinned_version_has_every_family():
    """Only older versions skip tests of families."""
    pinned = re.search(r"^transformers==(\S+)$", CONSTRAINTS.read_text(), flags=re.MULTILINE).group(1)
    if transformers.__version__ != pinned:
        pytest.skip(f"transformers {transformers.__version__} is not the pinned {pinned}")
    assert [name for name in known_families() if not is_here(name)] == []


def test_a_family_that_is_not_there_is_one_sentence(monkeypatch):
    config = import_config({"model_type": "llama", "hidden_size": 24, "num_attention_heads": 3})
    monkeypatch.setattr(config_bridge, "CONFIG_MAPPING", {"llama": CONFIG_MAPPING["llama"]})
    said = f"transformers {re.escape(transformers.__version__)} has no config class for 'qwen3': install a newer one"
    with pytest.raises(ConversionError, match=said):
        import_config({"model_type": "qwen3"})
    with pytest.raises(ConversionError, match=said):
        export_config(config, "qwen3")
