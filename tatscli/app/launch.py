"""Who started this process: the user, or torchrun or SLURM as one of several; free of torch.

The first process of a run starts the others by its own command line, and tells them by variables
in the environment, as torchrun and SLURM do.
"""

import os
from dataclasses import dataclass
from typing import Literal

from tatscli.errors import DeviceError

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which a user types commands; Lightning takes the same for interactive."""


_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


@dataclass(frozen=True)
class Launch:
    """Processes that something else started.

    Attributes:
        by: What started them.
        processes: Processes on this machine.
        nodes: Machines.
    """

    by: Literal["torchrun", "srun"]
    processes: int
    nodes: int


def launched() -> Launch | None:
    """The processes that this one is one of, where torchrun or srun started them.

    A SLURM job of one task starts its further processes itself, as on any machine.

    Raises:
        DeviceError: SLURM does not tell how many tasks each machine has.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:  # also inside SLURM
        world, local = (int(environment[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Launch("torchrun", local, world // local)
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks == 1 or environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    if "SLURM_PROCID" not in environment:  # the batch script itself, before srun
        raise DeviceError(
            f"this SLURM job has {tasks} tasks, and the command was not started by srun",
            "put srun before it, or ask for --ntasks=1: then the command starts its own processes",
        )
    if "SLURM_NTASKS_PER_NODE" not in environment:
        raise DeviceError(
            f"this SLURM job has {tasks} tasks, and does not say how many on each machine",
            "use #SBATCH --ntasks-per-node=N instead of --ntasks",
        )
    nodes = int(environment.get("SLURM_NNODES", 1))
    return Launch("srun", tasks // nodes, nodes)


def is_helper() -> bool:
    """Whether this is a further process of a run; the first one writes and speaks."""
    return any(int(os.environ.get(name, 0)) > 0 for name in (*_RANKS, "NODE_RANK"))


def rank() -> int:
    """The number of this process, as far as the environment tells."""
    return max(int(os.environ.get(name, 0)) for name in _RANKS)


def array_task() -> tuple[int, int]:
    """The number of this task of a SLURM job array, from 0, and how many there are; else (0, 1)."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return 0, 1
    number, first, last, step = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("MAX", 0), ("STEP", 1))
    )
    count = max(1, (last - first) // step + 1)
    return (number - first) // step % count, count
