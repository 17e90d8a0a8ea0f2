"""Where a source is: a local folder, or a repository of the Hub, fetched without its code and without pickles."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..errors import ConversionError
from ..formats.schemes import SCHEME_FILES
from .checkpoint import read_json
from .companions import CARD, COMPANIONS
from .folder_gate import check_files
from .sidecar import FOLDER

# Keys of config.json that other programs, or the choice of a family, read: kind, and how a sentence calls it.
CONFIG_FORMS = {
    "model_type": (str, "a word"),
    "architectures": (list, "a list of class names"),
    "auto_map": (dict, "an object"),
    "text_config": (dict, "an object"),
    "vision_config": (dict, "an object"),
    "quantization_config": (dict, "an object"),
    "source_config": (dict, "an object"),
    "transformers_weights": (str, "a file name"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_source(source: str | Path) -> Path:
    """The local folder of a source; raises ConversionError when there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(str(source)):
        raise ConversionError(f"{source} is neither a folder nor a Hub id like 'owner/name'.")
    weights = ["*.safetensors", "*.safetensors.index.json"]
    wanted = ["config.json", *weights, CARD, f"{FOLDER}/*", *SCHEME_FILES, *COMPANIONS]
    try:
        return Path(snapshot_download(str(source), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConversionError(f"{source} is no local folder, and the Hub did not give it: {reason}.") from error


def repository_of(folder: Path) -> dict[str, str]:
    """The repository and the commit of a folder in a Hub cache; {} for any other folder."""
    snapshot = folder.resolve()
    kind, _, name = snapshot.parent.parent.name.partition("--")
    if snapshot.parent.name != "snapshots" or kind != "models":
        return {}
    return {"repository": name.replace("--", "/", 1), "revision": snapshot.name}


def read_config(folder: Path) -> dict:
    """config.json of a folder; raises ConversionError where a file that would be opened is none of the folder's own."""
    check_files(folder)
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder} has no config.json: it is not a model folder.")
    return read_config_file(folder / "config.json")


def read_config_file(path: Path) -> dict:
    """The same file by its own name; what other programs ask of it has the form that they expect. Raises
    ConversionError otherwise."""
    content = read_json(path)
    for key, (kind, words) in CONFIG_FORMS.items():
        if content.get(key) is not None and not isinstance(content[key], kind):
            raise ConversionError(f"{path} has {key}={content[key]!r}, which must be {words}.")
    for name, value in (content.get("auto_map") or {}).items():
        if not isinstance(value, (str, list)):
            raise ConversionError(f"{path} has auto_map[{name!r}]={value!r}, which must be the name of a class.")
    return content
