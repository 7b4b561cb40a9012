"""How much memory is free."""

import os
from pathlib import Path

import torch

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Limit and use of a container, in versions 2 and 1 of Linux' control groups."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on a device; None where nobody says.

    Of a CPU, the least of what the machine and the container have left.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = [room for pair in _CGROUPS if (room := _container(*map(Path, pair))) is not None]
    if (machine := _machine()) is not None:
        found.append(machine)
    return min(found, default=None)


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _pages()
    sizes = dict(line.split(":", 1) for line in lines)
    available = sizes.get("MemAvailable", "").split()
    return int(available[0]) * 1024 if available else _pages()


def _pages() -> int | None:
    """What systems other than Linux say, if they do."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _container(limit: Path, used: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # not there, or "max"
        return None
