"""What a run would use as far as its settings tell; free of torch, so that it is quick to ask."""

from pathlib import Path
from typing import TypeVar

from tatscli.app.reporting import Reporter
from tatscli.app.run import RunFolder, continued
from tatscli.config.files import dump
from tatscli.config.train import ComputeConfig, GPTTrainConfig, VQGANTrainConfig

TrainConfig = TypeVar("TrainConfig", VQGANTrainConfig, GPTTrainConfig)


def preview(config: TrainConfig, resume: Path | None, reporter: Reporter) -> str:
    """What a run would use, as YAML, touching neither devices nor paths.

    Args:
        config: Settings.
        resume: As of the training; of a run that goes on, what it has saved is looked at.
        reporter: Told about what was not looked at, and the learning rate.

    Raises:
        RunError: The run that is to go on has not saved.
        ConfigError: It was trained with other settings.
    """
    if run := continued(config, resume):
        RunFolder(run).require_saved()
        RunFolder(run).require_same(config)
    if config.compute.gpus:
        reporter.note(f"devices were not looked at; --gpus {config.compute.gpus} is believed")
    settled = settle_rate(config, asked_processes(config.compute), reporter)
    if config.train.init is None:
        return dump(settled)
    reporter.note(
        f"{config.train.init} was not looked at; settings that are not listed here come from it"
    )
    left_open = {
        name: type(section).model_fields.keys() - section.model_fields_set
        for name, section in (("data", config.data), ("model", config.model))
    }
    return dump(settled, left_open)


def asked_processes(compute: ComputeConfig) -> int:
    """Processes of a run as far as the settings tell, without looking at the machine."""
    return max(1, compute.gpus or compute.devices) * compute.nodes


def settle_rate(config: TrainConfig, processes: int, reporter: Reporter) -> TrainConfig:
    """Replace a published base rate by the learning rate it stands for, and say so.

    Args:
        config: As resolved.
        processes: Of the run; the published rule depends on them.
        reporter: Told about the rate.
    """
    optim, loop = config.optim, config.train
    if not optim.base_learning_rate:
        return config
    rate = optim.rate(loop.accumulate, processes, loop.batch_size)
    reporter.note(
        f"learning rate {rate:.3g} from base rate {optim.base_learning_rate:g} by the "
        f"published rule (accumulate {loop.accumulate}, {processes} processes, "
        f"batch {loop.batch_size})"
    )
    settled = optim.model_copy(update={"learning_rate": rate, "base_learning_rate": 0.0})
    return config.model_copy(update={"optim": settled})
