"""Opening media files: what videos and their sound have in common."""

from pathlib import Path
from stat import S_ISREG
from typing import Any

import av

from tatscli.errors import DataError

UNREADABLE = (OSError, ValueError, IndexError, av.FFmpegError)
"""What PyAV raises on bad files."""

_PLAYLISTS = {"concat", "dash", "hls"}


def open_media(path: Path) -> Any:
    """Opens a file for reading, a PyAV container; playlists are refused with a ValueError."""
    # A playlist in disguise may name other files; it may not name anything on the network.
    container = av.open(
        f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
    )
    if set(container.format.name.split(",")) & _PLAYLISTS:
        container.close()
        raise ValueError("a playlist, not a video")
    return container


def require_content(path: Path) -> None:
    """Looks at a file before it is opened.

    Raises:
        DataError: It is not a regular file, or empty.
        OSError: It is not there.
    """
    status = path.stat()
    if not S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise DataError(f"{path}: not a regular file")
    if not status.st_size:
        raise DataError(f"{path}: empty file")


def reason(error: Exception) -> str:
    """What went wrong, in the system's or the library's words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
