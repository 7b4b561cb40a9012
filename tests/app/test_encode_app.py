"""Encoding a dataset, interrupted and continued; decoding it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_app import Notes, broken, encode_config, gpt_config

from tatscli.app import encode as module
from tatscli.app.data import VideoClips, open_videos, synthesise
from tatscli.app.encode import decode, encode
from tatscli.app.reconstruct import evaluate_vqgan
from tatscli.app.reporting import Silent
from tatscli.app.train import train_gpt
from tatscli.config.encode import DecodeConfig
from tatscli.config.evaluate import VQGANEvalConfig
from tatscli.config.synth import SynthConfig
from tatscli.core.checkpoint import read_vqgan
from tatscli.core.data import tokens as token_files
from tatscli.core.data.index import VideoIndex, build_index
from tatscli.core.data.tokens import TokenDataset, TokenWriter, read_manifest
from tatscli.core.data.video import probe, read_frames, to_uint8
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def clips(data: Path, vqgan: Path) -> VideoClips:
    return open_videos(data, read_vqgan(vqgan).clip, Silent())


def test_tokens_are_the_codes_of_every_clip(tokens: Path, data: Path, vqgan_run: Path) -> None:
    model = read_vqgan(vqgan_run).model
    held = TokenDataset(tokens, "train")
    expected = clips(data, vqgan_run).every("train", 4)
    assert len(held) == len(expected) == 12  # 4 videos of 12 frames
    for number in range(len(held)):
        clip = expected[number]
        assert torch.equal(held[number].tokens, model.encode(clip.video[None])[0])
        assert held[number].label == clip.label
    manifest = read_manifest(tokens)
    assert manifest.fingerprint == model.fingerprint()
    assert manifest.classes == ("circle", "square")
    assert read_vqgan(tokens).model.fingerprint() == model.fingerprint()


def test_the_result_counts(data: Path, vqgan_run: Path, tmp_path: Path) -> None:
    config = encode_config(data, tmp_path / "t", vqgan_run, encode={"stride": 2})
    result = encode(config)
    assert (result.training_clips, result.validation_clips) == (4 * 5, 2 * 5)
    assert (result.grid, result.codes, result.skipped) == ((2, 2, 2), 16, [])
    held = TokenDataset(tmp_path / "t", "train")
    used = {int(c) for n in range(len(held)) for c in held[n].tokens.flatten()}
    assert result.codes_used == len(used)


def test_an_interrupted_encoding_goes_on_to_the_same_files(
    data: Path, vqgan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_LEAST_CLIPS", 5)  # several shards
    whole = encode(encode_config(data, tmp_path / "whole", vqgan_run)).folder
    written: list[str] = []
    original = TokenWriter.write

    def dies(writer: Any, unit: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(unit.name)
        original(writer, unit, *rest)

    monkeypatch.setattr(TokenWriter, "write", dies)
    config = encode_config(data, tmp_path / "parts", vqgan_run)
    with pytest.raises(KeyboardInterrupt):
        encode(config)
    with pytest.raises(DataError, match="incomplete, 2 of 5 shards") as caught:
        train_gpt(gpt_config(tmp_path / "parts", tmp_path / "run"))
    assert "tats encode" in caught.value.hint
    monkeypatch.setattr(TokenWriter, "write", original)
    notes = Notes()
    encode(config, notes)
    assert any("continuing after 2 of" in note for note in notes.notes)
    found, expected = contents(tmp_path / "parts"), contents(whole)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name] == expected[name] or name == "vqgan.ckpt", name
    encode(config)  # once more changes nothing
    assert contents(tmp_path / "parts") == found


def test_who_reads_does_not_matter(
    tokens: Path, data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    config = encode_config(data, tmp_path / "t", vqgan_run, encode={"workers": 2})
    found, expected = contents(encode(config).folder), contents(tokens)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] or name == "vqgan.ckpt" for name in expected)


def test_in_bf16_the_share_of_other_codes_is_said_and_the_tokens_know_it(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    notes, out = Notes(), tmp_path / "rough"
    encode(encode_config(data, out, vqgan_run, compute={"precision": "bf16"}), notes)
    [said] = [text for text in notes.notes if "others than in float32" in text]
    assert re.search(r"in bf16 \d+\.\d% of the codes of the first 4 clips", said)
    manifest = read_manifest(out)
    assert manifest.precision == "bf16"
    assert manifest.fingerprint == read_vqgan(vqgan_run).model.fingerprint()
    assert read_vqgan(out).model.dtype == torch.float32
    with pytest.raises(DataError, match="precision"):
        encode(encode_config(data, out, vqgan_run))


def test_that_a_vqgan_is_the_one_inside_a_gpt_is_said(
    data: Path, vqgan_run: Path, gpt_run: Path, tmp_path: Path
) -> None:
    said = "is a GPT: the VQGAN inside it is used"
    for run, times in ((gpt_run, 1), (vqgan_run, 0)):
        evaluated, encoded = Notes(), Notes()
        config = VQGANEvalConfig.model_validate(
            {"data": {"data": data}, "compute": {"device": "cpu"}}
        )
        evaluate_vqgan(run, config, evaluated)
        found = encode(encode_config(data, tmp_path / run.name, run), encoded)
        for notes in (evaluated, encoded):
            assert sum(said in note for note in notes.notes) == times
    assert found.codes == 16


def test_a_corrupt_video_is_named_and_left_out(data: Path, vqgan_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "train" / "circle" / "text.mp4").write_text("no video")
    whole = next((folder / "train" / "circle").glob("*.mp4"))
    damaged = broken(whole, tmp_path / "mute.mp4")
    (folder / "train" / "circle" / "zz-broken.mp4").write_bytes(damaged)
    notes = Notes()
    result = encode(encode_config(folder, tmp_path / "tokens", vqgan_run), notes)
    assert result.training_clips == 13  # its first clip can be decoded
    named = "\n".join(result.skipped)
    assert "train/circle/text.mp4" in named
    assert named.count("zz-broken.mp4: ") == 2  # of its clips
    assert any("text.mp4" in warning for warning in notes.warnings)
    with pytest.raises(DataError, match=r"^2 of 8 videos of .* more than --max-bad 0\.2") as caught:
        encode(encode_config(folder, tmp_path / "tokens", vqgan_run, data={"max_bad": 0.2}))
    assert "zz-broken.mp4" in caught.value.message and "--max-bad" in caught.value.hint
    strict = encode_config(folder, tmp_path / "strict", vqgan_run, data={"strict": True})
    with pytest.raises(DataError, match=r"text\.mp4"):
        encode(strict)
    (folder / "train" / "circle" / "text.mp4").unlink()
    with pytest.raises(DataError, match=r"zz-broken\.mp4"):
        encode(strict)


def test_tokens_of_another_vqgan_are_not_mixed_in(
    tokens: Path, data: Path, vqgan_run: Path, other_vqgan_run: Path
) -> None:
    before = contents(tokens)
    with pytest.raises(DataError) as caught:
        encode(encode_config(data, tokens, other_vqgan_run))
    for run in (vqgan_run, other_vqgan_run):
        assert read_vqgan(run).model.fingerprint() in caught.value.message
    assert contents(tokens) == before


def test_a_folder_of_other_things_is_left_alone(
    data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        encode(encode_config(data, tmp_path, vqgan_run))
    assert list(contents(tmp_path)) == ["notes.txt"]


def test_decoding_writes_a_video_a_clip(tokens: Path, vqgan_run: Path, tmp_path: Path) -> None:
    options = {"out": tmp_path / "out", "lossless": True, "limit": 4, "batch_size": 3}
    config = DecodeConfig.model_validate({"decode": options, "compute": {"device": "cpu"}})
    result = decode(tokens, config)
    assert (result.videos, result.frames, result.size, result.frame_rate) == (8, 4, 8, 8)
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in result.folder.rglob("*.mkv"))
    named = [("train", "circle", n) for n in range(4)]  # the first four
    named += [("val", "circle", n) for n in range(3)] + [("val", "square", 3)]
    assert found == [f"{split}/{label}/clip-{n:06}.mkv" for split, label, n in named]
    assert len(list(result.folder.rglob("*.mp4"))) == 8
    held = TokenDataset(tokens, "val")
    model = read_vqgan(vqgan_run).model
    for number, (_, label, _) in enumerate(named[4:]):
        file = tmp_path / "out" / "val" / label / f"clip-{number:06}.mkv"
        video = model.decode(held[number].tokens[None]).clamp(-0.5, 0.5)
        found_frames = read_frames(file, probe(file), range(4))
        assert np.array_equal(found_frames, to_uint8(video)[0])
    with pytest.raises(DataError, match="not empty; nothing was overwritten"):
        decode(tokens, config)


def test_decoded_videos_are_a_dataset_with_the_classes_and_captions(
    tokens: Path, data: Path, vqgan_run: Path, tmp_path: Path
) -> None:
    def decoded(source: Path, out: str, reporter: Notes) -> VideoIndex:
        config = {"decode": {"out": tmp_path / out}, "compute": {"device": "cpu"}}
        return build_index(decode(source, DecodeConfig.model_validate(config), reporter).folder)

    notes = Notes()
    found, real = decoded(tokens, "all", notes), build_index(data)
    assert not notes.notes
    assert found.classes == real.classes
    for split in ("train", "val"):
        held = TokenDataset(tokens, split)
        shown = [
            (e.label, e.captions) for e in sorted(found.split(split), key=lambda e: e.path[-10:])
        ]
        assert shown == [(held.labels[n], held.every_caption(n)) for n in range(len(held))]
    # No name from a file is taken for a path.
    for number, (label, said) in enumerate(
        (("../../evil", "'../../evil' is no name of a folder"), ("", "3 of 18 clips have none"))
    ):
        rows = [
            f"{data / entry.path},{entry.split},{label or 'a' * bool(n)}"
            for n, entry in enumerate(real.entries)
        ]
        manifest = tmp_path / f"{number}.csv"
        manifest.write_text("path,split,label\n" + "\n".join(rows))
        source = encode(encode_config(manifest, tmp_path / f"t{number}", vqgan_run)).folder
        flat = decoded(source, f"flat{number}", notes)
        assert notes.notes[-1] == f"the videos are not in folders of their classes: {said}"
        assert {e.path.count("/") for e in flat.entries} == {1}
        assert all(entry.captions for entry in flat.entries)


def test_decoding_takes_no_more_memory_for_many_clips_or_long_ones(
    vqgan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SynthConfig(classes=1, train_videos=1, test_videos=1, size=16, video_frames=84, rate=8)
    data = synthesise(tmp_path / "data", config).folder
    computed: list[tuple[int, ...]] = []
    original = module.decode_stream

    def spied(model: VQGAN, codes: torch.Tensor) -> Iterator[torch.Tensor]:
        for piece in original(model, codes):
            computed.append((len(piece), piece.shape[2]))
            yield piece

    for frames in (12, 84):
        computed.clear()
        chosen = {"sequence_length": frames}
        tokens = encode(
            encode_config(data, tmp_path / f"tokens-{frames}", vqgan_run, data=chosen)
        ).folder
        with monkeypatch.context() as patch:
            patch.setattr(module, "decode_stream", spied)
            options = {"out": tmp_path / f"out-{frames}", "lossless": True, "batch_size": 4}
            folder = decode(tokens, DecodeConfig.model_validate({"decode": options})).folder
        assert all(number == 1 and length <= 40 for number, length in computed)
        assert bool(computed) == (frames == 84)  # short ones are decoded together
        codes = TokenDataset(tokens, "val")[0].tokens
        whole = to_uint8(read_vqgan(vqgan_run).model.decode(codes[None]))[0]
        file = next((folder / "val").rglob("clip-000000.mkv"))
        found = read_frames(file, probe(file), range(frames))
        assert np.abs(found.astype(int) - whole).max() <= 1  # where rounding tips a level


def test_decoding_refuses_another_vqgan(
    tokens: Path, vqgan_run: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    options = {"out": tmp_path / "out", "vqgan": other_vqgan_run}
    with pytest.raises(DataError) as caught:
        decode(tokens, DecodeConfig.model_validate({"decode": options}))
    for run in (vqgan_run, other_vqgan_run):
        assert read_vqgan(run).model.fingerprint() in caught.value.message
    assert not (tmp_path / "out").exists()
