"""Which files of a folder are opened: plain ones that lie in it."""

from fnmatch import fnmatch
from pathlib import Path

from .checkpoint import inside, is_there
from .companions import CARD, COMPANIONS
from .sidecar import FOLDER

# Whatever reads a model folder, transformers included, looks at these and at nothing else.
_OPENED = ("*.json", "*.safetensors", "*.jinja", "*.py", CARD, *COMPANIONS)
_SUBFOLDERS = (FOLDER, "additional_chat_templates")


def check_files(folder: Path) -> None:
    """Raises ConversionError for the first file of a model folder that is no file of its own: a link out of the folder
    (a Hub cache's own blobs excepted) or to nothing, a pipe, a socket, a device."""
    below = [folder / name for name in _SUBFOLDERS if (folder / name).is_dir()]
    for path in sorted(path for place in (folder, *below) for path in place.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in _OPENED):
            check_file(folder, path.relative_to(folder).as_posix())


def check_file(folder: Path, name: str) -> None:
    """The same for one of them; a folder passes, what is in it has names of its own."""
    path = inside(folder, name)
    if path.is_symlink() or not path.is_dir():
        is_there(path)
