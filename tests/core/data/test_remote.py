import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from tatscli.config.data import ClipConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.checkpoint import TrainedVQGAN, save_vqgan
from tatscli.core.data import remote as module
from tatscli.core.data import tokens as token_files
from tatscli.core.data.remote import fetch_tokens, remote_manifest
from tatscli.core.data.tokens import (
    TokenDataset,
    TokenHeader,
    TokenWriter,
    read_manifest,
    repair,
    verify,
)
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.paths import remote_url
from tatscli.errors import DataError

URL = "memory://bucket/tokens"
CLIP = ClipConfig(resolution=8, sequence_length=4)


def vqgan(seed: int) -> VQGAN:
    torch.manual_seed(seed)
    config = VQGANConfig(embedding_dim=4, codes=16, hidden_channels=2, downsample=(2, 4, 4))
    return VQGAN(config).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 clips for training in three shards, 4 for validation, and the VQGAN."""
    folder = tmp_path_factory.mktemp("tokens")
    header = TokenHeader(
        fingerprint=vqgan(0).fingerprint(),
        codes=16,
        grid=(2, 2, 2),
        clip=CLIP,
        stride=4,
        classes=(),
        videos={"train": ("a.mp4",), "val": ("b.mp4",)},
        clips={"train": 25, "val": 4},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_LEAST_CLIPS", 10)
        writer = TokenWriter(folder, header)
    for unit in writer.missing():
        count = unit.stop - unit.first
        codes = torch.arange(count * 8).reshape(count, 2, 2, 2) % 16
        starts = [float(n) for n in range(unit.first, unit.stop)]
        writer.write(unit, codes, [-1] * count, [0] * count, starts)
    save_vqgan(TrainedVQGAN(vqgan(0), CLIP, 8.0, 0), folder / "vqgan.ckpt")
    writer.finish()
    return folder


@pytest.fixture
def bucket(dataset: Path) -> Iterator[AbstractFileSystem]:
    """The dataset in a bucket."""
    files = fsspec.filesystem("memory")
    files.put(f"{dataset}/", "/bucket/tokens/", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are fetched."""
    names: list[str] = []
    original = MemoryFileSystem.get_file

    def spied(self: Any, source: str, target: str, **options: Any) -> None:
        names.append(source.rpartition("/")[2])
        original(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", spied)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/tokens", "s3://bucket/tokens"),
        ("s3://bucket/tokens/", "s3://bucket/tokens"),
        ("s3:/bucket/tokens", "s3://bucket/tokens"),
        ("hf://datasets/me/tokens", "hf://datasets/me/tokens"),
        ("file:///data/tokens", "file:///data/tokens"),
        ("memory://tokens", "memory://tokens"),
        ("tokens", None),
        ("/data/tokens", None),
        ("data/s3:/tokens", None),
        ("c:/data/tokens", None),
        ("a: b/c", None),
    ],
)
def test_addresses_are_told_from_paths_that_lost_a_slash(path: str, url: str | None) -> None:
    assert remote_url(Path(path)) == url


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_what_is_fetched_is_what_was_written(
    dataset: Path, bucket: AbstractFileSystem, tmp_path: Path, scheme: str
) -> None:
    url = URL if scheme == "memory" else f"file://{dataset}"
    told: list[tuple[int, int]] = []
    folder = fetch_tokens(url, tmp_path, lambda done, total: told.append((done, total)))
    assert folder.is_relative_to(tmp_path)
    assert contents(folder) == contents(dataset)
    assert verify(folder) == ()
    assert len(TokenDataset(folder, "train")) == 25
    total = sum(path.stat().st_size for path in dataset.iterdir() if path.suffix != ".json")
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_manifest_alone_tells_what_is_there(bucket: AbstractFileSystem, dataset: Path) -> None:
    assert remote_manifest(URL) == read_manifest(dataset)


def test_what_is_there_is_not_fetched_again(
    dataset: Path, bucket: AbstractFileSystem, tmp_path: Path, fetched: list[str]
) -> None:
    folder = fetch_tokens(URL, tmp_path)
    assert len(fetched) == 5
    fetched.clear()
    assert fetch_tokens(URL, tmp_path) == folder
    assert fetched == []
    (folder / "train-00001.safetensors").write_bytes(b"cut")
    (folder / "vqgan.ckpt").unlink()
    fetch_tokens(URL, tmp_path)
    assert sorted(fetched) == ["train-00001.safetensors", "vqgan.ckpt"]
    assert contents(folder) == contents(dataset)
    fetched.clear()
    content = bytearray((folder / "val-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "val-00000.safetensors").write_bytes(content)
    repair(folder, verify(folder))
    fetch_tokens(URL, tmp_path)
    assert fetched == ["val-00000.safetensors"]
    assert contents(folder) == contents(dataset)


def test_a_fetch_that_was_interrupted_goes_on(
    dataset: Path,
    bucket: AbstractFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetched: list[str],
) -> None:
    monkeypatch.setattr(module, "_CONNECTIONS", 1)

    def dies(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_tokens(URL, tmp_path, dies)
    before = list(fetched)
    assert 0 < len(before) < 5
    [folder] = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    with pytest.raises(DataError, match="no token dataset"):
        read_manifest(folder)
    (folder / ".train-00002.safetensors.1.part").write_bytes(b"half")
    fetched.clear()
    assert fetch_tokens(URL, tmp_path) == folder
    assert not set(before) & set(fetched)
    assert contents(folder) == contents(dataset)


def test_two_processes_fetch_once(
    bucket: AbstractFileSystem, tmp_path: Path, fetched: list[str]
) -> None:
    both = [threading.Thread(target=fetch_tokens, args=(URL, tmp_path)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(fetched) == 5


def test_another_manifest_at_the_source_is_another_dataset(
    dataset: Path, bucket: AbstractFileSystem, tmp_path: Path
) -> None:
    first = fetch_tokens(URL, tmp_path)
    shorter = tmp_path / "shorter"
    shutil.copytree(dataset, shorter)
    repair(shorter, [])
    bucket.put_file(str(shorter / "manifest.json"), "/bucket/tokens/manifest.json")
    with pytest.raises(DataError, match=f"{URL}: incomplete"):
        fetch_tokens(URL, tmp_path)
    manifest = read_manifest(dataset).model_copy(update={"classes": ("cat",)})
    token_files._write_manifest(shorter, manifest)
    bucket.put_file(str(shorter / "manifest.json"), "/bucket/tokens/manifest.json")
    second = fetch_tokens(URL, tmp_path)
    assert second != first
    assert read_manifest(second).classes == ("cat",)
    assert contents(first) == contents(dataset)


@pytest.mark.parametrize("name", ["train-00001.safetensors", "vqgan.ckpt", "manifest.json"])
@pytest.mark.parametrize("kind", ["cut", "flipped", "missing"])
def test_damage_at_the_source_never_gets_a_name_here(
    dataset: Path, bucket: AbstractFileSystem, tmp_path: Path, name: str, kind: str
) -> None:
    path, content = f"/bucket/tokens/{name}", bytearray((dataset / name).read_bytes())
    if kind == "missing":
        bucket.rm(path)
    else:
        content[len(content) // 2] ^= 1
        bucket.pipe_file(path, bytes(content[:-9] if kind == "cut" else content))
    with pytest.raises(DataError) as caught:
        fetch_tokens(URL, tmp_path)
    assert f"{URL}/{name}" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.rglob(name))
    assert not list(tmp_path.rglob("*.part"))


def test_another_vqgan_at_the_source_is_refused(bucket: AbstractFileSystem, tmp_path: Path) -> None:
    other = TrainedVQGAN(vqgan(1), CLIP, 8.0, 0)
    save_vqgan(other, tmp_path / "vqgan.ckpt")
    bucket.put_file(str(tmp_path / "vqgan.ckpt"), "/bucket/tokens/vqgan.ckpt")
    with pytest.raises(DataError, match="vqgan.ckpt") as caught:
        fetch_tokens(URL, tmp_path / "cache")
    for model in (vqgan(0), vqgan(1)):
        assert model.fingerprint() in caught.value.message


def test_what_does_not_fit_is_not_begun(
    bucket: AbstractFileSystem,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetched: list[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = sum(path.stat().st_size for path in dataset.iterdir() if path.suffix != ".json")
    with pytest.raises(DataError, match=f"{needed:,} bytes.* 100 are free") as caught:
        fetch_tokens(URL, tmp_path)
    assert "TATS_CACHE" in caught.value.hint
    assert fetched == []


class Unreachable(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that answers with an error."""

    protocol = "unreachable"
    error: Exception

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (FileNotFoundError("no such bucket"), "is not there", "address"),
        (PermissionError("403"), "403", "right to read"),
        (RuntimeError("Unable to locate credentials"), "locate credentials", "log in"),
        (OSError("Name or service not known"), "service not known", "network"),
        (TimeoutError(), "TimeoutError", "network"),
    ],
)
def test_a_store_that_gives_nothing_is_named_with_the_cause(
    tmp_path: Path, error: Exception, message: str, hint: str
) -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    Unreachable.error = error
    with pytest.raises(DataError) as caught:
        fetch_tokens("unreachable://bucket/tokens", tmp_path)
    assert "unreachable://bucket/tokens/manifest.json: " in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_store_that_needs_another_package_says_which(tmp_path: Path) -> None:
    fsspec.register_implementation(
        "absent", "no_such_package.Files", errtxt="Install absentfs to read absent", clobber=True
    )
    with pytest.raises(DataError, match="absent://bucket/tokens: Install absentfs") as caught:
        fetch_tokens("absent://bucket/tokens", tmp_path)
    assert 'pip install "tatscli[remote]"' in caught.value.hint


def test_a_scheme_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere://bucket/tokens: .*nowhere"):
        fetch_tokens("nowhere://bucket/tokens", tmp_path)
