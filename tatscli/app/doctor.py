"""What is wrong with this machine, before a run finds out.

The checks run one after the other in a process of their own, which imports torch once. One that
crashes that process, or does not come to an end, costs its own verdict and no other: the process is
replaced, and goes on with the check after it.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tatscli.app.doctor_checks import CHECKS, Check, Level, Verdict
from tatscli.app.reporting import Reporter, Silent
from tatscli.config.doctor import DoctorConfig
from tatscli.errors import TatsError


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        level: ``ok``, ``warning`` (works, but not well) or ``error`` (some command will fail).
        text: What is there, with the figure behind the verdict.
        fix: What mends it; empty where all is well.
    """

    check: str
    level: Level
    text: str
    fix: str = ""


def diagnose(
    config: DoctorConfig, reporter: Reporter | None = None, checks: Sequence[Check] = CHECKS
) -> list[Finding]:
    """Look at everything that commands need from a machine.

    Args:
        config: Settings.
        reporter: Told about progress.
        checks: In the order of the findings; each gives at least one.
    """
    reporter = reporter or Silent()
    found: list[Finding] = []
    with reporter.task("looking at the machine", "checks", len(checks)) as task, _Examiner() as at:
        for number, check in enumerate(checks, 1):
            broken = {finding.check for finding in found if finding.level == "error"}
            if missing := [name for name in check.after if name in broken]:
                text = f"not looked at, since {missing[0]} does not work"
                found.append(Finding(check.name, "warning", text, f"mend {missing[0]}"))
            else:
                found += [Finding(check.name, *verdict) for verdict in at.look(check, config)]
            task.update(number)
    return found


def require_sound(found: Sequence[Finding]) -> None:
    """Make an error of findings that are.

    Raises:
        TatsError: A check found an error.
    """
    wrong = [finding for finding in found if finding.level == "error"]
    if wrong:
        names = ", ".join(dict.fromkeys(finding.check for finding in wrong))
        fixes = dict.fromkeys(f"{item.check}: {item.fix or item.text}" for item in wrong)
        raise TatsError(f"commands will fail on this machine because of {names}", "\n".join(fixes))


class _Examiner:
    """The process that looks, as seen from here; started when it is needed."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def __enter__(self) -> "_Examiner":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def look(self, check: Check, config: DoctorConfig) -> list[Verdict]:
        """What a check finds; an error is the last where it does not end well."""
        found: list[Verdict] = []
        if self._process is None:
            self._start()
        deadline = time.monotonic() + check.seconds
        try:
            self._line.send((check.look, config))
            while self._line.poll(max(0.0, deadline - time.monotonic())):
                verdict = self._line.recv()
                if verdict is None:
                    return found
                found.append(verdict)
            why = f"no answer within {check.seconds:g} s"
        except (EOFError, OSError):
            why = f"the process that looked was ended by {self._fate()}"
        self._end()
        return [*found, Verdict("error", why, check.fix)]

    def _start(self) -> None:
        context = get_context("spawn")
        self._line, far_end = context.Pipe()
        self._process = context.Process(target=_answer, args=(far_end, get_start_method()))
        self._process.start()
        far_end.close()

    def _fate(self) -> str:
        assert self._process is not None
        self._process.join(1)
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"itself, with exit code {code}"

    def _end(self) -> None:
        """End the process and those that it started."""
        if self._process is None:
            return
        assert self._process.pid is not None
        with suppress(OSError):
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._line.close()
        self._process = None


def _answer(line: Connection, method: str) -> None:
    """Look at what comes through the line, in the process that does; None ends each answer.

    Args:
        line: To the process that asks.
        method: How that one starts processes, as commands do; a spawned one would spawn.
    """
    set_start_method(method, force=True)
    os.setsid()  # the head of a group, which is ended with it
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries may say what they like
        os.dup2(nothing, stream)
    while True:
        look, config = line.recv()
        try:
            for verdict in look(config):
                line.send(verdict)
        except TatsError as error:
            line.send(Verdict("error", error.message, error.hint))
        except Exception as error:  # whatever it is, it is the finding
            line.send(Verdict("error", f"{type(error).__name__}: {error}"))
        line.send(None)
