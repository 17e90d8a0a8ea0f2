"""Pickles, which can run code when they are opened: never read here, never copied along."""

from fnmatch import fnmatch
from pathlib import Path

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_ARCHIVE = b"PK\x03\x04"
_PROTOCOLS = tuple(b"\x80" + bytes([version]) for version in range(2, 6))


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive as torch saves it, by its name or its first bytes."""
    if any(fnmatch(path.name.lower(), pattern) for pattern in PICKLED):
        return True
    with open(path, "rb") as file:
        return file.read(4).startswith((_ARCHIVE, *_PROTOCOLS))
