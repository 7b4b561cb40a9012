from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import SLOTS, Codes, Run, Train, Videos, gpt_module, vqgan_module
from torch.utils.data import Dataset

from tatscli.core.training import gpt, vqgan
from tatscli.core.training.engine import Clips, fit
from tatscli.core.training.placement import Placement
from tatscli.core.training.stage import Stage


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains in a folder; ``watch(module, step)`` is called at the end of every step."""

    def run(
        kind: str,
        name: str = "run",
        *,
        resume: bool = False,
        prepare: Callable[[Any], None] = lambda module: None,
        watch: Callable[[Any, int], None] = lambda module, step: None,
        clips: Dataset[Any] | None = None,
        workers: int = 0,
        **sections: Mapping[str, Any],
    ) -> Run:
        names = ("model", "loss", "optim", "train")
        settings = {n: sections.get(n, {}) for n in names} | {"workers": workers}
        module: Stage = vqgan_module(settings) if kind == "vqgan" else gpt_module(settings)
        prepare(module)
        stage = vqgan if kind == "vqgan" else gpt
        data = clips or (Videos() if kind == "vqgan" else Codes())
        folder = tmp_path / name
        outcome = fit(
            module,
            Clips(data, SLOTS, type(data)()),
            loop=module.config.train,
            compute=module.config.compute,
            placement=Placement("cpu", 1, 1, "32-true"),
            folder=folder,
            monitor=stage.MONITOR,
            figures=stage.FIGURES,
            draw=lambda module, step: None,
            on_step=lambda step, figures: watch(module, step),
            resume=folder / "checkpoints" / "last.ckpt" if resume else None,
        )
        return Run(module, outcome, folder)

    return run
