"""Bytes from file to file, by the system where it can, holes left out; and the bytes of a buffer into a file."""

import errno
import os
from ctypes import Array
from io import RawIOBase

from ..errors import ConversionError

_AT_ONCE, _AT_ONCE_IF_ZERO = 2**24, 2**20
# What a system says that does not copy between such files.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY)


def write_all(file: RawIOBase, content: Array) -> None:
    """Writes all bytes, which one call need not do."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def write_numbers(file: RawIOBase, place: int, content: Array) -> None:
    """Writes the bytes of a buffer to `place` of a file whose bytes there are zero: what is zero stays a hole."""
    rest = memoryview(content).cast("B")
    for first in range(0, len(rest), _AT_ONCE_IF_ZERO):
        part = rest[first : first + _AT_ONCE_IF_ZERO]
        if not _is_zero(part):
            file.seek(place + first)
            write_all(file, part)


def _is_zero(part: memoryview) -> bool:
    """Whether all bytes are zero; where they are not, mostly the first few say so."""
    return not any(part[:64]) and part.tobytes() == bytes(len(part))


def copy_bytes(source: RawIOBase, start: int, target: RawIOBase, place: int, count: int) -> None:
    """Copies bytes `start` to `start + count` of a file to `place` of one whose bytes there are zero: where the source
    has a hole, the target keeps its own. Raises ConversionError for a source that ends before."""
    if os.fstat(source.fileno()).st_size < start + count:
        raise ConversionError(f"{source.name} ended too early: it was changed while being read.")
    end = start + count
    while start < end:
        first = _next(source, start, "SEEK_DATA", end)
        place, start = place + first - start, first
        stop = _next(source, start, "SEEK_HOLE", end)
        while start < stop:
            done = _copy(source, start, target, place, stop - start)
            start, place = start + done, place + done


def _next(file: RawIOBase, start: int, kind: str, end: int) -> int:
    """Where the next data, or the next hole, of a file begins; a system that knows of no holes has data everywhere."""
    if start >= end:
        return end
    if not hasattr(os, kind):
        return start if kind == "SEEK_DATA" else end
    try:
        return min(end, os.lseek(file.fileno(), start, getattr(os, kind)))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end  # a hole up to the end of the file
        return start if kind == "SEEK_DATA" else end


def _copy(source: RawIOBase, start: int, target: RawIOBase, place: int, count: int) -> int:
    """Copies some bytes -> how many."""
    try:
        done = os.copy_file_range(source.fileno(), target.fileno(), min(count, 2**30), start, place)
    except AttributeError:
        done = 0
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        done = 0
    if done:
        return done
    source.seek(start)
    content = source.read(min(count, _AT_ONCE))
    if not content:
        raise ConversionError(f"{source.name} ended too early: it was changed while being read.")
    target.seek(place)
    write_all(target, content)
    return len(content)
