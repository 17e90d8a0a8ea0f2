"""The first lines that run, before anything is imported that takes its time."""

import signal


def start() -> None:
    """The command. Ctrl-C ends it at once and without a traceback, as it ends any program; what builds files cleans up
    first (conversion/files/interrupts.py)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import main

    main()
