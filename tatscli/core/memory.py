"""How much memory is free, and how much is taken at most."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from tatscli.core.allocator import return_freed_memory


class _Cgroup(NamedTuple):
    """Where a container's limit and use are, and what of its use the system takes back at will."""

    limit: Path
    used: Path
    statistics: Path
    reclaimable: tuple[str, ...]


_CGROUPS = (
    _Cgroup(
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory.current"),
        Path("/sys/fs/cgroup/memory.stat"),
        ("inactive_file", "active_file", "slab_reclaimable"),
    ),
    _Cgroup(
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
        ("total_inactive_file", "total_active_file"),
    ),
)
"""Versions 2 and 1 of Linux' control groups."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on a device; None where nobody says.

    Of a CPU, the least of what the machine and the container have left; what this process was
    keeping is given back first.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type != "cpu":
        return None
    return_freed_memory()
    found = [room for group in _CGROUPS if (room := _container(group)) is not None]
    if (machine := _machine()) is not None:
        found.append(machine)
    return min(found, default=None)


def device_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all; None where it has none of its own."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


class PeakMemory:
    """The most memory that was taken at any moment since this was made, beyond what was then.

    On a GPU, what torch has given out, to the byte. On a CPU, the growth of the whole process, as
    Linux counts it: that also has the code that was loaded on the way, and what the C library
    keeps, and varies by tens of MiB.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu":
            return_freed_memory()
            with suppress(OSError):  # without it, the peak is that of the whole process
                _CLEAR.write_text("5", encoding="ascii")
            self._before = _resident("VmRSS") or 0

    def bytes(self) -> int | None:
        """How much; None where nobody says."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        peak = _resident("VmHWM") if self._device.type == "cpu" else None
        return None if peak is None else max(0, peak - self._before)


class _Bound:
    """The bound on what this process may ask for, which the first sets and the last lifts."""

    def __init__(self) -> None:
        self._lock, self._holders, self._before = threading.Lock(), 0, 0

    def take(self, size: int) -> None:
        with self._lock:
            if not self._holders:
                self._before = _limit_data(size)
            self._holders += 1

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                _limit_data(self._before)


_BOUND = _Bound()


@contextmanager
def bounded_memory() -> Iterator[int | None]:
    """Within it, asking for more memory than is free at its start fails, where Linux says how much.

    Yields the bytes that are free; None where they are no bound.

    Without, Linux grants what it does not have, and kills the process when it is used, so that
    nobody learns what was too large. What is granted but hardly used has room beside it: stacks of
    threads, and what libraries map. Files that torch maps within count in full. A machine with a
    GPU is left alone: drivers map far more than they use.
    """
    free = None
    if sys.platform == "linux" and not torch.cuda.is_available():
        free = free_memory(torch.device("cpu"))
    taken = _resident("VmData")
    if taken is None or free is None:
        yield None
        return
    _BOUND.take(taken + free + _beside())
    try:
        yield free
    finally:
        _BOUND.leave()


def _limit_data(size: int) -> int:
    """Bound what this process may ask for, as far as it may be; what the bound was."""
    import resource  # not on every system

    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, most))
    return before


def _beside() -> int:
    """Bytes that a process maps without using them: stacks of two sets of threads, and more."""
    threads = 2 * (torch.get_num_threads() + (os.cpu_count() or 1))
    return 2**30 + threads * 8 * 2**20


def _resident(name: str) -> int | None:
    """Memory of this process by the name that Linux has for it."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(sizes[name].split()[0]) * 1024 if name in sizes else None


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


def _container(group: _Cgroup) -> int | None:
    try:
        room = int(group.limit.read_text()) - int(group.used.read_text())
        lines = group.statistics.read_text().splitlines()
        sizes = dict(line.split() for line in lines)
        return max(0, room + sum(int(sizes.get(name, 0)) for name in group.reclaimable))
    except (OSError, ValueError):  # not there, or "max"
        return None
