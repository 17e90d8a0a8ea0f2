"""Where a source is: a local folder, or a repository of the Hub, fetched without its code and without pickles."""

from pathlib import Path

from ..errors import ConversionError
from ..formats.schemes import SCHEME_FILES
from ..layouts.known import layout_of
from .checkpoint import has_weights, read_json
from .companions import CARD, COMPANIONS
from .folder_gate import check_files
from .hub import fetch_repository, hub_id
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
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "consolidated*.pth")
CODE = "*.py"


def resolve_source(source: str | Path, code: bool = False, allow_pickle: bool = False) -> Path:
    """The local folder of a source, `owner/name[@revision]` of the Hub included: without its code but where `code` is
    wanted, without pickles but where they are allowed and there is nothing else. Raises ConversionError when there is
    none."""
    folder = Path(source).expanduser()
    if folder.is_dir() or folder.suffix == ".gguf" and folder.is_file():
        return folder
    wanted = None if folder.exists() else hub_id(str(source))
    if wanted is None:
        raise ConversionError(f"{source} is neither a folder nor a Hub id like 'owner/name' or 'owner/name@revision'.")
    patterns = ("config.json", "params.json", *WEIGHTS, CARD, f"{FOLDER}/*", *SCHEME_FILES, *COMPANIONS)
    folder = fetch_repository(wanted, (*patterns, CODE) if code else patterns)
    if allow_pickle and not has_weights(folder):
        folder = fetch_repository(wanted, (*patterns, *PICKLED_FILES))
    return folder


def read_config(folder: Path) -> dict:
    """config.json of a folder, or what it would be in transformers' layout. Raises ConversionError where a file that
    would be opened is none of the folder's own."""
    if folder.is_dir():
        check_files(folder)
    if layout := layout_of(folder):
        return layout.config(folder)
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
