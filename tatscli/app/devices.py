"""Where things compute, chosen once."""

from typing import Literal

import torch

from tatscli.config.train import ComputeConfig
from tatscli.core.training.engine import Placement
from tatscli.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device an option means; ``auto`` takes the first GPU, else the CPU.

    Raises:
        DeviceError: It is not there; the message says what is.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device is visible here", "use --device cpu, or --device auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no MPS device is visible here", "use --device cpu, or --device auto")
    return torch.device(name)


def place_training(compute: ComputeConfig) -> Placement:
    """Devices and precision of a training run.

    Raises:
        DeviceError: Fewer devices are visible than asked for; the message has both numbers.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.gpus:
        if compute.device not in ("auto", "cuda"):
            raise DeviceError(f"--gpus {compute.gpus} and --device {compute.device} contradict")
        if compute.gpus > visible:
            raise DeviceError(
                f"--gpus {compute.gpus}, but {visible} CUDA devices are visible here",
                "use --device cpu (and --devices N for several CPU processes)"
                if not visible
                else f"use --gpus {visible}",
            )
    device = choose_device("cuda" if compute.gpus else compute.device).type
    if device == "cuda":
        processes = compute.gpus or (visible if compute.device == "auto" else 1)
    else:
        processes = compute.devices
    return Placement(
        accelerator=device,  # type: ignore[arg-type]  # choose_device gives no other
        processes=processes,
        nodes=compute.nodes,
        precision=_precision(compute.precision, device),
    )


def asked_processes(compute: ComputeConfig) -> int:
    """Processes of a run as far as the settings tell, without looking at the machine."""
    return max(1, compute.gpus or compute.devices) * compute.nodes


def _precision(asked: str, device: str) -> Literal["32-true", "bf16-mixed"]:
    if asked == "float32":
        return "32-true"
    if asked == "bf16":
        return "bf16-mixed"
    ampere = device == "cuda" and torch.cuda.get_device_capability()[0] >= 8
    return "bf16-mixed" if ampere else "32-true"
