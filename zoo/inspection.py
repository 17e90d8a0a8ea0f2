"""What a model is and costs, from whatever names it: a folder, a config.json, a preset, a config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.errors import UserError

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig


def inspect(model: Any) -> dict:
    """The report of `zoo inspect --json`: one entry per layer, then totals. No weight is allocated.

    `model`: a folder, a config.json, a repository of the Hub (`owner/name[@revision]`, of which config.json alone is
    fetched), the name of a preset, or a ZooConfig. Raises UserError, or ValueError with what is wrong.
    """
    from configuration_zoo import ZooConfig
    from description_zoo.measure import measure

    if isinstance(model, ZooConfig):
        return measure(model)
    return measure(config_of(str(model))) | storage(str(model))


def storage(model: str) -> dict:
    """How a model's weights are stored: `stored_as` and, of a folder with weights, `stored_bytes`; {} where nothing
    says it."""
    from conversion.files.hub import hub_id
    from conversion.formats.schemes import scheme_of
    from conversion.formats.storage import in_words, storage_of

    from .cli.loading import read_config

    path = Path(model)
    if path.is_dir() or path.suffix == ".gguf":
        return storage_of(path, read_config(path))
    scheme = scheme_of(raw_config(path, model)) if path.is_file() or hub_id(model) else None
    return {"stored_as": in_words(scheme)} if scheme else {}


def config_of(model: str) -> "ZooConfig":
    """The ZooConfig of a folder, a config.json, a repository of the Hub or a preset; raises UserError, or ValueError
    with what is wrong."""
    from configuration_zoo import ZooConfig
    from configuration_zoo.presets import presets
    from conversion.engine.config_bridge import import_config
    from conversion.engine.loading import config_of_folder
    from conversion.files.hub import hub_id

    from .cli.loading import read_config

    path = Path(model)
    if not path.exists() and model in presets():
        return ZooConfig.preset(model)
    if path.is_dir() or path.suffix == ".gguf":
        return config_of_folder(path, read_config(path))
    if path.is_file() or hub_id(model):
        return import_config(unquantised(raw_config(path, model)))
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{model} is neither a folder nor a file.")
    return ZooConfig.preset(model)


def raw_config(path: Path, name: str) -> dict:
    """A config.json by its path, else that of the repository with this name."""
    from conversion.files.hub import fetch_file, hub_id
    from conversion.files.sources import read_config_file

    return read_config_file(path if path.is_file() else fetch_file(hub_id(name), "config.json"))


def unquantised(raw: dict) -> dict:
    """A config without the packing of its weights: layers and caches are the same, weights are counted in its dtype."""
    return {key: value for key, value in raw.items() if key != "quantization_config"}
