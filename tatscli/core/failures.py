"""Failures of the machine under a computation, as errors that a person can act on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from tatscli.core.memory import bounded_memory
from tatscli.errors import DataError, DeviceError, RunError

_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?(.*?)\.?\s*$", re.S)
_NO_MEMORY = re.compile(r"can't allocate memory|bad_alloc|could not create a memory")
_ASKED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.I)
_FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
_LOST = re.compile(r"gloo|NCCL|Connection (?:closed|reset) by peer|process group", re.I)
"""How torch reports that another process of the group does not answer."""


@contextmanager
def explained(less_memory: str, again: str = "", *, bounded: bool = False) -> Iterator[None]:
    """Explain memory that ran out, readers that died and processes that were lost.

    Args:
        less_memory: The options that need less memory.
        again: What goes on after another process of the run was lost.
        bounded: Whether memory is to run out with an error, see ``bounded_memory``.

    Raises:
        DeviceError: The device or the machine has too little memory.
        DataError: A process that read clips died; the message has its number and the signal.
        RunError: Another process of the run ended.
    """
    free = None
    try:
        with bounded_memory() if bounded else nullcontext() as free:
            yield
    except MemoryError as error:
        raise DeviceError(f"out of memory{_of(free)}", less_memory) from error
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"out of memory on the GPU: {_asked(error)}", less_memory) from error
    except torch.distributed.DistError as error:
        raise _lost(error, again) from error
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            told = f"out of memory: {_asked(error)}{_of(free)}"
            raise DeviceError(told, less_memory) from error
        if found := _WORKER.search(str(error)):
            numbers, end = found.groups()
            raise DataError(
                f"process {numbers} that read clips {'was ' if 'by signal' in end else ''}"
                f"{end.splitlines()[0].rstrip('. ')}",
                "most often memory ran out (dmesg says so): fewer --workers, or more shared memory "
                "in a container (--shm-size); --workers 0 reads without such processes",
            ) from error
        if _LOST.search(str(error)):
            raise _lost(error, again) from error
        raise


def _lost(error: Exception, again: str) -> RunError:
    return RunError(f"another process of this run ended or does not answer: {_first(error)}", again)


def _asked(error: Exception) -> str:
    """How much was asked for, and of a GPU how much there is; else what torch says."""
    asked, room = _ASKED.search(str(error)), _FREE.search(str(error))
    if not asked:
        return _first(error)
    number, unit = asked[1].split()
    if unit == "bytes" and float(number) >= 2**20:
        number, unit = f"{float(number) / 2**30:.2f}", "GiB"
    free = f", and {room[2]} of {room[1]} are free" if room else ""
    return f"{number} {unit} more were asked for{free}"


def _of(free: int | None) -> str:
    """How much there was."""
    return "" if free is None else f"; {free / 2**30:.1f} GiB were free at the start"


def _first(error: Exception) -> str:
    """The first sentence of what torch says, which goes on for lines."""
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
