"""The further processes of a command: started, waited for, looked after and ended.

Lightning could start them, too. It then waits for them where no signal is heard, and answers the
end of one of them, whatever the reason, by killing the first before it has said or written why.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tatscli.core.ranks import AGAIN
from tatscli.core.signals import heard, held_back
from tatscli.core.training.placement import Placement
from tatscli.errors import RunError

_ARRIVED = "arrived"
_OFTEN = 0.05
"""Seconds between two looks for those that have arrived."""
_SELDOM = 5.0
"""Seconds between two looks for one that was lost."""
_TIME_TO_FIND = timedelta(minutes=10)
_TIME_TO_CONNECT = timedelta(seconds=30)
"""For how long the first process of a machine looks for that of another one, and those it started
for itself: it may be gone."""
_TIME_TO_END = 5.0
_TIME_TO_FAIL = 20.0
"""In which the first process, if it can do anything, ends after another one was lost."""


class Others:
    """The further processes that this one has started, if it is the first one of its machine.

    Attributes:
        at_work: Whether all do something together.
    """

    def __init__(self) -> None:
        self.at_work = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._store: TCPStore | None = None

    def meet(self, placement: Placement) -> None:
        """Start them, once in the life of a command, and wait until all have come so far.

        Raises:
            RunError: One has ended.
            KeyboardInterrupt: A user interrupted one of them.
            SystemExit: One was told to end.
        """
        if self._store or placement.world == 1 or placement.started_by != "tats":
            return
        is_first, where = "LOCAL_RANK" not in os.environ, LightningEnvironment()
        rank = where.node_rank() * placement.processes + where.local_rank()
        # The one through which torch lets them find each other later; it has only one of a port.
        self._store = TCPStore(
            where.main_address,
            int(os.environ.get("MASTER_PORT", 0)),
            placement.world,
            rank == 0,
            # On this machine it is there before any that is started by another.
            timeout=_TIME_TO_FIND if is_first else _TIME_TO_CONNECT,
            wait_for_workers=False,
            multi_tenant=True,
        )
        if is_first:
            os.environ["MASTER_ADDR"] = where.main_address
            os.environ["MASTER_PORT"] = str(self._store.port)
            os.environ["WORLD_SIZE"] = str(placement.world)
            os.environ["NODE_RANK"] = str(where.node_rank())
            self._start(placement.processes)
            os.environ["LOCAL_RANK"] = "0"
        self._store.add(_ARRIVED, 1)
        until = time.monotonic() + _TIME_TO_FIND.total_seconds()
        while (here := self._store.add(_ARRIVED, 0)) < placement.world:
            self.look(early=True)
            if time.monotonic() > until:
                raise RunError(
                    f"{here} of {placement.world} processes have come in "
                    f"{_TIME_TO_FIND.total_seconds() / 60:g} minutes",
                    "start the command on every machine, with MASTER_ADDR, MASTER_PORT, NODE_RANK",
                )
            time.sleep(_OFTEN)

    def look(self, *, early: bool = False) -> None:
        """Raise if one has ended, in the way in which it did.

        Args:
            early: Whether none may have ended at all, rather than none with an error.

        Raises:
            RunError: One has.
            KeyboardInterrupt: A user interrupted it.
            SystemExit: It was told to end.
        """
        codes = [process.poll() for process in self._processes]
        ended = [code for code in codes if code or (early and code is not None)]
        if not ended:
            return
        if ended[0] == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if ended[0] in (128 + signal.SIGTERM, -signal.SIGTERM):
            sys.exit(128 + signal.SIGTERM)
        raise RunError(f"another process of this command ended with code {ended[0]}", AGAIN)

    def end(self, number: int) -> None:
        """End them by a signal, or by SIGKILL where that takes too long."""
        processes, self._processes, self.at_work = self._processes, [], False
        with held_back(signal.SIGINT, signal.SIGCHLD):
            for process in processes:
                process.send_signal(number)
            for process in processes:
                try:
                    process.wait(_TIME_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, processes: int) -> None:
        # Until it can save, one hears no Ctrl-C: the first does, and ends it.
        with held_back(signal.SIGINT, signal.SIGUSR1):
            for number in range(1, processes):
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *sys.orig_argv[1:]],
                        env=os.environ | {"LOCAL_RANK": str(number)},
                    )
                )
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End all if one is lost and this one cannot, since it waits for it on a GPU."""
        while not self.at_work or not any(process.poll() for process in self._processes):
            time.sleep(_SELDOM)
        # Again, since that of the process may have come while it was being looked at here.
        os.kill(os.getpid(), signal.SIGCHLD)
        time.sleep(_TIME_TO_FAIL)
        if self._processes and self.at_work:  # else this one is about to end, or needs them no more
            for process in self._processes:
                process.kill()
            os.kill(os.getpid(), signal.SIGKILL)


OTHERS = Others()
"""Those of this command: all that is done together, one after the other, is done by the same."""


@contextmanager
def together(placement: Placement, end_by: int) -> Iterator[None]:
    """Do what the processes of a command do together; with an error, end the others.

    From when they have met until the work is ready to answer signals, and has them ``heard``, these
    are held back: none would hear them while it waits for another one to be ready.

    Args:
        placement: Where they are.
        end_by: The signal by which others are ended.
    """
    try:
        with held_back(signal.SIGUSR1):
            OTHERS.meet(placement)
            OTHERS.at_work = True
            with held_back(signal.SIGINT, signal.SIGTERM):
                yield
            OTHERS.at_work = False
        # A further process was started with some held back; from here on each answers by itself.
        heard()
    except BaseException:
        OTHERS.end(end_by)
        raise
