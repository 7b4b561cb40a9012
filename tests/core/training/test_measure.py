"""What helps a run that ran out of memory, in its own numbers; the rest is tested with plans."""

import pytest
from tiny_runs import CLIP, SMALL, gpt_module

from tatscli.config.train import ComputeConfig, GPTComputeConfig, LoopConfig, VQGANTrainConfig
from tatscli.core.training import measure
from tatscli.core.training.measure import FixedMemory, less_memory
from tatscli.core.training.placement import Placement
from tatscli.core.training.vqgan import VQGANTraining

GIB = 2**30


@pytest.fixture(scope="module")
def stage() -> VQGANTraining:
    loss = {"perceptual_weight": 0, "image_gan_weight": 0, "video_gan_weight": 0}
    config = VQGANTrainConfig.model_validate(
        {"data": CLIP.model_dump() | {"data": "none"}, "model": SMALL, "loss": loss}
    )
    return VQGANTraining(config, 1e-3, 8.0)


def hint(
    stage: VQGANTraining,
    batch: int,
    accumulate: int,
    *,
    bf16: bool = False,
    recompute: bool = False,
) -> str:
    return less_memory(
        stage,
        LoopConfig(batch_size=batch, accumulate=accumulate),
        ComputeConfig(recompute=recompute),
        Placement("cpu", 1, 1, "bf16-mixed" if bf16 else "32-true"),
    )


def test_fixed_memory_is_that_of_weights_gradients_and_moments(stage: VQGANTraining) -> None:
    learning = list(stage.parameters())
    found = FixedMemory.of(stage, learning)
    numbers = 4 * sum(weight.numel() for weight in learning)
    assert (found.gradients, found.optimiser) == (numbers, 2 * numbers)
    buffers = sum(b.numel() * b.element_size() for b in stage.buffers())
    assert found.weights == numbers + buffers


@pytest.mark.parametrize(
    ("batch", "accumulate", "says"),
    [
        (4, 1, "--batch-size 2 --accumulate 2 is the same step with half"),
        (6, 2, "--batch-size 3 --accumulate 4 is the same step with half"),
        (3, 2, "--batch-size 1 --accumulate 6 is the same step with 1/3"),
    ],
)
def test_the_same_step_is_offered_in_parts(
    stage: VQGANTraining, batch: int, accumulate: int, says: str
) -> None:
    assert says in hint(stage, batch, accumulate)


def test_only_what_would_change_something_is_offered(stage: VQGANTraining) -> None:
    all_of_it = hint(stage, 2, 1)
    assert "--recompute" in all_of_it
    assert "--precision bf16" in all_of_it
    nothing_left = hint(stage, 1, 8, bf16=True, recompute=True)
    assert not [o for o in ("--batch-size", "--recompute", "--precision") if o in nothing_left]
    assert "fewer frames or pixels" in nothing_left


def test_what_the_device_leaves_for_activations_is_said(
    stage: VQGANTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = FixedMemory(3 * GIB, 3 * GIB, 6 * GIB)
    monkeypatch.setattr(measure.FixedMemory, "of", lambda *_: fixed)
    monkeypatch.setattr(measure, "device_memory", lambda device: 16 * GIB)
    assert "take 12.00 GiB whatever the batch, and leave 4.00 GiB" in hint(stage, 2, 1)
    monkeypatch.setattr(measure, "device_memory", lambda device: 8 * GIB)
    found = hint(stage, 2, 1)
    assert "the device has 8.00: only a smaller model fits" in found
    assert "--batch-size" not in found


def test_a_gpt_may_be_spread_over_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": {}, "optim": {}, "train": {}, "workers": 0}
    stage, loop = gpt_module(settings), LoopConfig()
    weights = list(stage.gpt.parameters())
    whole, half = (FixedMemory.of(stage, weights, shares) for shares in (1, 2))
    assert (half.gradients, half.optimiser) == (whole.gradients // 2, whole.optimiser // 2)
    assert whole.weights - half.weights == whole.gradients // 2  # the VQGAN stays whole

    def said(compute: ComputeConfig, sharded: bool = False) -> str:
        placed = Placement("cuda", 4, 1, "32-true", sharded=sharded)
        return less_memory(stage, loop, compute, placed)

    monkeypatch.setattr(measure, "device_memory", lambda device: GIB)
    assert "--fsdp leaves a device 1/4" in said(GPTComputeConfig())
    assert "--fsdp" not in said(ComputeConfig()) + said(GPTComputeConfig(fsdp=True), sharded=True)
    monkeypatch.setattr(measure, "device_memory", lambda device: 1)
    assert "only a smaller model fits, or --fsdp" in said(GPTComputeConfig())
