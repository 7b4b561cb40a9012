"""Where things compute, chosen once."""

from dataclasses import replace
from typing import Literal

import torch

from tatscli.app.launch import Launch, launched
from tatscli.config.compute import DevicesConfig
from tatscli.config.train import ComputeConfig, GPTComputeConfig
from tatscli.core.allocator import keep_freed_memory
from tatscli.core.training.placement import Placement
from tatscli.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device an option means; ``auto`` takes the first GPU, else the CPU.

    A process that computes on its CPU keeps its memory from then on, see ``keep_freed_memory``.

    Raises:
        DeviceError: It is not there; the message says what is.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device is visible here", "use --device cpu, or --device auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no MPS device is visible here", "use --device cpu, or --device auto")
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def place(compute: DevicesConfig, *, every_gpu: bool = False) -> Placement:
    """Where the processes of a command are, whoever starts them.

    Args:
        compute: What is asked for. Under torchrun and srun, their processes are taken where that
            says nothing.
        every_gpu: Whether ``auto`` takes all visible GPUs rather than the first.

    Raises:
        DeviceError: Fewer devices are visible than asked for, or another number of processes runs;
            the message has both numbers.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.gpus:
        if compute.device not in ("auto", "cuda"):
            raise DeviceError(
                f"--gpus {compute.gpus} and --device {compute.device} contradict",
                "leave one of them out",
            )
        if compute.gpus > visible:
            raise DeviceError(
                f"--gpus {compute.gpus}, but {visible} CUDA devices are visible here",
                "use --device cpu (and --devices N for several CPU processes)"
                if not visible
                else f"use --gpus {visible}",
            )
    device = choose_device("cuda" if compute.gpus else compute.device).type
    launch = launched()
    if launch:
        _must_agree(compute, launch, visible if device == "cuda" else None)
        processes = launch.processes
    elif device == "cuda":
        takes_all = every_gpu and compute.device == "auto"
        processes = compute.gpus or (visible if takes_all else 1)
    else:
        processes = compute.devices if device == "cpu" else 1
    return Placement(
        accelerator=device,  # type: ignore[arg-type]  # choose_device gives no other
        processes=processes,
        nodes=launch.nodes if launch else compute.nodes,
        precision="32-true",
        started_by=launch.by if launch else "tats",
    )


def place_training(compute: ComputeConfig) -> Placement:
    """Devices and precision of a training run; see ``place``."""
    placement = place(compute, every_gpu=True)
    asked = isinstance(compute, GPTComputeConfig) and compute.fsdp
    return replace(
        placement,
        precision=_precision(compute.precision, placement.accelerator),
        sharded=asked and placement.world > 1,
    )


def _must_agree(compute: DevicesConfig, launch: Launch, visible: int | None) -> None:
    """What is asked for must be what was started."""
    for option, asked, found in (
        ("--gpus", compute.gpus, launch.processes),
        ("--devices", compute.devices if compute.devices > 1 else 0, launch.processes),
        ("--nodes", compute.nodes if compute.nodes > 1 else 0, launch.nodes),
    ):
        if asked and asked != found:
            unit = "machines" if option == "--nodes" else "processes on each machine"
            raise DeviceError(
                f"{option} {asked}, but {launch.by} started {found} {unit}",
                f"leave out {option}: what {launch.by} started is used",
            )
    if visible is not None and visible < launch.processes:
        raise DeviceError(
            f"{launch.by} started {launch.processes} processes on this machine, and {visible} CUDA "
            "devices are visible to them",
            "start one process a GPU, and let each see all of them",
        )


def placement_notes(compute: ComputeConfig, placement: Placement) -> list[str]:
    """Which options mean nothing where a run is."""
    notes = []
    given = compute.model_fields_set
    # Where all are given, they are the resolved settings of another run.
    typed = "sync_batchnorm" in given and given != set(type(compute).model_fields)
    if typed and compute.sync_batchnorm and not _several_gpus(placement):
        notes.append("--sync-batchnorm has no effect without several GPUs")
    if isinstance(compute, GPTComputeConfig) and compute.fsdp and not placement.sharded:
        notes.append("--fsdp has no effect on one device: there is nothing to share with")
    return notes + devices_notes(compute, placement)


def devices_notes(compute: DevicesConfig, placement: Placement) -> list[str]:
    """Whether processes on the CPU are asked for elsewhere."""
    if compute.devices == 1 or placement.accelerator == "cpu":
        return []
    return [
        f"--devices {compute.devices} has no effect: it counts processes of --device cpu, "
        f"and this run is on {placement.accelerator}"
    ]


def batch_norm_notes(compute: ComputeConfig, placement: Placement) -> list[str]:
    """Whether processes train with batch statistics of their own."""
    if placement.world == 1 or (_several_gpus(placement) and compute.sync_batchnorm):
        return []
    return [
        f"each of {placement.world} processes keeps its own statistics of batch norm, and "
        "checkpoints hold those of the first; --norm-type group has none"
    ]


def _several_gpus(placement: Placement) -> bool:
    return placement.accelerator == "cuda" and placement.world > 1


def _precision(asked: str, device: str) -> Literal["32-true", "bf16-mixed"]:
    if asked == "float32":
        return "32-true"
    if asked == "bf16":
        return "bf16-mixed"
    ampere = device == "cuda" and torch.cuda.get_device_capability()[0] >= 8
    return "bf16-mixed" if ampere else "32-true"
