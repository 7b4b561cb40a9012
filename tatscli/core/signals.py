"""Signals that come later, and readers that are not reached by those to all processes of a run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that a training run answers by saving."""


@contextmanager
def held_back(*signals: int) -> Iterator[None]:
    """Have signals come later: at the end, or once they are ``heard``.

    Processes that are started meanwhile hold them back, too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heard() -> None:
    """Have signals that were held back come now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def until_asked(worker: int) -> None:
    """Keep signals to all processes of a run from one that reads for it.

    The one that trains saves first, which it could not without readers, and then ends them: by a
    message, and where that takes too long by SIGTERM, which only from there is answered. When it is
    gone, readers notice by themselves.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # else, on a Mac, nobody says who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_wait_for, args=[os.getppid()], daemon=True).start()


def _wait_for(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent == os.getppid():
        pass
    os._exit(0)
