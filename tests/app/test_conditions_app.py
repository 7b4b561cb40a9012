"""Conditions from data to samples: class, caption and sound, each alone and together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tiny_app import (
    Notes,
    encode_config,
    gpt_config,
    long_config,
    short_config,
    vqgan_config,
)

from tatscli.app import sample as module
from tatscli.app.asked import SoundFile
from tatscli.app.encode import encode
from tatscli.app.recognise import judge_classes
from tatscli.app.reporting import Silent
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.app.training_data import gpt_material
from tatscli.config.evaluate import ClassesConfig
from tatscli.core.checkpoint import read_gpt, read_vqgan
from tatscli.core.data.clips import Wanted
from tatscli.core.data.sound import (
    COLUMNS,
    SOUND_RATE,
    Track,
    has_sound,
    read_sound,
    silence,
    sound_span,
)
from tatscli.core.data.text import train_tokenizer
from tatscli.core.data.tokens import SOUND_FILE, TokenDataset
from tatscli.core.data.video import probe, read_frames, write_video
from tatscli.errors import CheckpointError, ConfigError, DataError

ALL = "label+text+sound"


@pytest.fixture(scope="module")
def sound_run(shared: Path, data: Path) -> Path:
    """A VQGAN of sound, grid 2 x 8 x 4 for a clip of 4 frames."""
    config = vqgan_config(
        data, shared / "sound",
        data={"input": "sound"}, model={"downsample": (2, 8, 4), "image_channels": 1},
    )  # fmt: skip
    return train_vqgan(config).run


@pytest.fixture(scope="module")
def heard_tokens(shared: Path, data: Path, vqgan_run: Path, sound_run: Path) -> Path:
    """The dataset, encoded with its sound."""
    config = encode_config(data, shared / "heard", vqgan_run, encode={"sound_vqgan": sound_run})
    return encode(config).folder


@pytest.fixture(scope="module")
def every_run(shared: Path, heard_tokens: Path) -> Path:
    """A GPT that is conditioned on everything."""
    return train_gpt(gpt_config(heard_tokens, shared / "every", model={"condition": ALL})).run


@pytest.fixture(scope="module")
def text_run(shared: Path, tokens: Path) -> Path:
    """A GPT that is conditioned on captions and cannot do without."""
    model = {"condition": "text", "condition_dropout": 0.0}
    return train_gpt(gpt_config(tokens, shared / "text", model=model)).run


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """Three seconds of a tone that rises, in a video file of its own."""
    times = np.arange(3 * SOUND_RATE) / SOUND_RATE
    samples = 0.5 * np.sin(2 * np.pi * (300 + 400 * times) * times)
    frames = np.zeros((24, 16, 16, 3), np.uint8)
    track = Track(samples[None].astype(np.float32), SOUND_RATE)
    write_video(tmp_path / "tone.mp4", frames, 8, sound=track)
    return tmp_path / "tone.mp4"


def listing(folder: Path) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())["samples"]
    return samples


def test_a_gpt_that_hears_and_reads_keeps_all_that_it_needs(
    every_run: Path, heard_tokens: Path, sound_run: Path
) -> None:
    trained = read_gpt(every_run)
    parts = {part.kind: part for part in trained.model.config.condition.parts}
    assert list(parts) == ["label", "text", "sound"]
    assert [part.dropout for part in parts.values()] == [0.1] * 3
    assert trained.classes == ("circle", "square")
    assert trained.text is not None
    assert (parts["text"].tokens, parts["text"].ids) == (
        trained.text.tokens,
        trained.text.vocabulary,
    )
    assert trained.sound is not None
    assert trained.sound.model.fingerprint() == read_vqgan(sound_run).model.fingerprint()
    assert parts["sound"].tokens == 2 * 8 * 4
    assert (read_vqgan(heard_tokens / SOUND_FILE).is_of_sound, trained.vqgan.is_of_sound) == (
        True,
        False,
    )


def test_tokens_condition_as_their_videos_do(
    data: Path, vqgan_run: Path, sound_run: Path, heard_tokens: Path, shared: Path
) -> None:
    # One clip a video, so that both have the same clips in the same order.
    folder = shared / "one clip each"
    once = {"data": {"sequence_length": 12}}
    if not folder.exists():
        encode(encode_config(data, folder, vqgan_run, encode={"sound_vqgan": sound_run}, **once))
    options = {"model": {"condition": ALL}, "train": {"val_clips": 9}}
    videos = gpt_config(data, shared / "x", vqgan_run, **options, **once)
    videos = videos.model_copy(update={"sound_vqgan": sound_run})
    from_videos = gpt_material(videos, None, Silent())
    from_tokens = gpt_material(gpt_config(folder, shared / "x", **options), None, Silent())
    assert from_videos.text == from_tokens.text
    assert from_videos.sound is not None
    assert len(from_videos.clips.validation) == len(from_tokens.clips.validation) == 2  # type: ignore[arg-type]
    for number in range(2):
        clip, stored = from_videos.clips.validation[number], from_tokens.clips.validation[number]
        assert clip.label == stored.label
        assert clip.text.tolist() == stored.text.tolist()
        assert len(set(clip.text.tolist())) > 3
        codes = from_videos.sound.sound_codes(clip.sound[None])[0]
        assert codes.tolist() == stored.sound.tolist()


def test_videos_without_sound_are_silent_or_left_out_and_counted(
    data: Path, vqgan_run: Path, sound_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for shape in ("circle", "square"):
            for file in (data / split / shape).glob("*.mp4"):
                frames = read_frames(file, info := probe(file), range(len(info.times)))
                track = Track(read_sound(file, 0, 1.5), SOUND_RATE) if shape == "circle" else None
                write_video(folder / split / shape / file.name, frames, 8, sound=track)
    notes, heard = Notes(), {"sound_vqgan": sound_run}
    result = encode(encode_config(folder, tmp_path / "all", vqgan_run, encode=heard), notes)
    assert "3 of 6 videos have no sound and are taken for silent ones" in notes.notes
    assert (result.training_clips, result.sound_grid) == (12, (2, 8, 4))
    skip = encode_config(
        folder, tmp_path / "some", vqgan_run, encode=heard, data={"missing_sound": "skip"}
    )
    result = encode(skip)
    assert result.training_clips == 6
    assert sorted(result.skipped) == [
        f"{name}.mp4: has no sound"
        for name in ("test/square/000", "train/square/000", "train/square/001")
    ]
    stored = TokenDataset(tmp_path / "all", "train", Wanted(sound=True))
    nothing = read_vqgan(sound_run).sound_codes(silence(4)[None])[0]
    clips = [stored[number] for number in range(len(stored))]
    assert all((clip.sound == nothing).all() for clip in clips if clip.label == 1)
    assert not all((clip.sound == nothing).all() for clip in clips if clip.label == 0)
    with pytest.raises(ConfigError, match="--missing-sound skip, but .* encoded with silence"):
        train_gpt(
            gpt_config(
                tmp_path / "all", tmp_path / "run",
                model={"condition": "sound"}, data={"missing_sound": "skip"},
            )
        )  # fmt: skip
    # The settings that a run saves have the default, too.
    saved = gpt_config(
        tmp_path / "some", tmp_path / "saved", model={"condition": "sound"},
        data={"missing_sound": "silence"}, train={"max_steps": 1},
    )  # fmt: skip
    assert train_gpt(saved).status == "finished"
    with pytest.raises(DataError, match="none of the .* videos .* has sound"):
        train_vqgan(vqgan_config(mute(folder), tmp_path / "run", data={"input": "sound"}))


def mute(folder: Path) -> Path:
    """Removes the videos that have sound."""
    for file in [*folder.rglob("*.mp4")]:
        if has_sound(file):
            file.unlink()
    return folder


def test_a_condition_that_the_data_lacks_is_an_error(
    tokens: Path, tmp_path: Path, vqgan_run: Path, sound_run: Path
) -> None:
    bare = tmp_path / "bare"
    for number in range(3):
        write_video(bare / f"{number}.mp4", np.zeros((12, 16, 16, 3), np.uint8), 8)

    def refused(folder: Path, condition: str, sound: Path | None = None) -> str:
        config = gpt_config(folder, tmp_path / "run", vqgan_run, model={"condition": condition})
        config = config.model_copy(update={"sound_vqgan": sound})
        with pytest.raises((ConfigError, DataError)) as caught:
            train_gpt(config)
        assert not (tmp_path / "run").exists()
        return f"{caught.value.message} {caught.value.hint}"

    assert "has no classes" in refused(bare, "label")
    assert "has no captions write a .txt beside each video" in refused(bare, "text")
    assert "needs a VQGAN of sound" in refused(bare, "sound")
    assert "none of the 3 videos" in refused(bare, "sound", sound_run)
    assert "is a VQGAN of 3 channels; sound has 1" in refused(bare, "sound", vqgan_run)
    assert "holds no sound encode again: tats encode --sound-vqgan" in refused(tokens, "sound")


def test_samples_are_asked_for_what_options_say(
    every_run: Path, tone: Path, tmp_path: Path
) -> None:
    condition = {"label": "square", "text": "a green square moves up", "audio": tone}
    config = short_config(every_run, tmp_path, condition=condition, sample={"samples": 2})
    result = module.short(config)
    for sample in listing(result.folder):
        assert (sample["label"], sample["text"]) == ("square", condition["text"])
        assert sample["audio"] == str(tone)
        heard = read_sound(result.folder / sample["file"], 0, 0.5)[0]
        expected = read_sound(tone, 0, 0.5)[0]
        assert np.corrcoef(heard, expected)[0, 1] > 0.95


def test_texts_are_taken_in_turn_one_sample_each_if_nothing_is_said(
    text_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a red circle moves left\n\n  a green   square moves up \n")
    texts = ["a red circle moves left", "a green square moves up"]
    config = short_config(text_run, tmp_path, condition={"texts": file})
    config = config.model_copy(update={"sample": config.sample.model_copy(update={"samples": 3})})
    result = module.short(config)
    assert [sample["text"] for sample in listing(result.folder)] == [*texts, texts[0]]
    open_number = config.sample.model_validate({"gpt": text_run, "out": tmp_path, "name": "open"})
    result = module.short(config.model_copy(update={"sample": open_number}))
    assert [sample["text"] for sample in listing(result.folder)] == texts


def test_samples_may_be_like_videos_with_or_without_their_frames(
    every_run: Path, data: Path, tmp_path: Path
) -> None:
    like = module.short(
        short_config(every_run, tmp_path, given={"context": data}, sample={"name": "like"})
    )
    after = module.short(
        short_config(
            every_run, tmp_path, given={"context": data, "context_frames": 2},
            sample={"name": "after"},
        )
    )  # fmt: skip
    for result in (like, after):
        samples = listing(result.folder)
        assert [sample["class"] for sample in samples] == ["circle", "square", "circle"]
        for sample in samples:
            video = Path(sample["given"])
            assert sample["label"] == sample["class"]
            assert sample["text"] == video.with_suffix(".txt").read_text().strip()
            assert sample["audio"] == str(video)
            assert has_sound(result.folder / sample["file"])
            assert has_sound(result.folder / sample["truth"])


@pytest.mark.parametrize("part", ["label", "text", "audio"])
def test_each_part_of_the_condition_changes_what_is_sampled(
    every_run: Path, tone: Path, part: str
) -> None:
    asked: dict[str, Any] = {"label": "square", "text": "a red circle moves left", "audio": tone}
    asked["seed"], asked["device"] = 3, "cpu"
    one = module.sample_short(loud(every_run), 3, **asked)
    other = module.sample_short(loud(every_run), 3, **{k: v for k, v in asked.items() if k != part})
    assert torch.equal(one, module.sample_short(loud(every_run), 3, **asked))
    assert not torch.equal(one, other)


def loud(run: Path) -> Path:
    """A copy of a GPT of great weights, which its few steps of training left all but deaf."""
    file = run / "loud.ckpt"
    if not file.exists():
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for key, value in state["state_dict"].items():
            if key.startswith("gpt.") and value.ndim == 2:
                value *= 12
        torch.save(state, file)
    return file


def test_each_window_hears_what_comes_at_its_time(
    every_run: Path, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, heard = SoundFile(tone), []
    whole, later = file.patches(0, 8, 8.0), file.patches(4, 4, 8.0)
    assert (whole[:, 4:] - later).abs().mean() < 0.01 < (whole[:, :4] - later).abs().mean()
    assert torch.equal(SoundFile(tone, 0.5).patches(0, 4, 8.0), later)
    original = SoundFile.patches

    def patches(self: SoundFile, first: int, frames: int, rate: float) -> torch.Tensor:
        heard.append((first, frames, rate))
        return original(self, first, frames, rate)

    monkeypatch.setattr(SoundFile, "patches", patches)
    module.sample_long(every_run, 6, 2, audio=tone, device="cpu")
    # Windows of two latent frames, each of two frames, slide by one.
    assert list(dict.fromkeys(heard)) == [(first, 4, 8.0) for first in (0, 2, 4, 6, 8)]


def test_what_is_asked_for_by_name_goes_before_what_given_videos_show(
    every_run: Path, data: Path, tmp_path: Path
) -> None:
    def sampled(name: str, **condition: Any) -> list[dict[str, Any]]:
        config = short_config(
            every_run, tmp_path, condition=condition, sample={"name": name},
            given={"context": data, "context_frames": 2},
        )  # fmt: skip
        return listing(module.short(config).folder)

    for sample in sampled("text", text="a green square"):
        assert (sample["text"], sample["label"]) == ("a green square", None)
        assert "audio" not in sample
    for sample in sampled("label", label="square"):
        assert sample["label"] == "square"
        assert "text" not in sample


def test_a_file_is_heard_from_its_beginning_whatever_its_clock_says(
    every_run: Path, tone: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late.ts"
    with av.open(str(tone)) as source, av.open(str(late), "w", "mpegts") as target:
        [audio] = source.streams.audio
        copy = target.add_stream_from_template(audio)
        for packet in source.demux(audio):
            if packet.dts is not None:
                packet.stream = copy
                packet.pts, packet.dts = packet.pts + 10 * 16000, packet.dts + 10 * 16000
                target.mux(packet)
    assert 9 < sound_span(late)[0] < 11 < sound_span(late)[1] < 14
    result = module.short(short_config(every_run, tmp_path, condition={"audio": late}))
    heard = read_sound(result.folder / "sample-0000.mp4", 0, 0.5)[0]
    assert np.abs(heard).mean() > 0.1


def test_what_is_left_open_and_sound_that_ends_early_are_said(
    every_run: Path, tone: Path, tmp_path: Path
) -> None:
    def told(name: str, frames: int, **condition: Any) -> list[str]:
        notes = Notes()
        config = long_config(
            every_run, tmp_path, window={"frames": frames}, condition=condition,
            sample={"name": name, "samples": 1},
        )  # fmt: skip
        module.long(config, notes)
        return notes.notes

    assert told("all", 8, label="square", text="a red circle", audio=tone) == []
    [open_parts] = told("label", 8, label="square")
    assert open_parts == "nothing is asked for by sound and text; samples are free there"
    [_, short] = told("short", 32, audio=tone)
    assert short == "nothing is asked for by label and text; samples are free there"
    assert f"{tone} lasts 3.0 s and a sample 4.0 s: silence follows it" in told(
        "early", 32, label="square", text="a red circle", audio=tone
    )


def test_guidance_one_is_the_plain_sampler_and_more_is_not(every_run: Path) -> None:
    plain, one, three = (
        module.sample_short(loud(every_run), 4, label="square", device="cpu", **more)
        for more in ({}, {"guidance": 1.0}, {"guidance": 3.0})
    )
    assert torch.equal(plain, one)
    assert not torch.equal(plain, three)


def refused(config: Any, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        module.short(config)
    assert not [*config.sample.out.glob("short*")]
    return f"{caught.value.message}: {caught.value.hint}"  # type: ignore[attr-defined]


def test_what_a_model_does_not_know_is_refused_with_what_it_knows(
    every_run: Path, text_run: Path, gpt_run: Path, unconditional: Path, tmp_path: Path
) -> None:
    def asked(run: Path, **condition: Any) -> Any:
        return short_config(run, tmp_path, condition=condition)

    said = refused(asked(every_run, label="squares"))
    assert "knows 2 classes, and not this one: it knows circle, square" in said
    assert "--label, but" in refused(asked(text_run, label="square"))
    assert "as condition: label" in refused(asked(gpt_run, text="a red circle"))
    assert "has no condition" in refused(asked(unconditional, audio=Path("x.wav")))
    assert "nothing says what to show: add --text TEXT" in refused(asked(text_run))
    assert "never learnt" in refused(asked(text_run, text="a red circle", guidance=3.0))
    assert "no condition to go beyond" in refused(asked(unconditional, guidance=3.0))
    assert "does not exist" in refused(asked(every_run, audio=Path("nowhere.wav")), DataError)
    mute_file = tmp_path / "mute.mp4"
    write_video(mute_file, np.zeros((8, 16, 16, 3), np.uint8), 8)
    assert "has no sound" in refused(asked(every_run, audio=mute_file), DataError)
    (tmp_path / "none.txt").write_text(" \n\n")
    assert "no text in it" in refused(asked(text_run, texts=tmp_path / "none.txt"), DataError)


def test_another_tokenizer_or_vqgan_of_sound_is_refused_by_fingerprint(
    every_run: Path, heard_tokens: Path, data: Path, sound_run: Path, tmp_path: Path
) -> None:
    trained = read_gpt(every_run)
    assert trained.text is not None
    other = train_tokenizer(["other words altogether"] * 3, 400)
    (tmp_path / "other.json").write_text(other.definition)
    (tmp_path / "same.json").write_text(trained.text.definition)
    config = vqgan_config(
        data, tmp_path / "sound", data={"input": "sound"}, train={"max_steps": 1, "seed": 5},
        model={"downsample": (2, 8, 4), "image_channels": 1},
    )  # fmt: skip
    other_sound = train_vqgan(config).run

    def asked(**checks: Path) -> Any:
        return short_config(every_run, tmp_path, condition={"text": "a red circle", **checks})

    said = refused(asked(tokenizer=tmp_path / "other.json"), CheckpointError)
    assert trained.text.fingerprint in said
    assert other.fingerprint in said
    said = refused(asked(sound_vqgan=other_sound), CheckpointError)
    assert read_vqgan(other_sound).model.fingerprint() in said
    module.short(asked(tokenizer=tmp_path / "same.json", sound_vqgan=sound_run))

    def going_on(**settings: Any) -> Any:
        model = {"tokenizer": settings.pop("tokenizer", None)}
        config = gpt_config(heard_tokens, tmp_path / "init", model=model,
                            train={"init": every_run, "max_steps": 1})  # fmt: skip
        return config.model_copy(update=settings)

    with pytest.raises(CheckpointError, match="reads texts by tokenizer"):
        train_gpt(going_on(tokenizer=tmp_path / "other.json"))
    with pytest.raises(CheckpointError, match="knows sound of VQGAN"):  # as the tokens do
        train_gpt(going_on(sound_vqgan=other_sound))
    kept = read_gpt(train_gpt(going_on()).run)
    assert (kept.text, kept.model.config.condition) == (
        trained.text,
        trained.model.config.condition,
    )


def test_a_text_that_is_too_long_is_cut_with_a_note(text_run: Path, tmp_path: Path) -> None:
    notes, text = Notes(), "a red circle moves left " * 9
    module.short(short_config(text_run, tmp_path, condition={"text": text}), notes)
    tokenizer = read_gpt(text_run).text
    assert tokenizer is not None
    [said] = [warning for warning in notes.warnings if "is cut to the" in warning]
    assert f"{tokenizer.length(text)} tokens is cut to the {tokenizer.tokens}" in said
    assert repr(tokenizer.kept(text)) in said
    with pytest.warns(UserWarning) as caught:
        module.sample_short(text_run, 1, text=text, device="cpu")
    assert [(str(one.message), one.filename) for one in caught] == [(said, __file__)]


def test_an_infilling_gpt_must_have_learnt_what_guidance_needs_as_well(
    tokens: Path, data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    def run(name: str, length: int, **model: Any) -> Path:
        config = gpt_config(
            data, tmp_path / name, vqgan_run, data={"sequence_length": length},
            model={"condition": "label", **model}, train={"max_steps": 1},
        )  # fmt: skip
        return train_gpt(config).run

    keys = run("keys", 8, latent_stride=2)
    infill = run("infill", 6, infill=True, condition_dropout=0.0)
    config = long_config(
        keys, tmp_path / "out", window={"length": 5, "infill_gpt": infill},
        condition={"guidance": 2.0},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the GPT of --infill-gpt never learnt"):
        module.long(config)


def test_a_run_that_goes_on_keeps_its_sound_and_its_captions(
    data: Path, vqgan_run: Path, sound_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)

    def config(steps: int, sound: Path) -> Any:
        config = gpt_config(
            folder, tmp_path / "run", vqgan_run, model={"condition": "text+sound"},
            train={"max_steps": steps},
        )  # fmt: skip
        return config.model_copy(update={"sound_vqgan": sound})

    run = train_gpt(config(1, sound_run)).run
    with pytest.raises(ConfigError, match="sound_vqgan: .* -> elsewhere"):
        train_gpt(config(2, Path("elsewhere")), run)
    caption = folder / "train" / "circle" / "000.txt"
    before = caption.read_text()
    caption.write_text("something else")
    with pytest.raises(DataError, match="is not what .* was trained on"):
        train_gpt(config(2, sound_run), run)
    caption.write_text(before)
    assert train_gpt(config(2, sound_run), run).steps == 2


def test_a_run_with_text_goes_on_exactly_and_needs_no_tokenizer_file(
    heard_tokens: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer(["a red circle moves", "a green square"], 400).definition)
    model = {"condition": ALL, "tokenizer": file}

    def config(name: str, steps: int) -> Any:
        return gpt_config(
            heard_tokens, tmp_path / name, model=model, train={"max_steps": steps},
            optim={"lr_schedule": "constant"},
        )  # fmt: skip

    whole = train_gpt(config("whole", 4))
    begun = train_gpt(config("begun", 2))
    file.unlink()
    resumed = train_gpt(config("begun", 4), begun.run)
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole.run, resumed.run)
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_pictures_of_a_vqgan_of_sound_are_spectrograms(sound_run: Path) -> None:
    [first, *_] = sorted((sound_run / "samples").glob("reconstructions-*.png"))
    picture = read_frames(first.parent, probe(first.parent), [0])[0]
    assert picture.std() > 10  # tones, not an even field
    assert picture.shape[1] >= 4 * COLUMNS


COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
TONES = {"red": 500, "blue": 4000}


def colours(folder: Path) -> Path:
    """Videos of one even colour each: its name is class and caption, its tone the sound."""
    times = np.arange(SOUND_RATE) / SOUND_RATE
    for split, count in (("train", 6), ("test", 2)):
        for name, colour in COLOURS.items():
            for number in range(count):
                path = folder / split / name / f"{number}.mp4"
                frames = np.empty((8, 16, 16, 3), np.uint8)
                frames[:] = np.array(colour) - 5 * number
                tone = 0.5 * np.sin(2 * np.pi * TONES[name] * times)
                track = Track(tone[None].astype(np.float32), SOUND_RATE)
                write_video(path, frames, 8, sound=track)
                path.with_suffix(".txt").write_text(f"everything is {name}")
    return folder


def test_label_caption_and_sound_each_decide_what_is_sampled(tmp_path: Path) -> None:
    # The small form of what the README does with shapes: trained in seconds, on two colours.
    folder, loop = colours(tmp_path / "colours"), {"val_check_interval": "99", "grid_every": 99}
    model = {"random_restart": True}
    fast = {"learning_rate": 5e-3}
    frames = train_vqgan(
        vqgan_config(
            folder, tmp_path / "vqgan", model=model, optim=fast,
            train=loop | {"max_steps": 200, "batch_size": 4},
        )
    ).run  # fmt: skip
    sound = train_vqgan(
        vqgan_config(
            folder, tmp_path / "sound", data={"input": "sound"},
            model=model | {"downsample": (4, 16, 16), "image_channels": 1}, optim=fast,
            train=loop | {"max_steps": 30},
        )
    ).run  # fmt: skip
    tokens = encode(
        encode_config(folder, tmp_path / "tokens", frames, encode={"sound_vqgan": sound})
    ).folder
    for kind in ("label", "text", "sound"):
        run = train_gpt(
            gpt_config(
                tokens, tmp_path / f"gpt of {kind}",
                model={"condition": kind, "width": 24}, optim={"learning_rate": 1e-2},
                train=loop | {"max_steps": 120, "batch_size": 8},
            )
        ).run  # fmt: skip
        for guidance in (1.0, 2.0):
            right = 0
            for name, colour in COLOURS.items():
                asked: dict[str, Any] = {
                    "label": {"label": name},
                    "text": {"text": f"everything is {name}"},
                    "sound": {"audio": folder / "test" / name / "0.mp4"},
                }[kind]
                made = module.sample_short(run, 16, guidance=guidance, device="cpu", **asked)
                mean = made.mean((2, 3, 4)) + 0.5
                right += int(((mean[:, 0] > mean[:, 2]) == (colour[0] > colour[2])).sum())
            assert right >= 0.9 * 32, (kind, guidance)


def test_classes_of_samples_are_read_by_a_probe_that_real_clips_vouch_for(
    tmp_path: Path, tats: Callable[..., Any]
) -> None:
    data, fake = tmp_path / "data", tmp_path / "fake"
    halves = {"left": np.s_[:, :, :8], "top": np.s_[:, :8]}
    for name, half in halves.items():
        frames = np.zeros((4, 16, 16, 3), np.uint8)
        frames[half] = 200
        for number, split in enumerate(["train"] * 4 + ["test"] * 2):
            write_video(data / split / name / f"{number}.mp4", frames + np.uint8(number), 8)
        write_video(fake / f"{name}.mp4", frames, 8)

    def asked(*entries: dict[str, str]) -> None:
        listed = [{"index": n, "file": f"{name}.mp4"} | e
                  for n, (name, e) in enumerate(zip(halves, entries, strict=True))]  # fmt: skip
        (fake / "samples.json").write_text(json.dumps({"samples": listed}))

    asked({"class": "top", "label": "left"}, {"text": "The TOP is bright", "class": "left"})
    result = judge_classes(data, fake, ClassesConfig(frames=4))
    assert (result.samples, result.chance, result.real_clips) == (2, 0.5, 4)
    assert result.right == result.probe_on_real == 1
    asked({"label": "top"}, {"label": "top"})
    done = tats("eval", "classes", data, fake, "--frames", "4", "--json")
    assert (done.code, json.loads(done.out)["right"]) == (0, 0.5)
    assert json.loads(done.out)["right_by_class"] == {"top": 0.5}


def test_what_was_asked_for_no_class_is_not_judged(
    text_run: Path, data: Path, tmp_path: Path
) -> None:
    both = {"text": "a circle and a square"}
    result = module.short(short_config(text_run, tmp_path, condition=both))
    with pytest.raises(DataError, match="asked for no class of circle, square"):
        judge_classes(data, result.folder, ClassesConfig(frames=2))
    with pytest.raises(DataError, match=r"samples\.json"):
        judge_classes(data, data, ClassesConfig(frames=2))
    with pytest.raises(DataError) as caught:
        judge_classes(data, result.folder, ClassesConfig(frames=40))
    assert "--frames 12 is the longest" in caught.value.hint
    outside = [{"index": 0, "file": "../outside.mp4"}]
    (result.folder / "samples.json").write_text(json.dumps({"samples": outside}))
    with pytest.raises(DataError, match="outside its folder"):
        judge_classes(data, result.folder, ClassesConfig(frames=2))


def test_a_window_takes_the_sound_of_its_time_in_hierarchical_samples(
    data: Path, vqgan_run: Path, sound_run: Path, tmp_path: Path, tone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def run(name: str, length: int, **model: Any) -> Path:
        config = gpt_config(
            data, tmp_path / name, vqgan_run, data={"sequence_length": length},
            model={"condition": "sound", **model},
        )  # fmt: skip
        return train_gpt(config.model_copy(update={"sound_vqgan": sound_run})).run

    keys, infill = run("keys", 8, latent_stride=2), run("infill", 6, infill=True)
    heard: list[tuple[int, int]] = []
    original = SoundFile.patches

    def patches(self: SoundFile, first: int, frames: int, rate: float) -> torch.Tensor:
        heard.append((first, frames))
        return original(self, first, frames, rate)

    monkeypatch.setattr(SoundFile, "patches", patches)
    config = long_config(
        keys, tmp_path / "out", window={"length": 7, "infill_gpt": infill},
        condition={"audio": tone, "guidance": 2.0},
    )  # fmt: skip
    result = module.long(config)
    # A batch of two and one of one: key frames every 4 frames, in windows of two that slide by one;
    # then the three gaps between them.
    batch = [(0, 8), (4, 8), (8, 8), (0, 6), (4, 6), (8, 6)]
    assert heard == 2 * batch
    assert (result.samples, result.frames) == (3, 14)
    assert len(probe(result.folder / "sample-0000.mp4").times) == 14
