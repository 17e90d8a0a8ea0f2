"""What a model is and costs, from whatever names it: a folder, a config.json, a preset, a config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.errors import UserError

if TYPE_CHECKING:
    from configuration_zoo import ZooConfig


def inspect(model: Any) -> dict:
    """The report of `zoo inspect --json`: one entry per layer, then totals. No weight is allocated.

    `model`: a folder, a config.json, the name of a preset, or a ZooConfig. Raises UserError, or ValueError with what is
    wrong.
    """
    from configuration_zoo import ZooConfig
    from description_zoo.measure import measure

    if isinstance(model, ZooConfig):
        return measure(model)
    return measure(config_of(str(model))) | storage(str(model))


def storage(model: str) -> dict:
    """How the files of a folder store its weights: `stored_as` and `stored_bytes`; {} for what has none."""
    from conversion.formats.storage import storage_of

    from .cli.loading import read_config

    path = Path(model)
    return storage_of(path, read_config(path)) if path.is_dir() else {}


def config_of(model: str) -> "ZooConfig":
    """The ZooConfig of a folder, a config.json or a preset; raises UserError, or ValueError with what is wrong."""
    from configuration_zoo import ZooConfig
    from conversion.engine.config_bridge import import_config
    from conversion.engine.loading import config_of_folder
    from conversion.files.sources import read_config_file

    from .cli.loading import read_config

    path = Path(model)
    if path.is_dir():
        return config_of_folder(path, read_config(path))
    if path.is_file():
        return import_config(unquantised(read_config_file(path)))
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{model} is neither a folder nor a file.")
    return ZooConfig.preset(model)


def unquantised(raw: dict) -> dict:
    """A config without the packing of its weights: layers and caches are the same, weights are counted in its dtype."""
    return {key: value for key, value in raw.items() if key != "quantization_config"}
