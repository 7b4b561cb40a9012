import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from tatscli import __version__
from tatscli.config.data import ClipConfig
from tatscli.core.data import tokens as module
from tatscli.core.data.clips import ConsumedBatchSampler, Wanted
from tatscli.core.data.index import Problem
from tatscli.core.data.tokens import (
    TokenDataset,
    TokenHeader,
    TokenUnit,
    TokenWriter,
    describe,
    is_token_dataset,
    read_manifest,
    repair,
    verify,
)
from tatscli.errors import DataError

GRID = (2, 3, 3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_CLIPS", 10)


def header(**changes: object) -> TokenHeader:
    fields: dict[str, object] = {
        "fingerprint": "abc",
        "codes": 65536,
        "grid": GRID,
        "clip": ClipConfig(resolution=32, sequence_length=8, frame_rate=7.3),
        "stride": 8,
        "classes": ("cat", "dog"),
        "videos": {"train": ("a.mp4", "b.mp4"), "val": ("c.mp4",)},
        "clips": {"train": 25, "val": 4},
    }
    return TokenHeader.model_validate({**fields, **changes})


def codes(split: str, first: int, stop: int) -> torch.Tensor:
    """Codes that tell their clip, with the highest code among them."""
    base = torch.arange(first, stop).reshape(-1, 1, 1, 1) + (1000 if split == "val" else 0)
    grid = torch.arange(18).reshape(1, *GRID)
    return torch.where(grid == 17, 65535, base * 20 + grid)


def write(writer: TokenWriter, unit: TokenUnit) -> None:
    clips = range(unit.first, unit.stop)
    writer.write(
        unit,
        codes(unit.split, unit.first, unit.stop),
        labels=[clip % 2 for clip in clips],
        videos=[0 for _ in clips],
        starts=[clip / 3 for clip in clips],
    )


def dataset(folder: Path) -> Path:
    writer = TokenWriter(folder, header())
    for unit in writer.missing():
        write(writer, unit)
    writer.finish()
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "t")
    assert [shard.n for shard in read_manifest(folder).shards["train"]] == [10, 10, 5]
    train, val = TokenDataset(folder, "train"), TokenDataset(folder, "val")
    assert (len(train), len(val)) == (25, 4)
    read = torch.stack([clip.tokens for clip in train.__getitems__(range(25))])
    assert torch.equal(read, codes("train", 0, 25))
    assert read.dtype == torch.int64
    assert torch.equal(val[3].tokens, codes("val", 3, 4)[0])
    assert [train[n].label for n in (9, 10, 24)] == [1, 0, 0]
    assert train.labels.tolist() == [n % 2 for n in range(25)]
    assert train.origin(11) == ("a.mp4", 11 / 3)
    assert verify(folder) == ()
    assert train.manifest.clip.frame_rate == 7.3


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_take_the_draws_of_a_run(tmp_path: Path, workers: int) -> None:
    train = TokenDataset(dataset(tmp_path / "t"), "train")
    assert train[0].label == 0  # so that a memory map is open
    sampler = ConsumedBatchSampler(len(train), 0, 5, 5)
    batches = list(DataLoader(train, batch_sampler=sampler, num_workers=workers))
    assert batches[0].tokens.shape == (5, *GRID)
    found = torch.cat([batch.tokens[:, 0, 0, 0] for batch in batches]).sort().values
    assert torch.equal(found, torch.arange(25) * 20)
    assert torch.equal(pickle.loads(pickle.dumps(train))[3].tokens, train[3].tokens)


def test_a_restart_writes_only_what_is_missing(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "t", header())
    units = writer.missing()
    assert [(unit.split, unit.first, unit.stop) for unit in units] == [
        ("train", 0, 10),
        ("train", 10, 20),
        ("train", 20, 25),
        ("val", 0, 4),
    ]
    for unit in units[:3]:
        write(writer, unit)
    # An interruption between shard and record, one within a shard, and a leftover.
    (tmp_path / "t" / "train-00001.json").unlink()
    shard = tmp_path / "t" / "train-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    (tmp_path / "t" / ".train-00003.safetensors.1.part").write_bytes(b"half")
    with pytest.raises(DataError, match="1 of 4 shards"):
        read_manifest(tmp_path / "t")
    again = TokenWriter(tmp_path / "t", header())
    assert again.missing() == [units[1], units[2], units[3]]
    with pytest.raises(ValueError, match="not written"):
        again.finish()
    for unit in again.missing():
        write(again, unit)
    again.finish()
    straight = dataset(tmp_path / "straight")
    names = {path.name for path in straight.iterdir()}
    assert {path.name for path in (tmp_path / "t").iterdir()} == names
    for name in names:
        assert (straight / name).read_bytes() == (tmp_path / "t" / name).read_bytes()
    assert TokenWriter(tmp_path / "t", header()).missing() == []
    assert read_manifest(tmp_path / "t").complete


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fingerprint": "xyz"}, "other tokens; VQGAN there: abc, here: xyz"),
        ({"grid": (4, 3, 3)}, r"grid there: \(2, 3, 3\), here: \(4, 3, 3\)"),
        ({"clip": ClipConfig(resolution=64, sequence_length=8)}, "resolution=32.*resolution=64"),
        ({"clips": {"train": 26, "val": 4}}, "clips.*25.*26"),
    ],
)
def test_a_folder_of_other_tokens_is_refused_with_both_named(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    TokenWriter(tmp_path / "t", header())
    with pytest.raises(DataError, match=named):
        TokenWriter(tmp_path / "t", header(**changes))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError, match="not empty"):
        TokenWriter(tmp_path, header())


def test_more_codes_than_a_file_can_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="65537.*65536"):
        TokenWriter(tmp_path / "t", header(codes=65537))


def test_codes_beyond_the_codebook_are_not_written(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "t", header(codes=100))
    with pytest.raises(ValueError, match="65535 of 100"):
        write(writer, writer.units[0])


def test_clips_that_failed_are_recorded_and_not_counted(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "t", header(clips={"train": 3}))
    (unit,) = writer.units
    problem = Problem("a.mp4", "cannot be decoded after 3.00 s")
    writer.write(unit, codes("train", 0, 2), [0, 1], [0, 1], [0.0, 1.0], [problem])
    assert writer.finish().shards["train"][0].problems == (problem,)
    assert len(TokenDataset(tmp_path / "t", "train")) == 2
    with pytest.raises(DataError, match="no clips in its val split"):
        TokenDataset(tmp_path / "t", "val")


Damage = Callable[[Path], object]


def flip(place: int) -> Damage:
    """Another bit at a place, counted from the end."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[-place] ^= 4
        file.write_bytes(content)

    return damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def edited(old: str, new: str) -> Damage:
    def damage(file: Path) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-00001.safetensors", flip(7), "sha256"),
        ("train-00001.safetensors", flip(600), "sha256"),
        ("train-00002.safetensors", cut, "sha256"),
        ("train-00000.safetensors", Path.unlink, "No such file"),
        ("val-00000.json", Path.unlink, "No such file"),
        ("val-00000.json", cut, "no record"),
        ("train-00001.json", edited('"n": 10', '"n": 11'), "manifest.json"),
        ("train-00001.json", edited('"sha256": "', '"sha256": "0'), "manifest.json"),
    ],
)
def test_damage_of_every_kind_is_found_named_and_mended(
    tmp_path: Path, name: str, damage: Damage, reason: str
) -> None:
    folder = dataset(tmp_path / "t")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / name)
    (problem,) = verify(folder)
    assert problem.path == name
    assert reason in problem.reason
    repair(folder, [problem])
    with pytest.raises(DataError, match="incomplete, 3 of 4 shards"):
        read_manifest(folder)
    assert verify(folder) == ()
    writer = TokenWriter(folder, header())
    (unit,) = writer.missing()
    assert name.startswith(unit.name)
    write(writer, unit)
    writer.finish()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_shards_that_two_datasets_exchanged_are_damaged(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "t")
    for suffix in (".safetensors", ".json"):
        first, second = (folder / f"train-0000{n}{suffix}" for n in (0, 1))
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
    assert [p.path for p in verify(folder)] == ["train-00000.json", "train-00001.json"]


def test_what_is_written_of_an_incomplete_dataset_is_compared_too(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "t", header())
    for unit in writer.units[:2]:
        write(writer, unit)
    told: list[tuple[int, int]] = []
    assert verify(tmp_path / "t", lambda done, total: told.append((done, total))) == ()
    sizes = [shard.bytes for shard in describe(tmp_path / "t")[1].values()]
    assert told == [(sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]
    flip(7)(tmp_path / "t" / "train-00001.safetensors")
    assert [p.path for p in verify(tmp_path / "t")] == ["train-00001.safetensors"]


def test_a_cut_or_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "t")
    shard = folder / "train-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match=shard.name):
        TokenDataset(folder, "train")
    shard.unlink()
    with pytest.raises(DataError, match=shard.name):
        TokenDataset(folder, "train")
    assert verify(folder)[0].path == shard.name


def test_manifests_that_cannot_be_used_are_named_with_the_cause(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "t")
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    assert is_token_dataset(folder)

    def message(text: str) -> str:
        manifest.write_text(text)
        with pytest.raises(DataError) as caught:
            read_manifest(folder)
        assert str(folder) in caught.value.message
        return caught.value.message

    def changed(**fields: object) -> str:
        return message(json.dumps({**json.loads(whole), **fields}))

    assert "format 4, this version of tats reads up to 3" in changed(version=4)
    assert "damaged" in message(whole[:100])
    for fields in (
        {"version": "new"},
        {"codes": "many"},
        {"codes": 65535},
        {"classes": ["dog", "cat"]},
        {"fingerprint": "abd"},
        {"complete": False},
        {"checksum": ""},
        {"shards": {"train": []}},
    ):
        assert "damaged" in changed(**fields)
    assert "not the manifest" in message('{"name": "web app"}')
    assert is_token_dataset(folder)  # or what is left of one
    manifest.unlink()
    assert is_token_dataset(folder)
    with pytest.raises(DataError, match="no token dataset") as caught:
        read_manifest(folder)
    assert "tats encode" in caught.value.hint
    for path in folder.iterdir():
        path.unlink()
    assert not is_token_dataset(folder)
    (folder / "manifest.json").write_text('{"name": "web app"}')
    assert not is_token_dataset(folder)


def older(folder: Path) -> None:
    """Make the manifest one of the format before checksums."""
    manifest = folder / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["tats"], fields["checksum"]
    manifest.write_text(json.dumps({**fields, "version": 2}))


def test_datasets_of_the_format_before_are_opened_and_completed(tmp_path: Path) -> None:
    folder, straight = dataset(tmp_path / "t"), dataset(tmp_path / "straight")
    older(folder)
    assert len(TokenDataset(folder, "train")) == 25
    assert verify(folder) == ()
    begun = tmp_path / "begun"
    writer = TokenWriter(begun, header())
    write(writer, writer.units[0])
    older(begun)
    writer = TokenWriter(begun, header())
    for unit in writer.missing():
        write(writer, unit)
    writer.finish()
    for path in straight.iterdir():
        assert (begun / path.name).read_bytes() == path.read_bytes()


def test_the_manifest_says_who_wrote_it(tmp_path: Path) -> None:
    assert read_manifest(dataset(tmp_path / "t")).tats == __version__


def test_batches_are_read_without_holding_files_open(tmp_path: Path) -> None:
    train = TokenDataset(dataset(tmp_path / "t"), "train")
    before = len(list(Path("/dev/fd").iterdir()))
    numbers = [24, 3, 3, 11, 0, 19]
    batch = train.__getitems__(numbers)
    assert len(list(Path("/dev/fd").iterdir())) == before
    for number, clip in zip(numbers, batch, strict=True):
        assert torch.equal(clip.tokens, codes("train", number, number + 1)[0])
        assert torch.equal(clip.tokens, train[number].tokens)
        assert clip.label == number % 2


def test_a_shard_that_is_gone_when_it_is_read_is_named(tmp_path: Path) -> None:
    train = TokenDataset(dataset(tmp_path / "t"), "train")
    train.paths[1].unlink()
    assert train[0].label == 0
    with pytest.raises(DataError, match="train-00001"):
        train[10]


SOUND = {"fingerprint": "heard", "codes": 512, "grid": (4, 2, 1), "missing": "silence"}
CAPTIONS = {"train": (("a cat", "one cat"), ()), "val": (("a dog",),)}


def heard(first: int, stop: int) -> torch.Tensor:
    """Codes of sound that tell their clip."""
    return torch.arange(first, stop).reshape(-1, 1, 1, 1) * 8 + torch.arange(8).reshape(1, 4, 2, 1)


def described(folder: Path) -> Path:
    """A dataset with sound and captions; every third training clip is of the second video."""
    writer = TokenWriter(folder, header(sound=SOUND, captions=CAPTIONS))
    for unit in writer.missing():
        clips = range(unit.first, unit.stop)
        writer.write(
            unit,
            codes(unit.split, unit.first, unit.stop),
            labels=[0 for _ in clips],
            videos=[int(unit.split == "train" and clip % 3 == 2) for clip in clips],
            starts=[0.0 for _ in clips],
            sound=heard(unit.first, unit.stop),
        )
    writer.finish()
    return folder


def spelt(text: str) -> torch.Tensor:
    """A text as its length and its first letter."""
    return torch.tensor([len(text), ord(text[0]) if text else 0])


def test_sound_and_captions_are_written_and_read(tmp_path: Path) -> None:
    folder = described(tmp_path / "t")
    wanted = Wanted(text=spelt, sound=True)
    train, val = (TokenDataset(folder, split, wanted) for split in ("train", "val"))
    clips = train.__getitems__(range(25))
    sound = torch.stack([clip.sound for clip in clips])
    assert torch.equal(sound, heard(0, 25))
    assert sound.dtype == torch.int64
    assert torch.equal(torch.stack([clip.tokens for clip in clips]), codes("train", 0, 25))
    assert torch.equal(val[2].sound, heard(2, 3)[0])
    assert [train.caption(number) for number in range(4)] == ["a cat", "one cat", "", "one cat"]
    assert [clip.text.tolist() for clip in clips[:3]] == [[5, 97], [7, 111], [0, 0]]
    assert val[0].text.tolist() == [5, 97]
    assert train.manifest.sound is not None
    assert train.manifest.sound.model_dump() == SOUND
    assert verify(folder) == ()


def test_each_epoch_takes_another_caption(tmp_path: Path) -> None:
    train = TokenDataset(described(tmp_path / "t"), "train", Wanted(text=spelt))
    lengths = [int(train[(0, draw)].text[0]) for draw in (0, 23, 25, 48, 50)]
    assert lengths == [5, 5, 7, 7, 5]
    assert [int(train[(2, draw)].text[0]) for draw in (0, 25)] == [0, 0]


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    folder = described(tmp_path / "t")
    for wanted, read in ((Wanted(), (0, 0)), (Wanted(sound=True), (0, 8))):
        clip = TokenDataset(folder, "train", wanted)[0]
        assert (clip.text.numel(), clip.sound.numel()) == read


def test_a_dataset_without_sound_or_captions_says_so_or_gives_none(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "t")
    with pytest.raises(DataError, match="its sound was not encoded") as caught:
        TokenDataset(folder, "train", Wanted(sound=True))
    assert str(folder) in caught.value.message
    assert "--sound-vqgan" in caught.value.hint
    assert TokenDataset(folder, "train", Wanted(text=spelt))[0].text.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sound": None}, "sound there: VQGAN heard, missing sound: silence, here: none"),
        ({"sound": SOUND | {"fingerprint": "xyz"}}, "sound there: .*heard.*xyz"),
        ({"sound": SOUND | {"missing": "skip"}}, "sound there: .*silence.*skip"),
        ({"captions": {}}, "other tokens; captions there: .*one cat.*, here: {}"),
    ],
)
def test_tokens_of_another_sound_or_other_captions_are_not_gone_on_with(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    fields: dict[str, object] = {"sound": SOUND, "captions": CAPTIONS}
    TokenWriter(tmp_path / "t", header(**fields))
    assert TokenWriter(tmp_path / "t", header(**fields)).missing()
    with pytest.raises(DataError, match=named):
        TokenWriter(tmp_path / "t", header(**(fields | changes)))


@pytest.mark.parametrize(
    ("sound", "named"),
    [
        (heard(0, 9), r"\(9, 4, 2, 1\), expected \(10, 4, 2, 1\)"),
        (heard(0, 10).flatten(2), r"\(10, 4, 2\), expected \(10, 4, 2, 1\)"),
        (heard(60, 70), r"codes 480\.\.559 of 512"),
    ],
)
def test_sound_that_does_not_fit_is_not_written(
    tmp_path: Path, sound: torch.Tensor, named: str
) -> None:
    writer = TokenWriter(tmp_path / "t", header(sound=SOUND))
    zeros = [0] * 10
    with pytest.raises(ValueError, match=named):
        writer.write(writer.units[0], codes("train", 0, 10), zeros, zeros, zeros, sound=sound)
    assert writer.missing()[0] == writer.units[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda sound: sound[:, :2], r"sound of shape \(10, 2, 2, 1\), not \(10, 4, 2, 1\)"),
        (lambda sound: sound[:4], r"sound of shape \(4, 4, 2, 1\), not \(10, 4, 2, 1\)"),
        (None, "cannot be read"),
    ],
)
def test_a_shard_with_other_sound_is_named(tmp_path: Path, change: Any, named: str) -> None:
    folder = described(tmp_path / "t")
    shard = folder / "train-00001.safetensors"
    columns = load_file(shard)
    columns |= {"sound": change(columns["sound"]).copy()} if change else {}
    if not change:
        del columns["sound"]
    save_file(columns, shard)
    for wanted in (Wanted(), Wanted(sound=True)):
        with pytest.raises(DataError, match=named) as caught:
            TokenDataset(folder, "train", wanted)
        assert str(shard) in caught.value.message
