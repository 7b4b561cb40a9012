"""Sampling into folders and as tensors; what evaluation reads of it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from tiny_app import Notes, long_config, short_config

import tatscli
from tatscli.app import sample as module
from tatscli.app import sampler
from tatscli.app.ahead import free_folder, newest_gpt_for
from tatscli.app.run import RunFolder, newest_gpt
from tatscli.app.sample import read_samples
from tatscli.core.checkpoint import read_gpt, read_vqgan
from tatscli.core.data.video import probe, read_frames, to_uint8
from tatscli.core.models.gpt import sequence_bytes
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import CheckpointError, ConfigError, DataError, DeviceError


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    info = probe(path)
    return read_frames(path, info, range(len(info.times)))


def test_short_samples_fill_a_folder(gpt_run: Path, tmp_path: Path) -> None:
    config = short_config(
        gpt_run, tmp_path, sample={"name": "mine", "lossless": True, "samples": 5, "seed": 3},
        filter={"top_k": 6, "temperature": 0.7},
    )  # fmt: skip
    result = module.short(config)
    assert result.folder == tmp_path / "mine"
    assert (result.samples, result.frames, result.size, result.frame_rate) == (5, 4, 8, 8)
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "grid.mp4", "grid.png", "lossless", *(f"sample-{n:04}.mp4" for n in range(5)),
        "samples.json",
    ]  # fmt: skip
    listing = json.loads((result.folder / "samples.json").read_text())
    assert [sample["label"] for sample in listing["samples"]] == [
        "circle", "square", "circle", "square", "circle",
    ]  # fmt: skip
    assert listing["settings"]["seed"] == 3
    assert listing["settings"]["temperature"] == 0.7
    assert listing["settings"]["vqgan"] == read_gpt(gpt_run).vqgan.model.fingerprint()
    with av.open(str(result.folder / "sample-0001.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        comment = json.loads(file.metadata["comment"])
    assert (comment["index"], comment["label"], comment["seed"]) == (1, "square", 3)
    assert comment["top_k"] == 6
    videos, labels = read_samples(result.folder)
    assert videos.shape == (5, 3, 4, 8, 8)
    assert labels[:2] == ["circle", "square"]
    tensor = tatscli.sample_short(
        gpt_run, 5, seed=3, top_k=6, temperature=0.7, batch_size=4, device="cpu"
    )
    assert tensor.shape == (5, 3, 4, 8, 8)
    assert np.array_equal(to_uint8(tensor), to_uint8(videos))


@pytest.mark.parametrize("done", [0, 2])
def test_samples_that_are_done_stay_when_the_others_are_interrupted(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    pieces, decoded = module.decoded_pieces, list[int]()

    def interrupted(*arguments: Any) -> Any:
        if len(decoded) == done:
            raise KeyboardInterrupt
        decoded.append(1)
        return pieces(*arguments)

    monkeypatch.setattr(module, "decoded_pieces", interrupted)
    notes = Notes()
    config = short_config(gpt_run, tmp_path, sample={"name": "mine", "samples": 5})
    with pytest.raises(KeyboardInterrupt):
        module.short(config, notes)
    assert (tmp_path / "mine").exists() == bool(done)
    if done:
        assert len(read_samples(tmp_path / "mine")[0]) == done
        assert f"{tmp_path / 'mine'} holds the 2 samples done so far" in notes.notes


def test_cuda_graphs_are_said_to_have_no_effect_on_a_cpu(gpt_run: Path, tmp_path: Path) -> None:
    notes = Notes()
    compute = {"device": "cpu", "cuda_graphs": True}
    module.short(short_config(gpt_run, tmp_path, sample={"samples": 1}, compute=compute), notes)
    assert "--cuda-graphs has no effect: the device is cpu" in notes.notes


def test_samples_do_not_depend_on_the_batch(gpt_run: Path) -> None:
    def sampled(batch: int, seed: int = 1) -> torch.Tensor:
        return tatscli.sample_long(gpt_run, 5, 5, seed=seed, batch_size=batch, device="cpu")

    samples = sampled(5)
    assert samples.shape == (5, 3, 10, 8, 8)
    assert samples.min() >= -0.5
    assert samples.max() <= 0.5
    for batch in (1, 2):
        torch.testing.assert_close(sampled(batch), samples, atol=1e-5, rtol=0)
    assert not torch.equal(sampled(5, seed=2), samples)


def test_an_automatic_batch_fits_half_of_the_free_memory(
    gpt_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = sequence_bytes(read_gpt(gpt_run).model)
    batches: list[int] = []
    generate = sampler.generate_long

    def counted(gpt: Any, condition: Any, chances: Any, *args: Any, **more: Any) -> torch.Tensor:
        batches.append(len(chances))
        return generate(gpt, condition, chances, *args, **more)

    def sampled(free: int | None, guidance: float = 1.0) -> torch.Tensor:
        batches.clear()
        monkeypatch.setattr(sampler, "free_memory", lambda _: free)
        return tatscli.sample_long(
            gpt_run, 3, 5, guidance=guidance, batch_size="auto", device="cpu"
        )

    monkeypatch.setattr(sampler, "generate_long", counted)
    whole = sampled(2**40)
    assert batches == [5]
    part = sampled(2 * 3 * each + 1)
    assert batches == [3, 2]
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=0)
    sampled(2 * 4 * each + 1, guidance=2.0)
    assert batches == [2, 2, 1]
    sampled(0)
    assert batches == [1] * 5
    sampled(None)
    assert batches == [5]


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "many", ""])
def test_a_batch_is_a_number_or_automatic(gpt_run: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(ValueError, match=rf"a whole number from 1, or auto, got {size}"):
        short_config(gpt_run, tmp_path, sample={"batch_size": size})


def test_samples_in_bf16_say_so_and_are_videos(gpt_run: Path, tmp_path: Path) -> None:
    config = short_config(
        gpt_run, tmp_path, sample={"name": "rough"},
        filter={"temperature": 0.0}, compute={"precision": "bf16"},
    )  # fmt: skip
    result = module.short(config)
    settings = json.loads((result.folder / "samples.json").read_text())["settings"]
    assert settings["precision"] == "bf16"
    assert settings["vqgan"] == read_gpt(gpt_run).vqgan.model.fingerprint()
    assert frames_of(result.folder / "sample-0000.mp4").shape == (4, 8, 8, 3)


def test_long_samples_are_as_long_as_asked(gpt_run: Path, tmp_path: Path) -> None:
    result = module.long(long_config(gpt_run, tmp_path, sample={"name": "latent"}))
    assert result.frames == 10
    result = module.long(
        long_config(gpt_run, tmp_path, sample={"name": "f", "lossless": True},
                    window={"length": 16, "frames": 9})
    )  # fmt: skip
    assert result.frames == 9
    assert len(frames_of(result.folder / "sample-0002.mp4")) == 9
    whole = tatscli.sample_long(gpt_run, 5, 3, device="cpu")
    videos, _ = read_samples(result.folder)
    assert np.array_equal(to_uint8(videos), to_uint8(whole[:, :, :9]))


def test_long_up_to_the_window_is_short(gpt_run: Path) -> None:
    long = tatscli.sample_long(gpt_run, 2, 2, seed=4, device="cpu")
    assert torch.equal(long, tatscli.sample_short(gpt_run, 2, seed=4, device="cpu"))


def test_a_context_as_long_as_the_window_is_an_error_with_both_numbers(
    gpt_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--temporal-sample-pos 2 .* window of 2") as caught:
        module.long(long_config(gpt_run, tmp_path, window={"temporal_sample_pos": 2, "length": 4}))
    assert "from 1 to 1" in caught.value.hint
    with pytest.raises(ConfigError, match="--temporal-sample-pos 3"):
        tatscli.sample_long(gpt_run, 4, context=3, device="cpu")
    with pytest.raises(ConfigError, match=r"--sample-resolution 16, .* latent side of 2"):
        module.long(long_config(gpt_run, tmp_path, window={"sample_resolution": 16}))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_fills_is_left_alone(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object) -> None:
        raise BlockingIOError

    config = short_config(gpt_run, tmp_path, sample={"name": "mine"})
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.lockf", taken)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / ".lock").touch()
        with pytest.raises(DataError, match=r"mine: another process is writing into it"):
            module.short(config)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == [".lock"]
    assert not list(module.short(config).folder.glob(".*"))


def test_samples_for_python_are_decoded_one_by_one(
    gpt_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = list[int](), module.decode_stream

    def counting(vqgan: VQGAN, codes: torch.Tensor) -> Any:
        decoded.append(len(codes))
        return decode(vqgan, codes)

    monkeypatch.setattr(module, "decode_stream", counting)
    assert len(tatscli.sample_short(gpt_run, 3, batch_size=3, device="cpu")) == 3
    assert decoded == [1, 1, 1]


def test_a_folder_with_samples_is_left_alone(gpt_run: Path, tmp_path: Path) -> None:
    config = short_config(gpt_run, tmp_path, sample={"samples": 1})
    folder = module.short(config).folder
    before = (folder / "sample-0000.mp4").read_bytes()
    with pytest.raises(DataError, match="not empty; nothing was overwritten") as caught:
        module.short(config)
    assert "--name" in caught.value.hint
    assert (folder / "sample-0000.mp4").read_bytes() == before


def test_classes_asked_of_a_model_without_any_are_an_error(
    unconditional: Path, gpt_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has no condition") as caught:
        module.short(short_config(unconditional, tmp_path, condition={"class_cond": True}))
    assert "--condition label" in caught.value.hint
    result = module.short(short_config(unconditional, tmp_path, sample={"samples": 1}))
    assert read_samples(result.folder)[1] == [None]
    config = short_config(
        gpt_run, tmp_path, sample={"name": "l", "samples": 1}, condition={"class_cond": True}
    )
    assert read_samples(module.short(config).folder)[1] == ["circle"]


def test_a_vqgan_given_as_a_check_is_checked(
    gpt_run: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    right = {"vqgan": vqgan_run, "samples": 1}
    assert module.short(short_config(gpt_run, tmp_path, sample=right)).samples == 1
    with pytest.raises(CheckpointError) as caught:
        wrong = {"vqgan": other_vqgan_run, "name": "w"}
        module.short(short_config(gpt_run, tmp_path, sample=wrong))
    assert read_vqgan(other_vqgan_run).model.fingerprint() in caught.value.message
    assert not (tmp_path / "w").exists()


def test_without_a_gpt_the_newest_run_is_taken(
    gpt_run: Path, vqgan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no GPT run in runs"):
        newest_gpt()
    for age, name in ((50, "old"), (10, "new"), (30, "older")):
        shutil.copytree(gpt_run, tmp_path / "runs" / name)
        last = RunFolder(tmp_path / "runs" / name).last
        os.utime(last, (1e9 - age, 1e9 - age))
    shutil.copytree(vqgan_run, tmp_path / "runs" / "vqgan")
    assert newest_gpt() == Path("runs/new")
    for name, record in (("cut", "{"), ("list", "[]"), ("kindless", "{}")):
        shutil.copytree(gpt_run, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "run.json").write_text(record)
    notes = Notes()
    assert newest_gpt(reporter=notes) == Path("runs/new")
    assert {warning.split(":")[0] for warning in notes.warnings} == {
        f"passed over runs/{name}" for name in ("cut", "list", "kindless")
    }
    config = short_config(gpt_run, tmp_path / "out", sample={"gpt": None, "samples": 1})
    module.short(config, notes)
    assert any("runs/new" in note for note in notes.notes)


def put_run(run: Path, name: str, age: int, **model: Any) -> None:
    """A copy of a run in runs, older than now by so much, and with another model by its config."""
    copy = RunFolder(Path("runs") / name)
    shutil.copytree(run, copy.path)
    values = yaml.safe_load(copy.config.read_text())
    copy.config.write_text(yaml.safe_dump(values | {"model": values["model"] | model}))
    os.utime(copy.last, (1e9 - age, 1e9 - age))


def test_of_the_gpt_runs_the_newest_is_taken_that_can_do_what_is_asked(
    gpt_run: Path, unconditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put_run(gpt_run, "labels", 50)
    put_run(unconditional, "plain", 40)
    put_run(gpt_run, "text", 30, condition="text")
    put_run(gpt_run, "keys", 20, latent_stride=4)
    put_run(gpt_run, "infill", 10, infill=True)
    put_run(gpt_run, "masked", 5, n_unmasked=4)

    def taken(make: Any, **sections: Any) -> str:
        config = make(None, Path("out"), **sections)
        return newest_gpt_for(config).name

    assert taken(short_config) == taken(long_config) == "plain"
    assert taken(short_config, condition={"label": "square"}) == "labels"
    assert taken(short_config, condition={"text": "a star"}) == "text"
    assert taken(short_config, condition={"class_cond": True}) == "labels"
    assert taken(long_config, window={"infill_gpt": Path("runs/infill")}) == "keys"
    with pytest.raises(CheckpointError) as caught:
        taken(short_config, condition={"label": "crane"})
    assert caught.value.message == (
        "--gpt is not given, and no GPT run in runs can do this: runs/masked fills in between "
        "frames that are given; runs/infill fills in between frames that are given; runs/keys "
        "writes key frames only; runs/text is not conditioned on label; runs/plain is not "
        "conditioned on label; runs/labels does not know class crane"
    )
    (tmp_path / "runs" / "plain" / "config.yaml").write_text("a: b: c")
    notes = Notes()
    sample = {"gpt": None, "samples": 1}
    module.short(short_config(None, tmp_path / "out", sample=sample), notes)
    assert notes.notes[:2] == [
        "passed over newer GPT runs: runs/masked fills in between frames that are given; "
        "runs/infill fills in between frames that are given; runs/keys writes key frames only; "
        "runs/text is conditioned on text, and nothing says what to show; runs/plain "
        "has settings that cannot be read",
        "sampling from runs/labels, the newest GPT run that can do this",
    ]


def test_samples_without_a_name_are_called_after_their_gpt(
    gpt_run: Path, unconditional: Path, tmp_path: Path
) -> None:
    config = short_config(gpt_run, tmp_path, sample={"samples": 1})
    assert module.short(config).folder.name == "gpt-short-k2048-p0.92-t1-s0"
    config = short_config(unconditional, tmp_path, sample={"samples": 1})
    assert module.short(config).folder.name == "unconditional-short-k2048-p0.92-t1-s0"
    file = RunFolder(gpt_run).last
    config = long_config(file, tmp_path, sample={"samples": 1})
    assert module.long(config).folder.name == "gpt-last-long-5-k2048-p0.92-t1-s0"


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"condition": {"label": "star", "guidance": 3}}, "5-star-g3"),
        ({"condition": {"text": "A red circle, big!"}}, "5-A-red-circle-big"),
        ({"condition": {"text": "a " * 20 + "left"}}, "5-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-a-50fe27"),
        ({"condition": {"text": "ein grüner Kreis 圆"}}, "5-ein-grüner-Kreis-圆"),
        ({"condition": {"text": "★"}}, "5-c0b809"),
        ({"condition": {"texts": "lists/../texts.txt"}}, "5-texts"),
        ({"condition": {"audio": "syn/star/002.mp4"}}, "5-star-002"),
        (
            {
                "given": {"context": "syn/star/002.mp4", "context_frames": 4},
                "window": {"frames": 9},
            },
            "f9-star-002-c4",
        ),
        ({"window": {"length": 7, "temporal_sample_pos": 2}}, "7-pos2"),
    ],
)
def test_samples_without_a_name_are_called_after_what_was_asked_for(
    sections: dict[str, Any], part: str, tmp_path: Path
) -> None:
    config = long_config(None, tmp_path, **sections)
    name = free_folder(config, "long", Path("by")).name
    assert name == f"by-long-{part}-k2048-p0.92-t1-s0"


def test_the_name_of_a_folder_of_samples_fits_a_disk(tmp_path: Path) -> None:
    said = {"label": "圆" * 99, "text": "圆" * 99, "audio": Path("圆" * 70)}
    config = long_config(None, tmp_path, condition=said, given={"context": Path("圆" * 70)})
    free_folder(config, "long", Path("by")).mkdir()


def test_a_comparison_that_cannot_be_made_is_an_error_before_sampling(
    gpt_run: Path, data: Path, tmp_path: Path
) -> None:
    def refused(kind: Any, config: Any, says: str) -> str:
        with pytest.raises((ConfigError, DataError, CheckpointError), match=says) as caught:
            kind(config)
        assert not (tmp_path / "out").exists()
        return caught.value.hint

    out = tmp_path / "out"
    compare = {"compute_fvd": True}
    with_data = compare | {"data": data}
    refused(module.short, short_config(gpt_run, out, real=with_data), "at least 9 frames.*have 4")
    refused(
        module.long,
        long_config(gpt_run, out, real=with_data, window={"length": 16, "frames": 8}),
        "have 8",
    )
    assert "--data" in refused(module.long, long_config(gpt_run, out, real=compare), "real videos")
    missing = compare | {"data": tmp_path / "nowhere"}
    refused(module.long, long_config(gpt_run, out, real=missing), "nowhere")
    hint = refused(module.long, long_config(gpt_run, out, real=with_data), "missing")
    assert "tats weights fetch i3d" in hint


def test_no_folder_is_made_for_a_device_that_is_not_there(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError):
        module.short(short_config(gpt_run, tmp_path / "out", compute={"device": "cuda"}))
    assert not (tmp_path / "out").exists()


def test_the_grid_shows_the_beginning_of_long_samples(
    gpt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRID_FRAMES", 6)
    monkeypatch.setattr(module, "GRID_SAMPLES", 2)
    result = module.long(long_config(gpt_run, tmp_path))
    assert (result.samples, result.frames) == (3, 10)
    assert frames_of(result.grid).shape == (6, 64, 2 * 64 + 2, 3)
    assert len(frames_of(result.folder / "sample-0002.mp4")) == 10


@pytest.mark.parametrize(("given", "stride"), [({}, 2), ({"sample_every_n_frames": 3}, 3)])
def test_samples_are_compared_with_real_videos_at_the_speed_of_training(
    gpt_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: dict[str, int], stride: int,
) -> None:  # fmt: skip
    trained = read_gpt(gpt_run)
    clip = trained.vqgan.clip.model_copy(update={"frame_rate": 20.0, "sample_every_n_frames": 2})
    faster = replace(trained, vqgan=replace(trained.vqgan, clip=clip))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("tatscli.app.sampler.read_gpt", lambda *_: faster)
    monkeypatch.setattr(module.weights, "locate", lambda *_: None)
    monkeypatch.setattr(module, "evaluate_fvd", lambda *_, **settings: asked.append(settings))
    real = {"compute_fvd": True, "data": data} | given
    module.long(long_config(gpt_run, tmp_path, real=real))
    assert [(a["real_rate"], a["real_stride"]) for a in asked] == [(20.0, stride)]
