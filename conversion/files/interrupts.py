"""Signals that end the process, answered after what is half done has been cleaned up."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """Unwinds the block that a signal ends."""


@contextmanager
def cleaned_up() -> Iterator[None]:
    """Inside, the first signal that would end the process at once unwinds the block instead, further ones wait; the
    process ends by it afterwards. Signals that already have a handler are left to it."""
    caught: list[int] = []

    def stop(number, frame):
        if not caught:
            caught.append(number)
            raise Stopped(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if caught:
            signal.raise_signal(caught[0])
