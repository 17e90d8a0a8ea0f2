"""The target folder, all or nothing: built beside its place under another name, moved there when it is complete.

A run that dies, at whatever moment, leaves the target as it was or absent. What it left beside it is removed by the
next run for the same target; a lock on the folder tells a dead run's leftovers from those of a run in progress.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from .errors import ConversionError

try:
    import fcntl
except ImportError:  # no such locks on Windows: leftovers stay until somebody removes them
    fcntl = None

_NEW, _OLD = "zoo-new-", "zoo-old-"


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends without an error, and vanishes otherwise."""
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target)
        _check_free(target, overwrite)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_NEW}", dir=target.parent))
        # mkdtemp makes folders that only their owner can open; a model folder is an ordinary one.
        folder.chmod(0o777 & ~_umask())
        lock = _lock(folder)
        try:
            yield folder
            _move_into_place(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        place = error.filename or target
        raise ConversionError(f"cannot write {target}: {reason} (at {place}); nothing was left behind.") from error


def check_apart(source: Path, target: Path) -> None:
    """Source and target must be two folders, neither inside the other."""
    one, other = source.resolve(), target.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConversionError(f"source {source} and target {target} must be two folders, neither inside the other.")


def _check_free(target: Path, overwrite: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"{target} exists and is not a folder: choose another target.")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ConversionError(
            f"{target} exists and is not empty: choose another target, or allow it with --overwrite (overwrite=True)."
        )
    if not (target / "config.json").is_file():
        raise ConversionError(f"{target} is not a model folder (it has no config.json): it will not be overwritten.")


def _move_into_place(folder: Path, target: Path) -> None:
    if not target.exists():
        os.replace(folder, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_OLD}", dir=target.parent))
    os.replace(target, old)
    os.replace(folder, target)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Removes what dead runs left; a target that one of them had moved aside and not replaced comes back."""
    for old in sorted(target.parent.glob(f".{escape(target.name)}.{_OLD}*")):
        if not target.exists() and any(old.iterdir()):
            os.replace(old, target)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for folder in target.parent.glob(f".{escape(target.name)}.{_NEW}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """An open handle that holds the folder's lock; None if another process holds it."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
