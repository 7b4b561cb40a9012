"""Converting tokens to a stream, and training a GPT from one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_app import Notes, encode_config, gpt_config, vqgan_config

from tatscli.app import stream as module
from tatscli.app.encode import encode
from tatscli.app.reporting import Silent
from tatscli.app.stream import convert, find_stream
from tatscli.app.train import train_gpt, train_vqgan
from tatscli.app.training_data import gpt_material
from tatscli.config.stream import ConvertConfig
from tatscli.errors import ConfigError, DataError

ALL = {"condition": "label+text+sound", "condition_dropout": 0.0}
CONSTANT = {"lr_schedule": "constant"}


def convert_config(out: Path, chunk: int = 32) -> ConvertConfig:
    return ConvertConfig.model_validate({"convert": {"out": out, "chunk_mb": chunk}})


@pytest.fixture(scope="module")
def heard_tokens(shared: Path, data: Path, vqgan_run: Path) -> Path:
    """The dataset, encoded with its sound."""
    sound = vqgan_config(
        data, shared / "stream-sound",
        data={"input": "sound"}, model={"downsample": (2, 8, 4), "image_channels": 1},
        train={"max_steps": 1},
    )  # fmt: skip
    given = {"sound_vqgan": train_vqgan(sound).run}
    return encode(encode_config(data, shared / "stream-heard", vqgan_run, encode=given)).folder


@pytest.fixture(scope="module")
def stream(shared: Path, heard_tokens: Path) -> Path:
    """The tokens as a stream in chunks of about three clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MEGABYTE", 1)
        return convert(heard_tokens, convert_config(shared / "stream", 700)).folder


def address(folder: Path) -> Path:
    return Path(f"file://{folder}")


def run_state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_result_counts(tokens: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = convert(tokens, convert_config(tmp_path / "s"), notes)
    assert (result.training_clips, result.validation_clips, result.chunks) == (12, 6, 2)
    assert result.bytes == sum(path.stat().st_size for path in result.folder.glob("*/*.bin"))
    assert notes.tasks[-1] == "converting" and notes.done[-1] == 18
    assert convert(tokens, convert_config(tmp_path / "s")) == result


def test_damaged_tokens_are_not_converted(tokens: Path, tmp_path: Path) -> None:
    copy = tmp_path / "t"
    copy.mkdir()
    for path in tokens.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = copy / "train-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="train-00000.safetensors"):
        convert(copy, convert_config(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_gpt_gets_what_the_tokens_would_give(
    heard_tokens: Path, stream: Path, tmp_path: Path, is_remote: bool
) -> None:
    data = address(stream) if is_remote else stream
    mine = gpt_material(gpt_config(data, tmp_path, model=ALL), None, Silent())
    theirs = gpt_material(gpt_config(heard_tokens, tmp_path, model=ALL), None, Silent())
    assert mine.vqgan.model.fingerprint() == theirs.vqgan.model.fingerprint()
    assert (mine.vqgan.clip, mine.vqgan.rate) == (theirs.vqgan.clip, theirs.vqgan.rate)
    assert mine.classes == theirs.classes
    assert mine.sound and theirs.sound and mine.text and theirs.text
    assert mine.sound.model.fingerprint() == theirs.sound.model.fingerprint()
    assert mine.text.encode("a red square").equal(theirs.text.encode("a red square"))
    assert mine.content.holds == "12 clips in 4 shards"

    def clips(material: Any) -> list[Any]:
        read = [material.clips.train[number] for number in range(material.clips.slots)]
        return sorted([part.tolist() for part in (c.tokens, c.text, c.sound)] for c in read)

    assert clips(mine) == clips(theirs)
    assert mine.clips.order is not None
    assert len(mine.clips.validation) == 3  # type: ignore[arg-type]


def test_a_run_that_was_stopped_ends_like_one_that_was_not(stream: Path, tmp_path: Path) -> None:
    loop = {"max_steps": 9, "checkpoint_every": 4}  # 6 steps an epoch
    whole = train_gpt(gpt_config(stream, tmp_path / "whole", model=ALL, optim=CONSTANT, train=loop))
    data, folder = address(stream), tmp_path / "run"
    first = gpt_config(data, folder, model=ALL, optim=CONSTANT, train=loop | {"max_steps": 5})
    notes = Notes()
    train_gpt(first, reporter=notes)
    assert any(str(stream) in note and "are kept in" in note for note in notes.notes)
    workers = {"device": "cpu", "workers": 2}
    longer = gpt_config(data, folder, model=ALL, optim=CONSTANT, train=loop, compute=workers)
    assert train_gpt(longer, resume=folder).steps == 9
    found, expected = run_state(folder), run_state(whole.run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    record = json.loads((folder / "run.json").read_text())
    assert record["data"] == json.loads((whole.run / "run.json").read_text())["data"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_chunk_ends_a_run_with_its_name(
    stream: Path, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "s"
    for path in stream.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(stream)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    chunk = folder / "train" / "chunk-0-1.bin"
    content = bytearray(chunk.read_bytes())
    content[-20] ^= 1
    chunk.write_bytes(content)
    compute = {"device": "cpu", "workers": workers}
    config = gpt_config(folder, tmp_path / "run", compute=compute, train={"max_steps": 6})
    with pytest.raises(DataError, match=f"{chunk}: damaged: its sha256 is") as caught:
        train_gpt(config)
    assert "tats tokens convert" in caught.value.hint


def test_tokens_of_another_vqgan_are_refused(
    data: Path, stream: Path, tokens: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds tokens of VQGAN .* is VQGAN") as caught:
        train_gpt(gpt_config(stream, tmp_path / "run", other_vqgan_run))
    assert "or leave it out" in caught.value.hint
    gpt = train_gpt(gpt_config(data, tmp_path / "gpt", other_vqgan_run, train={"max_steps": 1})).run
    with pytest.raises(DataError, match="holds tokens of VQGAN .* is VQGAN") as caught:
        train_gpt(gpt_config(stream, tmp_path / "run", train={"init": gpt}))
    assert f"tats encode --data VIDEOS --vqgan {gpt} --out NEW" in caught.value.hint
    mute = convert(tokens, convert_config(tmp_path / "s")).folder
    with pytest.raises(ConfigError, match="holds no sound"):
        train_gpt(gpt_config(mute, tmp_path / "run", model={"condition": "sound"}))


def test_other_data_is_no_stream(data: Path, tokens: Path, tmp_path: Path) -> None:
    for other in (data, tokens, address(tokens), tmp_path / "absent", Path("https://host/set")):
        assert find_stream(other, Silent()) is None
