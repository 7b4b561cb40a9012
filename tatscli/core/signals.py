"""Signals that come later, and readers that are not reached by those to all processes of a run."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeAlias, TypeVar

Value = TypeVar("Value")
Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
"""What answers a signal, as ``signal.signal`` takes it."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that a training run answers by saving."""
_OFTEN = 1.0
"""Seconds between two looks for the process that is read for."""
_held: dict[int, Handler] = {}
"""What answered the signals that are held back."""
_came: dict[int, None] = {}
"""Those of them that came, in this order."""


@contextmanager
def held_back(*signals: int) -> Iterator[None]:
    """Have signals come later: at the end, or once they are ``heard``.

    Processes that are started meanwhile hold them back, too, by the mask that they inherit. Here it
    would not do: it is that of one thread, and the system takes another one.
    """
    mine: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():  # no other may, or is reached
        for number in signals:
            answer = signal.getsignal(number)
            if answer not in (None, signal.SIG_IGN, _hold):
                mine[number] = _held[number] = answer
                signal.signal(number, _hold)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _let(mine)


def heard() -> None:
    """Have signals that were held back, and all from now on, come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    _let(dict(_held))


def answered_by(number: int, handler: Handler) -> Handler:
    """Have a signal answered in another way, once it is heard; returns what answered it before."""
    before = signal.signal(number, handler)
    return _held.get(number, before)


def _hold(number: int, frame: FrameType | None) -> None:
    _came[number] = None


def _let(answers: dict[int, Handler]) -> None:
    """Have signals answered again, and those that came answered now."""
    for number, answer in answers.items():
        _held.pop(number, None)
        if signal.getsignal(number) is _hold:
            signal.signal(number, answer)
    for number in [number for number in _came if number in answers]:
        del _came[number]
        signal.raise_signal(number)


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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has inherited what held it back
    held = [signal.SIGTERM] if _can_tell_senders() else []
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def until_asked(worker: int) -> None:
    """Keep signals to all processes of a run from one that reads for it; see ``attached``.

    The one that trains saves first, which it could not without readers.
    """
    attached(worker)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _can_tell_senders() -> bool:
    """Whether a thread can take signals with who sent them.

    Not on a Mac, nor where other threads would take them first: those that torch starts in readers
    that are no forks.
    """
    threads = Path("/proc/self/task")
    return hasattr(signal, "sigtimedwait") and threads.is_dir() and len([*threads.iterdir()]) == 1


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    # Seen at once. A server may have started this one instead, or the parent be gone already:
    # then its end of a pipe tells, which readers that were started later hold, too.
    is_direct = os.getppid() == parent.pid
    wait = getattr(signal, "sigtimedwait", lambda _, seconds: time.sleep(seconds))
    while parent.is_alive() and (not is_direct or os.getppid() == parent.pid):
        told = wait([signal.SIGTERM], _OFTEN)
        if told and told.si_pid == parent.pid:
            break
    os._exit(0)


def _unless_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing of a batch that was sent when nobody was there any more."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
