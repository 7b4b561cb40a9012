"""Samples that go on from given frames, and hierarchical ones, into folders and as tensors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import Notes, gpt_config, long_config, short_config

import tatscli
from tatscli.app import sample as module
from tatscli.app.sample import read_samples
from tatscli.app.train import train_gpt
from tatscli.core.checkpoint import read_gpt
from tatscli.core.data.index import is_dataset
from tatscli.core.data.video import probe, read_frames, to_float, to_uint8, write_png, write_video
from tatscli.errors import CheckpointError, ConfigError, DataError

LABEL = {"condition": "label"}


@pytest.fixture(scope="module")
def key_run(shared: Path, data: Path, vqgan_run: Path) -> Path:
    """A GPT of every second latent frame, in windows of two."""
    config = gpt_config(
        data, shared / "keys", vqgan_run,
        data={"sequence_length": 8}, model=LABEL | {"latent_stride": 2},
    )  # fmt: skip
    return train_gpt(config).run


@pytest.fixture(scope="module")
def infill_run(shared: Path, data: Path, vqgan_run: Path) -> Path:
    """A GPT of the latent frame between two others."""
    config = gpt_config(
        data, shared / "infill", vqgan_run,
        data={"sequence_length": 6}, model=LABEL | {"infill": True},
    )  # fmt: skip
    return train_gpt(config).run


@pytest.fixture(scope="module")
def varied(gpt_run: Path, data: Path, shared: Path) -> Path:
    """The GPT over a VQGAN whose codes are latents of a video, so that clips differ in codes."""
    vqgan = read_gpt(gpt_run).vqgan.model
    with torch.no_grad():
        latents = vqgan.latents(to_float(frames_of(a_video(data), size=8))[None])
    checkpoint = torch.load(gpt_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["vqgan.codebook.embeddings"] = latents.flatten(2)[0].T[:16].clone()
    file = shared / "varied.ckpt"
    torch.save(checkpoint, file)
    return file


def frames_of(path: Path, size: int | None = None) -> np.ndarray[Any, Any]:
    info = probe(path)
    return read_frames(path, info, range(len(info.times)), size)


def a_video(data: Path, kind: str = "circle") -> Path:
    return next(iter(sorted((data / "test" / kind).iterdir())))


def test_a_hierarchical_model_knows_what_it_is(key_run: Path, infill_run: Path) -> None:
    keys, infill = read_gpt(key_run).model.config, read_gpt(infill_run).model.config
    assert (keys.grid, keys.latent_stride, keys.infill) == ((2, 2, 2), 2, False)
    assert (infill.grid, infill.latent_stride, infill.infill) == ((3, 2, 2), 1, True)


@pytest.mark.parametrize("length", [3, 5, 8])
def test_hierarchical_samples_fill_a_folder(
    key_run: Path, infill_run: Path, tmp_path: Path, length: int
) -> None:
    result = module.long(
        long_config(
            key_run, tmp_path, sample={"name": "h", "lossless": True},
            window={"length": length, "infill_gpt": infill_run},
            filter={"top_k_init": 3, "top_p_init": 0.5},
        )
    )  # fmt: skip
    assert (result.samples, result.frames) == (3, 2 * length)
    settings = json.loads((result.folder / "samples.json").read_text())["settings"]
    assert (settings["infill_step"], settings["top_k_init"]) == (3, 3)
    videos, labels = read_samples(result.folder)
    assert videos.shape == (3, 3, 2 * length, 8, 8)
    assert labels == ["circle", "square", "circle"]


def test_hierarchical_samples_do_not_depend_on_the_batch(key_run: Path, infill_run: Path) -> None:
    def sampled(batch: int) -> torch.Tensor:
        return tatscli.sample_long(
            key_run, 7, 5, infill_gpt=infill_run, batch_size=batch, device="cpu"
        )

    whole = sampled(5)
    assert whole.shape == (5, 3, 14, 8, 8)
    torch.testing.assert_close(sampled(2), whole, atol=1e-5, rtol=0)


def test_models_that_do_not_go_together_are_errors(
    key_run: Path, infill_run: Path, gpt_run: Path, other_vqgan_run: Path, data: Path,
    shared: Path, tmp_path: Path,
) -> None:  # fmt: skip
    def refused(gpt: Path, infill: Path | None, says: str) -> str:
        config = long_config(gpt, tmp_path / "out", window={"infill_gpt": infill})
        with pytest.raises((ConfigError, CheckpointError), match=says) as caught:
            module.long(config)
        assert not (tmp_path / "out").exists()
        return caught.value.hint

    assert "--infill-gpt" in refused(key_run, None, "writes key frames only, every 2")
    with pytest.raises(ConfigError, match="writes key frames only"):
        module.short(short_config(key_run, tmp_path / "out"))
    assert "leave the option out" in refused(gpt_run, infill_run, "nothing to fill in")
    assert "--infill" in refused(key_run, gpt_run, "does not fill in")
    refused(infill_run, None, "cannot begin a video")
    wide = gpt_config(
        data, shared / "wide", read_gpt_vqgan(key_run),
        data={"sequence_length": 8}, model=LABEL | {"infill": True}, train={"max_steps": 1},
    )  # fmt: skip
    hint = refused(key_run, train_gpt(wide).run, "windows of 4 x 2 x 2, .* 3 x 2 x 2 are needed")
    assert hint.endswith(f"--vqgan {key_run} --infill --sequence-length 6 --condition label")
    other = gpt_config(
        data, shared / "other_infill", other_vqgan_run,
        data={"sequence_length": 6}, model=LABEL | {"infill": True}, train={"max_steps": 1},
    )  # fmt: skip
    refused(key_run, train_gpt(other).run, "writes codes of VQGAN .* those of VQGAN")
    assert "from 1 to 1" in refused_context(key_run, infill_run, tmp_path)


def read_gpt_vqgan(run: Path) -> Path:
    """The checkpoint of a GPT, which is also one of its VQGAN."""
    return run / "checkpoints" / "last.ckpt"


def refused_context(key_run: Path, infill_run: Path, out: Path) -> str:
    window = {"infill_gpt": infill_run, "temporal_sample_pos": 2, "length": 8}
    with pytest.raises(ConfigError, match="window of 2 key frames") as caught:
        module.long(long_config(key_run, out, window=window))
    return caught.value.hint


@pytest.mark.parametrize("hierarchical", [False, True])
def test_samples_go_on_from_a_video_beside_the_truth(
    gpt_run: Path, key_run: Path, infill_run: Path, data: Path, tmp_path: Path, hierarchical: bool
) -> None:
    video = a_video(data, "square")
    given = {"context": video, "context_frames": 4}
    window = {"length": 5} | ({"infill_gpt": infill_run} if hierarchical else {})
    run = key_run if hierarchical else gpt_run
    result = module.long(
        long_config(run, tmp_path, given=given, window=window, sample={"lossless": True})
    )
    listing = json.loads((result.folder / "samples.json").read_text())
    assert listing["settings"]["context_frames"] == 4
    # The class is that of the video, not the next one in turn.
    assert [s["label"] for s in listing["samples"]] == ["square"] * 3
    assert all(s["given"] == str(video) for s in listing["samples"])
    samples, _ = read_samples(result.folder)
    assert samples.shape[2] == 10
    truth = frames_of(result.folder / "truth" / "sample-0001.mp4")
    assert truth.shape == (10, 8, 8, 3)
    assert np.abs(truth.astype(int) - frames_of(video, size=8)[:10]).mean() < 12
    grid = frames_of(result.grid)
    assert grid.shape[0] == 10
    assert grid.shape[2] == 2 * (2 * 64) + 2  # two pairs of truth and sample in a row


def test_short_samples_go_on_from_a_folder_of_videos(
    gpt_run: Path, data: Path, tmp_path: Path
) -> None:
    result = module.short(
        short_config(gpt_run, tmp_path, given={"context": data, "context_frames": 2})
    )
    listing = json.loads((result.folder / "samples.json").read_text())["samples"]
    # Two test videos, taken in turn; never a training video.
    assert [Path(s["given"]).parent for s in listing] == [
        data / "test" / "circle", data / "test" / "square", data / "test" / "circle",
    ]  # fmt: skip
    assert [s["label"] for s in listing] == ["circle", "square", "circle"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, kind in enumerate(("circle", "square")):
        shutil.copy(a_video(data, kind), flat / f"{number}.mp4")
    result = module.short(
        short_config(
            gpt_run, tmp_path, given={"context": flat, "context_frames": 2},
            sample={"name": "from-flat", "samples": 2},
        )
    )  # fmt: skip
    listing = json.loads((result.folder / "samples.json").read_text())["samples"]
    assert [Path(s["given"]).name for s in listing] == ["0.mp4", "1.mp4"]


def test_given_frames_are_encoded_without_what_follows(varied: Path, data: Path) -> None:
    video = to_float(frames_of(a_video(data), size=8))[None].expand(2, -1, -1, -1, -1)
    changed = video.clone()
    changed[:, :, 2:] = -changed[:, :, 2:]
    assert not torch.equal(video[:, :, 2:], changed[:, :, 2:])

    def predicted(given: torch.Tensor) -> torch.Tensor:
        return tatscli.sample_short(varied, 2, given=given, device="cpu")

    # Encoded with what follows, the same frames have other codes.
    encode = read_gpt(varied).vqgan.model.encode
    assert not torch.equal(encode(video[:, :, :4])[:, :1], encode(changed[:, :, :4])[:, :1])
    # What is given decides.
    assert not torch.equal(predicted(video[:, :, :2]), predicted(changed[:, :, 2:4]))


def test_codes_of_the_context_are_kept_and_those_of_training_follow(
    varied: Path, data: Path
) -> None:
    trained = read_gpt(varied)
    video = to_float(frames_of(a_video(data), size=8))[None, :, :2]
    made = tatscli.sample_short(varied, 1, given=video, temperature=0.0, device="cpu")
    codes = trained.vqgan.model.encode(video).flatten(1)
    condition = tatscli.condition_ids(trained.model.config.condition, 1, torch.zeros(1).long())
    for _ in range(4):
        with torch.no_grad():
            padded = torch.cat([codes, codes.new_zeros(1, 1)], 1)
            logits = trained.model(condition, padded)[:, -1, trained.model.config.condition.ids :]
        codes = torch.cat([codes, logits.argmax(-1, keepdim=True)], 1)
    expected = trained.vqgan.model.decode(codes.view(1, 2, 2, 2)).clamp(-0.5, 0.5)
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (3, "--context-frames 3 is not a multiple of 2"),
        (4, "--context-frames 4 leaves nothing to sample: samples have 4 frames"),
    ],
)
def test_given_frames_that_cannot_be_are_errors_with_both_numbers(
    gpt_run: Path, data: Path, tmp_path: Path, frames: int, says: str
) -> None:
    given = {"context": a_video(data), "context_frames": frames}
    with pytest.raises(ConfigError, match=says):
        module.short(short_config(gpt_run, tmp_path, given=given))
    with pytest.raises(ConfigError, match=says.replace("--context-frames", "given: T")):
        tatscli.sample_short(gpt_run, 1, given=torch.zeros(1, 3, frames, 8, 8), device="cpu")
    assert not list(tmp_path.iterdir())


def test_videos_too_short_to_be_given_are_named_or_passed_over(
    gpt_run: Path, data: Path, tmp_path: Path
) -> None:
    def config(context: Path, frames: int = 14) -> Any:
        given = {"context": context, "context_frames": frames}
        return long_config(gpt_run, tmp_path / "out", given=given, window={"length": 9})

    with pytest.raises(DataError, match="needs a video of 14 frames; the longest has 12"):
        module.long(config(a_video(data)))
    with pytest.raises(DataError, match="nowhere does not exist"):
        module.long(config(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()
    notes = Notes()
    result = module.long(config(data, 12), notes)
    # The truth ends before the sample: grey follows in the grid.
    assert len(frames_of(result.folder / "truth" / "sample-0000.mp4")) == 12
    last = frames_of(result.grid)[-1]
    assert np.abs(last[:64, :64].astype(int) - 127).max() < 8


def steps_of(clip: np.ndarray[Any, Any]) -> list[int]:
    """Of frames that are each of one grey, eight values apart, their numbers."""
    return [round(frame.mean() / 8) for frame in clip]


@pytest.mark.parametrize(("rate", "told"), [(16.0, True), (8.0, False), (8.01, False)])
def test_a_context_of_another_frame_rate_is_read_at_that_of_the_samples(
    gpt_run: Path, tmp_path: Path, rate: float, told: bool
) -> None:
    grey = np.arange(24, dtype=np.uint8) * 8
    video = np.broadcast_to(grey[:, None, None, None], (24, 16, 16, 3))
    file = tmp_path / "given" / "a.mp4"
    write_video(file, video, rate)
    images = tmp_path / "images"
    for number, frame in enumerate(video):
        write_png(images / f"{number}.png", np.ascontiguousarray(frame))

    def truth(context: Path, notes: Notes) -> list[int]:
        result = module.long(
            long_config(
                gpt_run, tmp_path / "out", given={"context": context, "context_frames": 4},
                sample={"name": context.name, "samples": 1}, condition={"label": "circle"},
            ),
            notes,
        )  # fmt: skip
        return steps_of(frames_of(result.folder / "truth" / "sample-0000.mp4"))

    notes = Notes()
    assert truth(file, notes) == [*range(0, 20, 2 if told else 1)][:10]
    said = f"{file} has 16 frames per second: it is read at 8, the rate of the model"
    assert notes.notes == [said] * told
    # Images have no rate: all are taken.
    assert truth(images, notes) == [*range(10)]
    assert notes.notes == [said] * told


def test_a_context_that_is_too_short_at_the_rate_of_the_samples_says_at_which(
    gpt_run: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((7, 16, 16, 3), np.uint8), 16)
    given = {"context": tmp_path / "a.mp4", "context_frames": 6}
    with pytest.raises(DataError, match="needs a video of 6 frames; the longest has 4 at 8 fps"):
        module.long(long_config(gpt_run, tmp_path / "out", given=given))


def test_parts_of_one_video_are_listed_with_where_they_begin(
    gpt_run: Path, data: Path, tmp_path: Path
) -> None:
    video, manifest = a_video(data), tmp_path / "parts.csv"
    rows = [f"{video},{split}" for split in ("train,0,0.5", "val,0,0.75", "val,0.75,", "val,0,")]
    manifest.write_text("\n".join(["path,split,start,end", *rows]))
    given = {"context": manifest, "context_frames": 2}
    result = module.long(long_config(gpt_run, tmp_path, given=given, condition={"label": "circle"}))
    listing = json.loads((result.folder / "samples.json").read_text())["samples"]
    assert [s["given"] for s in listing] == [str(video)] * 3
    assert {s.get("given_start", "whole") for s in listing} == {0.0, 0.75, "whole"}


def test_pictures_beside_videos_are_no_video_of_their_own(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for number in range(2):
        write_video(videos / f"{number}.mkv", np.zeros((4, 8, 8, 3), np.uint8), 8)
    for number in range(9):
        write_png(videos / f"thumbnail-{number}.png", np.zeros((8, 8, 3), np.uint8))
    assert is_dataset(videos)
    (videos / "0.mkv").unlink()
    (videos / "1.mkv").rename(videos / "._1.mkv")  # hidden, as macOS leaves such files
    assert not is_dataset(videos)


def test_context_must_give_something(unconditional: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--context-frames needs --context VIDEO"):
        short_config(unconditional, tmp_path, given={"context_frames": 2})
    with pytest.raises(ConfigError, match="no condition that a video could give"):
        module.short(short_config(unconditional, tmp_path, given={"context": data}))


def test_published_ids_of_the_condition_become_code_zero(gpt_run: Path, tmp_path: Path) -> None:
    trained = read_gpt(gpt_run)
    ids = trained.model.config.condition.ids
    state = torch.load(gpt_run / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"]["gpt.ln_f.bias"].fill_(1.0)
    state["state_dict"]["gpt.head.weight"][:ids] = 100.0
    file = tmp_path / "adversarial.ckpt"
    torch.save(state, file)
    zero = trained.vqgan.model.decode(torch.zeros(1, 2, 2, 2, dtype=torch.long))

    def sampled(name: str, condition_ids: str) -> torch.Tensor:
        config = short_config(
            file, tmp_path, sample={"name": name, "lossless": True},
            filter={"condition_ids": condition_ids},
        )  # fmt: skip
        return read_samples(module.short(config).folder)[0]

    published = to_uint8(sampled("published", "sampled"))
    assert (published == to_uint8(zero.clamp(-0.5, 0.5))).all()
    assert not np.array_equal(to_uint8(sampled("masked", "masked")), published)
