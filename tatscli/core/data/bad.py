"""Videos that turn out bad: named in one file, and counted by all processes that read."""

import fcntl
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tatscli.core.data.index import Problem
from tatscli.core.files import unwritable
from tatscli.errors import DataError

BAD_VIDEOS = "bad_videos.jsonl"
"""In a run folder: one object a line, with ``path``, ``reason`` and, where known, ``seconds``."""
_NAMED = 3


@dataclass(frozen=True)
class Undecodable(Problem):
    """A video that can be opened, and not decoded.

    Attributes:
        seconds: When the clip begins that cannot be.
    """

    seconds: float


def require_good(
    bad: Collection[Problem], videos: int, allowed: float, root: Path, file: Path | None = None
) -> None:
    """Stop where more videos are bad than may be.

    Args:
        bad: One for each bad video.
        videos: Of the dataset, with those that are bad.
        allowed: Largest part of them that may be bad.
        root: The dataset.
        file: Where all bad ones are named.

    Raises:
        DataError: More are; the message has both numbers and names the first.
    """
    # Divided, 29 of 100 are exactly 0.29; multiplied, they would be more.
    if not bad or len(bad) / videos <= allowed:
        return
    named = "; ".join(f"{p.path}: {p.reason}" for p in list(bad)[:_NAMED])
    more = f", and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    raise DataError(
        f"{len(bad)} of {videos} videos of {root} cannot be read, more than --max-bad {allowed:g}: "
        f"{named}{more}",
        # What the file names stays bad when a run goes on.
        f"mend them and remove {file}, which names all, or raise --max-bad"
        if file
        else "mend or remove them ('tats data check' names all), or raise --max-bad",
    )


class BadVideos:
    """The bad videos of a run, shared by the processes that read for it.

    Each reads what the others named before it adds a line, in one write that the system appends
    whole. Nothing is held open, so that it travels to worker processes.

    Args:
        dataset: What was given as the dataset.
        videos: Videos of the dataset, with those that are bad.
        allowed: Largest part of them that may be bad.
        known: Those that are known to be bad.

    Attributes:
        dataset: As it was given.
        file: Where they are named, if anywhere.
    """

    def __init__(
        self, dataset: Path, videos: int, allowed: float, known: Collection[Problem] = ()
    ) -> None:
        self.dataset, self._videos, self._allowed = dataset, videos, allowed
        self.file: Path | None = None
        self._known = {problem.path: problem for problem in known}

    def keep(self, file: Path) -> None:
        """Name all in a file from here on; those that it names from earlier on count, too.

        Raises:
            DataError: More are bad than may be; or the file cannot be written.
        """
        self.file = file
        if self._known or file.exists():
            self._name(file, list(self._known.values()))
        self.check()

    def add(self, problem: Problem) -> bool:
        """Name a video, once for all processes; whether none had named it.

        Raises:
            DataError: With it, more are bad than may be; or the file cannot be written.
        """
        if problem.path in self._known:
            return False
        is_new = self.file is None or self._name(self.file, [problem]) > 0
        self._known[problem.path] = problem
        self.check()
        return is_new

    def check(self) -> None:
        """Stop where more are bad than may be; see ``require_good``."""
        require_good(self._known.values(), self._videos, self._allowed, self.dataset, self.file)

    def _name(self, file: Path, problems: Sequence[Problem]) -> int:
        """Learn what the file names, and add to it what it does not; the number of these."""
        try:
            with file.open("ab", buffering=0) as stream:
                # Without locks, two processes that find one at the same moment both name it.
                with suppress(OSError):
                    fcntl.flock(stream, fcntl.LOCK_EX)
                named = {problem.path: problem for problem in read_bad(file)}
                new = [problem for problem in problems if problem.path not in named]
                stream.write("".join(json.dumps(asdict(p)) + "\n" for p in new).encode())
        except OSError as error:
            raise unwritable(file, error, DataError) from error
        self._known = named | self._known
        return len(new)


def read_bad(file: Path) -> list[Problem]:
    """The bad videos that a file names, in the order in which they were found.

    A line that a full disk cut off is passed over.

    Raises:
        DataError: It cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    found: dict[str, Problem] = {}
    for line in lines:
        try:
            row = json.loads(line)
            found.setdefault(row["path"], Problem(row["path"], row["reason"]))
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())
