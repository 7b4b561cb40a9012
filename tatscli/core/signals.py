"""Signals that come later, and readers that are not reached by those to all processes of a run."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import TracebackType
from typing import TypeVar

Value = TypeVar("Value")

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that a training run answers by saving."""
_OFTEN = 1.0
"""Seconds between two looks for the process that is read for."""


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


def started(batches: Iterable[Value]) -> Iterator[Value]:
    """The batches, once there are processes that read them.

    Python drops what a signal raises while it starts one.
    """
    with held_back(*STOPS):
        found = iter(batches)
    yield from found


def attached(worker: int) -> None:
    """Have a reader end with the process that it reads for, and never by itself.

    SIGTERM to all processes of a job would have the first one find its readers lost before it can
    end in its own way. It ends them by a message, and where that takes too long by SIGTERM, which
    only from there is answered. One whose process ended while it was starting would stay for ever.
    """
    sys.excepthook = _unless_gone
    # At once: torch ends it by its finalisers, in which another one would show where.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    # On a Mac, nobody says who sent it.
    held = [signal.SIGTERM] if hasattr(signal, "sigtimedwait") else []
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    parent = parent_process()  # which may be gone already
    assert parent
    threading.Thread(target=_end_with, args=[parent.pid], daemon=True).start()


def until_asked(worker: int) -> None:
    """Keep signals to all processes of a run from one that reads for it; see ``attached``.

    The one that trains saves first, which it could not without readers.
    """
    attached(worker)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_with(parent: int) -> None:
    wait = getattr(signal, "sigtimedwait", lambda _, seconds: time.sleep(seconds))
    while os.getppid() == parent:
        told = wait([signal.SIGTERM], _OFTEN)
        if told and told.si_pid == parent:
            break
    os._exit(0)


def _unless_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing of a batch that was sent when nobody was there any more."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
