"""Errors that a person can act on.

Every error says what is wrong, with the numbers and the path, and carries a hint: the command or
option that mends it. The command line prints both and exits with its code, without a traceback.
"""

import errno

DISK_HINTS = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space of your quota, or write elsewhere",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "check the permissions, or write elsewhere",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a part of this path is a file",
}
"""What helps where the system refuses to write, by its number for the reason."""


class TatsError(Exception):
    """A problem the user can solve.

    Args:
        message: What is wrong, with both numbers and the path.
        hint: The command or option that helps; empty where the message says it all.
    """

    exit_code = 1
    """What the command line exits with."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TatsError):
    """Settings that contradict each other or are out of range."""


class DataError(TatsError):
    """Videos, frames or tokens that cannot be used."""


class CheckpointError(TatsError):
    """A checkpoint or weight file that is missing, damaged or of another kind."""


class RunError(TatsError):
    """A run folder that cannot be created, continued or written."""


class NotFiniteError(RunError):
    """A loss or gradient that is no number any more."""


class DeviceError(TatsError):
    """A device that is not there."""
