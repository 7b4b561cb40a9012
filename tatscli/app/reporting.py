"""How use cases tell what they are doing, without knowing a terminal."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def update(
        self,
        done: int,
        total: int | None = None,
        figures: Mapping[str, float] | None = None,
        remark: str = "",
    ) -> None:
        """Say how many units are done in all, of how many, with the figures that matter.

        Args:
            done: Units.
            total: Of how many, where that is known by now.
            figures: Values by name.
            remark: One line about what is not right at present; empty where all is.
        """


class Reporter(Protocol):
    """Where a use case reports to."""

    def note(self, text: str) -> None:
        """Say one line that is not a result."""

    def warn(self, text: str) -> None:
        """Say one line that the user should act on."""

    def task(self, what: str, unit: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show a piece of work while it lasts."""


class NoTask:
    """Work that nobody is told about."""

    def update(
        self,
        done: int,
        total: int | None = None,
        figures: Mapping[str, float] | None = None,
        remark: str = "",
    ) -> None:
        """Tell nobody."""


class Silent:
    """Reports to nobody."""

    def note(self, text: str) -> None:
        """Drop the line."""

    def warn(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, what: str, unit: str, total: int | None = None) -> Iterator[Task]:
        """Show nothing."""
        yield NoTask()


class ForCaller(Silent):
    """Reports to the caller of the function that makes it: warnings only, as Python's own.

    They point at the line of that call.
    """

    def __init__(self) -> None:
        caller = sys._getframe(2)
        self._line = (caller.f_code.co_filename, caller.f_lineno)
        self._module = caller.f_globals.get("__name__")
        self._registry = caller.f_globals.setdefault("__warningregistry__", {})

    def warn(self, text: str) -> None:
        """Issue it, as ``warnings.warn`` does in the caller."""
        warnings.warn_explicit(text, UserWarning, *self._line, self._module, self._registry)
