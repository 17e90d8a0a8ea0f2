"""The target folder, all or nothing: built under another name, on the disk before it is moved to its place.

A run that dies, at whatever moment, leaves the target as it was, absent or complete. What it left beside it is removed
by the next run for the same target, if no signal let it do so itself; a lock tells a dead run's leftovers from those of
a run in progress.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import ConversionError
from .interrupts import cleaned_up
from .model_folder import is_model, strangers

# In the folder of a run: its lock, what it builds, what it moves file by file, and the target it replaces.
_WORK, _LOCK, _NEW, _MOVING, _OLD = ".zoo-work", "lock", "new", "moving", "old"
# A new file system holds this from the start.
_EMPTY_ALL_THE_SAME = {_WORK, "lost+found"}
# How often a lock is asked for whose folder another run is just removing.
_ATTEMPTS = 100
_STAYS_WHERE_IT_IS = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends without an error, and vanishes otherwise. Raises
    ConversionError where the target must not be replaced or cannot be written."""
    target = target.absolute()
    try:
        with ExitStack() as stack:
            stack.enter_context(cleaned_up())
            stack.callback(_remove_empty, [parent for parent in target.parents if not parent.exists()])
            target.parent.mkdir(parents=True, exist_ok=True)
            work = _beside(target)
            stack.enter_context(_held(work, target))
            if work.parent != target and (target / _WORK).is_dir():  # a run that died in there
                with _held(target / _WORK, target):
                    pass
            check_free(target, overwrite)
            if work.parent != target and target.exists() and not _can_be_moved(target, work):
                work = target / _WORK
                stack.enter_context(_held(work, target))
            if work.parent == target and not _is_empty(target):
                raise ConversionError(
                    f"{target} cannot be replaced as a whole (it is a mount point, or the folder it is in cannot be "
                    "written): empty it first, or name a folder inside it."
                )
            (work / _NEW).mkdir()
            yield work / _NEW
            _sync(work / _NEW)
            _fill(work, target) if work.parent == target else _replace(work, target, overwrite)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EROFS):
            reason += f", and a folder is built in {target.parent}: make that writable, or name another target"
        place = error.filename or target
        raise ConversionError(f"cannot write {target}: {reason} (at {place}); nothing was left behind.") from error


def check_apart(source: Path, target: Path) -> None:
    """Source and target must be two folders, neither inside the other. Raises ConversionError otherwise."""
    one, other = source.resolve(), target.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConversionError(f"source {source} and target {target} must be two folders, neither inside the other.")


def _beside(target: Path) -> Path:
    """Where a run works: next to the target, or in a target whose own folder cannot be written."""
    if target.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK):
        return target / _WORK
    name = f".{target.name}{_WORK}"
    if len(os.fsencode(name)) > 255:
        name = f"{_WORK}-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}"
    return target.parent / name


def _remove_empty(parents: list[Path]) -> None:
    for parent in parents:
        with suppress(OSError):  # it holds the target by now
            parent.rmdir()


@contextmanager
def _held(work: Path, target: Path) -> Iterator[None]:
    """The folder of a run, its lock held, without leftovers; it is gone afterwards."""
    lock = FileLock(work / _LOCK, blocking=False)
    if work.is_symlink():
        raise ConversionError(f"{work} is a link where the target is to be built: remove it first.")
    try:
        _acquire(lock, target)
        _heal(work, target)
        yield
    finally:
        # An interrupt may have come before the lock was there.
        with suppress(Timeout, OSError):
            lock.acquire() if not lock.is_locked else None
        if lock.is_locked:
            _heal(work, target)
            shutil.rmtree(work, ignore_errors=True)
            lock.release()


def _acquire(lock: FileLock, target: Path) -> None:
    """Takes the lock of a run; raises ConversionError where another has it."""
    for attempt in range(_ATTEMPTS):
        try:
            lock.acquire()
            return
        except Timeout as error:
            raise ConversionError(f"{target} is being written by another run: wait for it, or name another.") from error
        except (FileNotFoundError, FileExistsError):
            # A run that has ended takes its folder away at this moment, with the place for the lock.
            if attempt + 1 == _ATTEMPTS:
                raise


def _heal(work: Path, target: Path) -> None:
    """Ends what a dead run began: files half moved go on, a target moved aside and not replaced comes back."""
    if (work / _MOVING).is_dir():
        _fill(work, target)
    if (work / _OLD).is_dir() and not target.exists():
        os.replace(work / _OLD, target)
    for name in (_NEW, _OLD):
        shutil.rmtree(work / name, ignore_errors=True)


def _is_empty(target: Path) -> bool:
    return all(path.name in _EMPTY_ALL_THE_SAME for path in target.iterdir())


def check_free(target: Path, overwrite: bool) -> None:
    """Raises ConversionError where the target must not be replaced."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"{target} exists and is not a folder: choose another target.")
    if not target.exists() or _is_empty(target):
        return
    if not overwrite:
        raise ConversionError(
            f"{target} exists and is not empty: choose another target, or allow it with --overwrite (overwrite=True)."
        )
    _check_replaceable(target, target)


def _check_replaceable(folder: Path, target: Path) -> None:
    """What is deleted is what zoo or transformers wrote, and nothing else; `folder` is the target, or was."""
    if not is_model(folder):
        raise ConversionError(
            f"{target} is not a model folder (it has no config.json of a model): it will not be overwritten."
        )
    if found := [name for name in strangers(folder) if name.rstrip("/") not in _EMPTY_ALL_THE_SAME]:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConversionError(
            f"{target} holds more than a model, {', '.join(found[:3])}{more}: it will not be overwritten; move that "
            "elsewhere, or choose another target."
        )


def _can_be_moved(target: Path, work: Path) -> bool:
    """Whether the system lets the target be replaced: of a mount point it does not, and no path tells."""
    try:
        os.replace(target, work / _OLD)
    except OSError as error:
        if error.errno in _STAYS_WHERE_IT_IS:
            return False
        raise
    os.replace(work / _OLD, target)
    return True


def _replace(work: Path, target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        target.rmdir()  # fails if another process has put something there meanwhile
    elif target.exists():
        os.replace(target, work / _OLD)
        if any((work / _OLD).iterdir()):
            _check_replaceable(work / _OLD, target)
    os.rename(work / _NEW, target)
    _sync_one(target.parent)


def _fill(work: Path, target: Path) -> None:
    """Moves what was built into a target that has to stay where it is; without config.json it is no model yet."""
    if not (work / _MOVING).exists():
        os.rename(work / _NEW, work / _MOVING)
    for path in sorted((work / _MOVING).iterdir(), key=lambda path: path.name == "config.json"):
        os.rename(path, target / path.name)
    (work / _MOVING).rmdir()
    _sync_one(target)


def _sync(folder: Path) -> None:
    """Everything in a folder is on the disk, not only in memory: a rename would be there before its content."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
