"""Token datasets as a whole: looked into, checked, mended, merged, and from elsewhere."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from tiny_app import Notes, encode_config, gpt_config

from tatscli.app.encode import decode, encode
from tatscli.app.tokens import merge_tokens, require_usable, token_info, verify_tokens
from tatscli.app.train import train_gpt
from tatscli.config.data import ClipConfig
from tatscli.config.encode import DecodeConfig
from tatscli.config.tokens import MergeConfig, VerifyConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, save_vqgan
from tatscli.core.data import tokens as token_files
from tatscli.core.data.clips import Wanted
from tatscli.core.data.index import Problem
from tatscli.core.data.tokens import TokenDataset, TokenHeader, TokenWriter, read_manifest
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import ConfigError, DataError

REPAIR = VerifyConfig.model_validate({"verify": {"repair": True}})
Damage = Callable[[Path], object]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decode_config(out: Path) -> DecodeConfig:
    return DecodeConfig.model_validate({"decode": {"out": out}, "compute": {"device": "cpu"}})


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def with_fields(**fields: Any) -> Damage:
    def damage(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return damage


DAMAGES: dict[str, tuple[str, Damage]] = {
    "bit": ("train-00000.safetensors", flipped),
    "cut shard": ("val-00000.safetensors", cut),
    "no shard": ("train-00000.safetensors", Path.unlink),
    "no record": ("train-00000.json", Path.unlink),
    "cut record": ("train-00000.json", cut),
    "record of other counts": ("val-00000.json", with_fields(n=5)),
    "bit of the VQGAN": ("vqgan.ckpt", flipped),
    "cut VQGAN": ("vqgan.ckpt", cut),
    "no VQGAN": ("vqgan.ckpt", Path.unlink),
    "cut manifest": ("manifest.json", cut),
    "no manifest": ("manifest.json", Path.unlink),
    "edited classes": ("manifest.json", with_fields(classes=["square", "circle"])),
    "edited codes": ("manifest.json", with_fields(codes=32)),
    "edited fingerprint": ("manifest.json", with_fields(fingerprint="0123456789abcdef")),
    "edited kind": ("manifest.json", with_fields(kind="tokens")),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_every_kind_is_refused_by_name_wherever_tokens_are_opened(
    tokens: Path, tmp_path: Path, kind: str
) -> None:
    name, damage = DAMAGES[kind]
    folder, out = tmp_path / "tokens", tmp_path / "out"
    shutil.copytree(tokens, folder)
    damage(folder / name)
    for use in (
        lambda: train_gpt(gpt_config(folder, out)),
        lambda: decode(folder, decode_config(out)),
        lambda: require_usable(verify_tokens(folder, VerifyConfig())),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert str(folder) in caught.value.message
        assert name in caught.value.message
        assert caught.value.hint
    assert not out.exists()


def test_another_vqgan_in_the_folder_is_refused_with_both_named(
    tokens: Path, other_vqgan_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "tokens")
    shutil.copy(other_vqgan_run / "checkpoints" / "last.ckpt", tmp_path / "tokens" / "vqgan.ckpt")
    with pytest.raises(DataError, match="vqgan.ckpt: is VQGAN .* manifest.json names") as caught:
        train_gpt(gpt_config(tmp_path / "tokens", tmp_path / "run"))
    assert read_manifest(tokens).fingerprint in caught.value.message


def test_damage_is_mended_by_the_same_encode(data: Path, vqgan_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_LEAST_CLIPS", 5)
        config = encode_config(data, folder, vqgan_run)
        encode(config)
        before = contents(folder)
        flipped(folder / "train-00001.safetensors")
        cut(folder / "vqgan.ckpt")
        found = verify_tokens(folder, VerifyConfig())
        assert [problem.path for problem in found.damaged] == [
            "train-00001.safetensors",
            "vqgan.ckpt",
        ]
        assert not found.intact
        assert contents(folder) != before
        found = verify_tokens(folder, REPAIR)
        assert (found.repaired, found.complete) == (True, False)
        with pytest.raises(DataError) as caught:
            require_usable(found)
        assert "tats encode" in caught.value.hint
        missing = before.keys() - contents(folder).keys()
        assert missing == {"train-00001.safetensors", "train-00001.json", "vqgan.ckpt"}
        with pytest.raises(DataError, match="incomplete, 4 of 5 shards"):
            train_gpt(gpt_config(folder, tmp_path / "run"))
        encode(config)
    after = contents(folder)
    assert after.pop("vqgan.ckpt")
    assert after == {name: held for name, held in before.items() if name != "vqgan.ckpt"}
    require_usable(verify_tokens(folder, VerifyConfig()))


def test_the_program_names_what_is_damaged_and_ends_with_1(
    tats: Callable[..., Any], tokens: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "tokens")
    sound = tats("tokens", "verify", "tokens", "--json")
    assert sound.code == 0
    found = json.loads(sound.out)
    assert (found["intact"], found["complete"], found["shards"]) == (True, True, 2)
    assert found["damaged"] == []
    flipped(tmp_path / "tokens" / "val-00000.safetensors")
    bad = tats("tokens", "verify", "tokens", "--json")
    assert bad.code == 1
    [problem] = json.loads(bad.out)["damaged"]
    assert problem["path"] == "val-00000.safetensors"
    assert "hint: tats tokens verify tokens --repair" in bad.err
    table = tats("tokens", "verify", "tokens", "--repair")
    assert table.code == 1
    assert "val-00000.safetensors" in table.out
    assert "'tats encode'" in table.err
    again = tats("tokens", "verify", "tokens")
    assert (again.code, "incomplete, 1 of 2 shards" in again.err) == (1, True)


def test_info_says_what_a_dataset_holds(
    tats: Callable[..., Any], tokens: Path, vqgan_run: Path
) -> None:
    shown = tats("tokens", "info", tokens, "--json")
    assert shown.code == 0
    info, manifest = json.loads(shown.out), read_manifest(tokens)
    assert info["clips"] == {"train": 12, "val": 6}
    assert info["videos"] == {"train": 4, "val": 2}
    assert info["captioned"] == {"train": 4, "val": 2}
    assert info["classes"] == ["circle", "square"]
    assert (info["grid"], info["codes"], info["frames"]) == ([2, 2, 2], 16, 4)
    assert (info["vqgan"], info["precision"]) == (manifest.fingerprint, "float32")
    assert (info["complete"], info["shards"], info["shards_written"]) == (True, 2, 2)
    size = sum(path.stat().st_size for path in tokens.glob("*.safetensors"))
    assert (info["bytes"], info["problems"], info["frame_rate"]) == (size, [], None)
    assert "circle" in tats("tokens", "info", tokens).out


def test_info_counts_what_is_there_of_an_unfinished_one(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "t", header(clips={"train": 600}))
    write(writer, 0, stop=1)
    info = token_info(tmp_path / "t")
    assert (info.complete, info.shards, info.shards_written) == (False, 3, 1)
    assert info.clips == {"train": 256}


def vqgan(seed: int, **config: Any) -> TrainedVQGAN:
    torch.manual_seed(seed)
    base = {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": (2, 4, 4)}
    clip = ClipConfig(resolution=8, sequence_length=4)
    return TrainedVQGAN(VQGAN(VQGANConfig.model_validate(base | config)).eval(), clip, 8.0, 0)


VIDEO, SOUND = vqgan(0), vqgan(1, image_channels=1, downsample=(2, 16, 4))
HEARD = {
    "fingerprint": SOUND.model.fingerprint(),
    "codes": 16,
    "grid": (2, 4, 4),
    "missing": "silence",
}


def header(**changes: Any) -> TokenHeader:
    fields: dict[str, Any] = {
        "fingerprint": VIDEO.model.fingerprint(),
        "codes": 16,
        "grid": (2, 2, 2),
        "clip": VIDEO.clip,
        "stride": 4,
        "classes": (),
        "videos": {"train": ("one.mp4", "two.mp4"), "val": ("three.mp4",)},
        "clips": {"train": 8, "val": 3},
    }
    return TokenHeader.model_validate(fields | changes)


def write(writer: TokenWriter, seed: int, stop: int | None = None) -> None:
    """Write shards of random codes, whose first clip could not be decoded."""
    generator = torch.Generator().manual_seed(seed)
    for unit in writer.missing()[:stop]:
        lost = unit.number == 0 and unit.split == "train" and stop is None
        count = unit.stop - unit.first - lost
        classes, videos = len(writer.header.classes), len(writer.header.videos[unit.split])
        sound = writer.header.sound
        writer.write(
            unit,
            torch.randint(16, (count, 2, 2, 2), generator=generator),
            [n % (classes + 1) - 1 for n in range(count)],
            [n % videos for n in range(count)],
            [seed + n / 3 for n in range(count)],
            [Problem(f"{seed}.mp4", "cannot be decoded")] * lost,
            torch.randint(16, (count, *sound.grid), generator=generator) if sound else None,
        )


def made(folder: Path, seed: int, **changes: Any) -> Path:
    writer = TokenWriter(folder, header(**changes))
    write(writer, seed)
    save_vqgan(VIDEO, folder / "vqgan.ckpt")
    if writer.header.sound:
        save_vqgan(SOUND, folder / "sound.ckpt")
    writer.finish()
    return folder


CAPTIONS = {"train": (("a cat", "one cat"), ()), "val": (("a dog",),)}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three datasets of sound, in shards of three clips."""
    monkeypatch.setattr(token_files, "_LEAST_CLIPS", 3)
    problem = Problem("text.mp4", "is no video")
    return [
        made(tmp_path / "a", 1, sound=HEARD, classes=("cat", "dog"), problems=(problem,)),
        made(
            tmp_path / "b",
            2,
            sound=HEARD,
            classes=("bird", "cat"),
            captions=CAPTIONS,
            videos={"train": ("x.mp4", "y.mp4"), "val": ("z.mp4",)},
        ),
        made(tmp_path / "c", 3, sound=HEARD, clips={"train": 4, "val": 0}),
    ]


def merge_config(out: Path) -> MergeConfig:
    return MergeConfig.model_validate({"merge": {"out": out}})


def described(folder: Path, split: Any) -> Iterator[tuple[Any, ...]]:
    """What is known of each clip of a split."""
    manifest = read_manifest(folder)
    if not sum(shard.n for shard in manifest.shards[split]):
        return
    held = TokenDataset(folder, split, Wanted(sound=True))
    for number in range(len(held)):
        clip = held[number]
        label = manifest.classes[clip.label] if clip.label >= 0 else None
        captions = held.captions[held.numbers[number]] if held.captions else ()
        codes = (clip.tokens.tolist(), clip.sound.tolist())
        yield *codes, label, captions, held.origin(number)


def test_a_merged_dataset_holds_the_clips_of_its_sources_in_order(
    parts: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = merge_tokens(parts, merge_config(out))
    assert (result.training_clips, result.validation_clips) == (7 + 7 + 3, 3 + 3)
    assert (result.classes, result.videos) == (("cat", "dog", "bird"), 9)
    for split in ("train", "val"):
        expected = [clip for part in parts for clip in described(part, split)]
        assert list(described(out, split)) == expected
    assert {clip[2] for clip in described(out, "train")} == {None, "cat", "dog", "bird"}
    manifest = read_manifest(out)
    assert [problem.path for problem in manifest.problems] == [
        "text.mp4",
        "1.mp4",
        "2.mp4",
        "3.mp4",
    ]
    assert [shard.n for shard in manifest.shards["train"]] == [3, 3, 3, 3, 3, 2]
    require_usable(verify_tokens(out, VerifyConfig()))


def test_merging_goes_on_where_it_stopped_and_ends_with_nothing_to_do(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_tokens(parts, merge_config(tmp_path / "straight"))
    original, written = TokenWriter.write, []

    def dies(self: TokenWriter, *arguments: Any, **named: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments[0])
        original(self, *arguments, **named)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            merge_tokens(parts, merge_config(out))
    with pytest.raises(DataError, match="incomplete, 3 of 8 shards"):
        read_manifest(out)
    assert merge_tokens(parts, merge_config(out)).written == 5
    assert contents(out) == contents(tmp_path / "straight")
    assert merge_tokens(parts, merge_config(out)).written == 0
    assert contents(out) == contents(tmp_path / "straight")
    with pytest.raises(DataError, match="holds other tokens"):
        merge_tokens(parts[:2], merge_config(out))
    flipped(out / "train-00002.safetensors")
    verify_tokens(out, REPAIR)
    assert merge_tokens(parts, merge_config(out)).written == 1
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.parametrize(
    ("changes", "named", "option"),
    [
        ({"fingerprint": SOUND.model.fingerprint()}, "VQGAN: {0.fingerprint} and ", "--vqgan"),
        ({"codes": 32}, "codes: 16 and 32", "--vqgan"),
        (
            {"clip": ClipConfig(resolution=16, sequence_length=4)},
            "clip: resolution 8 and resolution 16$",
            "--resolution",
        ),
        ({"stride": 2}, "stride: 4 and 2", "--stride"),
        ({"precision": "bf16"}, "precision: float32 and bf16", "--precision"),
        ({"sound": HEARD}, "sound: None and VQGAN ", "--sound-vqgan"),
    ],
)
def test_datasets_of_another_kind_are_refused_with_both_values(
    tmp_path: Path, changes: dict[str, Any], named: str, option: str
) -> None:
    first, second = made(tmp_path / "a", 1), made(tmp_path / "b", 2, **changes)
    if "fingerprint" in changes:
        save_vqgan(SOUND, second / "vqgan.ckpt")
    with pytest.raises(DataError, match=named.format(header())) as caught:
        merge_tokens([first, second], merge_config(tmp_path / "out"))
    for folder in (first, second):
        assert str(folder) in caught.value.message
    assert f"the {option}" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_datasets_whose_videos_without_sound_differ_are_refused_with_what_became_of_them(
    tmp_path: Path,
) -> None:
    folders = [
        made(tmp_path / missing, 1, sound=HEARD | {"missing": missing})
        for missing in ("silence", "skip")
    ]
    said = "differ in sound: --missing-sound silence and --missing-sound skip$"
    with pytest.raises(DataError, match=said):
        merge_tokens(folders, merge_config(tmp_path / "out"))


def test_a_damaged_source_is_refused_and_sources_must_be_two(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", 1), made(tmp_path / "b", 2)
    config = merge_config(tmp_path / "out")
    with pytest.raises(ConfigError, match="two or more"):
        merge_tokens([first], config)
    with pytest.raises(ConfigError, match="given twice"):
        merge_tokens([first, second, tmp_path / "b" / ".." / "a"], config)
    flipped(second / "train-00000.safetensors")
    with pytest.raises(DataError, match="train-00000.safetensors"):
        merge_tokens([first, second], config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seed", "is_same"), [(1, True), (9, False)])
def test_a_video_in_both_splits_is_warned_of_unless_its_parts_are_others(
    tmp_path: Path, seed: int, is_same: bool
) -> None:
    videos = {"train": ("three.mp4",), "val": ("four.mp4",)}
    # Clips start from the second on that is the seed.
    sources = [made(tmp_path / "a", 1), made(tmp_path / "b", seed, videos=videos)]
    notes = Notes()
    merge_tokens(sources, merge_config(tmp_path / "out"), notes)
    assert ["three.mp4" in text for text in notes.warnings] == [True] * is_same


@pytest.fixture
def url(tokens: Path) -> Iterator[Path]:
    """The dataset in a bucket, as settings hold its address."""
    files = fsspec.filesystem("memory")
    files.put(f"{tokens}/", "/bucket/tokens/", recursive=True)
    yield Path("memory://bucket/tokens")
    files.rm("/bucket", recursive=True)


def test_tokens_elsewhere_are_taken_wherever_tokens_are(
    url: Path, tokens: Path, tmp_path: Path
) -> None:
    notes = Notes()
    result = train_gpt(gpt_config(url, tmp_path / "run", train={"max_steps": 1}), None, notes)
    assert result.steps == 1
    assert notes.tasks[:2] == ["fetching tokens", "checking tokens"]
    decoded = decode(url, decode_config(tmp_path / "decoded"))
    assert decoded.videos == 18
    assert verify_tokens(url, VerifyConfig()).intact
    info = token_info(url)
    assert (info.tokens, info.clips) == ("memory://bucket/tokens", {"train": 12, "val": 6})
    shutil.copytree(tokens, tmp_path / "here")
    merged = merge_tokens([url, tmp_path / "here"], merge_config(tmp_path / "merged"))
    assert merged.training_clips == 24
    again = train_gpt(gpt_config(url, tmp_path / "run"), tmp_path / "run")
    assert again.steps == 3


def test_a_dry_run_reaches_for_no_network(
    tats: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    shown = tats("gpt", "train", "--data", "s3://bucket/tokens", "--dry-run")
    assert shown.code == 0
    assert "bucket/tokens" in shown.out
