"""tats plan on the command line: what is printed, and what is refused; the planning is stood in."""

import json

import pytest

from tatscli.app import plan_train, plan_use
from tatscli.app.estimate import ACT, ALONE, DiskPlan, MemoryPlan, Part, PhasePlan, TrainPlan
from tatscli.app.plan_use import EncodePlan, SamplePlan, UseMemory

MIB = 2**20
PLAN = TrainPlan(
    kind="vqgan", device="cuda", precision="bf16", processes=2,
    parameters={"vqgan": 32_000_000, "image discriminator": 900},
    steps=2000, epochs=12.5, batch_size=2, accumulate=8, effective_batch=32, largest_batch=9,
    learning_rate=3e-4,
    phases=[PhasePlan(ALONE, 0, 0, 500, 0.25, 125 / 3600),
            PhasePlan(ACT, 500, 16000, 1500, 1.5, 2250 / 3600)],
    steps_per_second=0.842, clips_per_second=26.9, tokens_per_second=27_600.0,
    time=[Part("start", 1, 9.0, 9.0), Part(ALONE, 500, 0.25, 125.0), Part(ACT, 1500, 1.5, 2250.0)],
    seconds=2384.0, hours=2384 / 3600,
    memory=MemoryPlan(100 * MIB, 50 * MIB, 100 * MIB, 6 * MIB, 2000 * MIB, 2256 * MIB, 8192 * MIB),
    disk=DiskPlan(200 * MIB, 3, 5 * MIB, 605 * MIB, 500 * MIB),
    measured_steps=20,
)  # fmt: skip
USED = UseMemory(100 * MIB, None, None, None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The settings that were planned, by kind."""
    seen = {}

    def stand_in(kind, plan):
        def planned(config, write, reporter):
            seen[kind] = (config, write)
            return plan

        return planned

    encoded = EncodePlan(
        "cpu", "float32", 1, {"train": 512, "val": 128}, (4, 8, 8), 8, 50.0, 12800.0,
        [Part("start", 1, 9.0, 9.0)], 9.0, 9 / 3600, 1000, USED, 96,
    )  # fmt: skip
    sampled = SamplePlan(
        "long", "cpu", "float32", 100, 80, 2560, 16, 256, 1.5, 435.0,
        [Part("start", 1, 9.0, 9.0)], 9.0, 9 / 3600, USED, 40,
    )  # fmt: skip
    monkeypatch.setattr(plan_train, "plan_vqgan", stand_in("vqgan", PLAN))
    monkeypatch.setattr(plan_train, "plan_gpt", stand_in("gpt", PLAN))
    monkeypatch.setattr(plan_use, "plan_encode", stand_in("encode", encoded))
    monkeypatch.setattr(plan_use, "plan_sample", stand_in("sample", sampled))
    return seen


def test_people_see_all_that_was_asked_for(tats, asked) -> None:
    done = tats("plan", "vqgan", "--data", "videos", "--effective-batch", 32)
    assert done.code == 0, done.err
    for line in (
        "parameters     vqgan 32.0 M, image discriminator 900",
        "measured       20 steps on cuda in bf16",
        "batch          --batch-size 2 x --accumulate 8 x 2 processes = 32 clips a step",
        "largest batch  about 9 clips at once; the same step: --batch-size 8 --accumulate 2",
        "learning rate  0.0003",
        "run            2,000 steps, 64,000 clips, 12.5 epochs",
        "rate           0.842 steps/s, 26.9 clips/s, 27,600 tokens/s",
    ):
        assert line in done.out.splitlines()
    assert [line.split() for line in done.out.splitlines() if line.startswith(ACT)] == [
        ["discriminators", "act", "500", "16,000", "1,500", "1.5", "s"],
        ["discriminators", "act", "1,500", "1.5", "s", "37.5", "min"],
    ]
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "memory 2.2 GiB of 8.0 GiB that are free" in lines
    assert "optimiser 100.0 MiB by count" in lines
    assert "activations 2.0 GiB the measured peak less the above" in lines
    assert "the disk has 500.0 MiB free, the run will need 605.0 MiB" in done.err
    config, write = asked["vqgan"]
    assert (config.plan.effective_batch, config.data.data.name, write) == (32, "videos", None)


def test_programs_see_one_object(tats, asked) -> None:
    found = json.loads(tats("plan", "gpt", "--data", "tokens", "--json").out)
    assert found["memory"]["optimiser"] == 100 * MIB
    assert found["phases"][1]["from_clips"] == 16000
    assert json.loads(tats("plan", "encode", "--data", "d", "--vqgan", "r", "--json").out)["clips"]
    assert json.loads(tats("plan", "sample", "--gpt", "run", "--json").out)["tokens"] == 2560


def test_encoding_and_sampling_have_tables_too(tats, asked) -> None:
    out = tats("plan", "encode", "--data", "d", "--vqgan", "run").out
    assert "clips     512 train, 128 val, each of 4 x 8 x 8 tokens" in out
    assert "rate      50 clips/s, 12,800 tokens/s" in out
    assert "memory     not measured on this device" in out
    out = tats("plan", "sample", "--gpt", "run", "--length", 40).out
    assert "samples   100 of 80 frames, 2,560 tokens each" in out
    assert "--batch-size auto would take up to 256" in out


def test_options_of_the_planned_command_are_taken_by_all_their_names(tats, asked) -> None:
    done = tats(
        "plan", "vqgan", "--preset", "tiny", "--data_path", "d", "--n_codes", 64,
        "--discriminator_iter_start", 500, "--write", "file.yaml",
    )  # fmt: skip
    assert done.code == 0, done.err
    config, write = asked["vqgan"]
    assert (config.model.codes, config.loss.disc_start, write.name) == (64, 500, "file.yaml")
    assert config.train.max_steps == 2000


@pytest.mark.parametrize(
    "wrong",
    [("--effective-batch", -1), ("--measured-steps", 5), ("--measured-steps", 19)],
)
def test_what_cannot_be_planned_is_refused_before_anything_starts(tats, asked, wrong) -> None:
    done = tats("plan", "vqgan", "--data", "d", *wrong)
    assert done.code == 2
    assert wrong[0] in done.err
    assert not asked
