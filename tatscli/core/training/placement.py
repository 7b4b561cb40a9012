"""Where a run computes, and how many processes read for it; free of Lightning.

Sampling, encoding and evaluation need these too, and Lightning takes seconds to import.
"""

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Placement:
    """Where a run computes.

    Attributes:
        accelerator: Lightning's name of the device.
        processes: Processes a machine.
        nodes: Machines.
        precision: Of the networks; the quantiser is float32 always.
        started_by: What starts the processes; ``tats`` means the first one does.
        sharded: Whether each process holds a part of what learns, see ``sharding``.
    """

    accelerator: Literal["cpu", "cuda", "mps"]
    processes: int
    nodes: int
    precision: Literal["32-true", "bf16-mixed"]
    started_by: Literal["tats", "torchrun", "srun"] = "tats"
    sharded: bool = False

    @property
    def world(self) -> int:
        """Processes of the whole run."""
        return self.processes * self.nodes


def choose_workers(device: str, asked: int = -1, processes: int = 1) -> int:
    """Processes that read clips for each process that computes.

    Args:
        device: Where the networks are.
        asked: What the user wants; -1 leaves the choice.
        processes: That compute on this machine.
    """
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // processes
    # On the CPU the networks need the cores themselves.
    return min(8, share) if device == "cuda" else min(2, max(1, share // 2))
