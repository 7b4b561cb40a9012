"""Files from elsewhere: found, verified, fetched whole, and the rest only where a part is here."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest

from tatscli.config.weights import FetchedName, WeightName
from tatscli.core import weights
from tatscli.core.weights import FILES, Pin, Status, fetch, locate, status, verify, weights_folder
from tatscli.errors import CheckpointError

CONTENT = bytes(range(256)) * 9000
requests: list[str] = []
"""What the server was asked for: path and range."""


class Server(BaseHTTPRequestHandler):
    """Serves one content in several ways, which the paths name."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        requests.append(f"{self.path} {asked}".strip())
        way = self.path[1:]
        content = CONTENT[:-1] if way == "bad" else CONTENT
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        if way in ("whole", "bad", "cut"):  # a server that knows no parts
            start = 0
        if way == "nothing" or start >= len(content):
            self.send_error(404 if way == "nothing" else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = 0 if way == "other" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if way == "slow":
            time.sleep(0.5)
        sent = {"cut": 5000, "breaks": 1_000_000}.get(way, len(content))
        with suppress(ConnectionError):  # a client that heard enough
            self.wfile.write(content[start : start + sent])


@pytest.fixture
def server() -> Iterator[str]:
    requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pin = Pin("git-blob", hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest())
    monkeypatch.setitem(FILES, "i3d", replace(FILES["i3d"], pin=pin))
    return weights_folder()


def serve_from(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    monkeypatch.setitem(FILES, "i3d", replace(FILES["i3d"], urls=urls))


def begin(content: bytes) -> Path:
    """Leaves what an earlier call would have left."""
    path = FILES["i3d"].path.with_name("i3d_pretrained_400.pt.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put(content: bytes) -> Path:
    path = FILES["i3d"].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_command_line_offers_every_file() -> None:
    assert list(WeightName) == list(FILES)
    assert get_args(FetchedName) == tuple(name for name, file in FILES.items() if file.urls)


def test_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_folder() == tmp_path / "cache" / "weights"
    monkeypatch.setenv("TATS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "tats" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folder() == Path.home() / ".cache" / "tats" / "weights"


@pytest.mark.parametrize(
    ("name", "option"), [("vgg16", "--perceptual-weight 0"), ("i3d", "--features random")]
)
def test_missing_file_says_what_to_do(name: str, option: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert FILES[name].filename in caught.value.message
    for help_given in (str(FILES[name].path), f"tats weights fetch {name}", option):
        assert help_given in caught.value.hint


def test_file_is_used_once_its_checksum_is_right() -> None:
    assert status("i3d") is Status.ABSENT
    path = put(CONTENT)
    assert status("i3d") is Status.VERIFIED
    assert locate("i3d") == path


def test_changed_file_is_refused_although_it_was_verified() -> None:
    put(CONTENT)
    locate("i3d")
    path = put(CONTENT[:-1] + b"!")
    assert status("i3d") is Status.WRONG
    with pytest.raises(CheckpointError, match="not the published") as caught:
        locate("i3d")
    assert str(path) in caught.value.message
    assert FILES["i3d"].pin.digest in caught.value.message


def test_unchanged_file_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(CONTENT)
    hashed = []
    measure = Pin.measure
    monkeypatch.setattr(Pin, "measure", lambda pin, at: hashed.append(at) or measure(pin, at))
    locate("i3d")
    locate("i3d")
    assert hashed == [path]


def test_sha256_pins_are_understood(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    pin = Pin("sha256", hashlib.sha256(CONTENT).hexdigest())
    assert pin.measure(tmp_path / "file") == pin.digest


def test_of_a_pin_no_more_is_compared_than_was_published(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    pin = Pin("sha256", hashlib.sha256(CONTENT).hexdigest()[:8])
    assert pin.measure(tmp_path / "file") == pin.digest
    assert str(pin) == "sha256, first 8 of 64 digits"
    assert str(FILES["vgg16"].pin) == "sha256"
    assert FILES["alexnet"].pin.digest in FILES["alexnet"].filename


def test_verifying_hashes_again_and_forgets_an_earlier_verdict() -> None:
    assert verify("i3d").status is Status.ABSENT
    path = put(CONTENT)
    assert verify("i3d").status is status("i3d") is Status.VERIFIED
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    put(b"!" + CONTENT[1:])
    os.utime(path, ns=times)
    assert status("i3d") is Status.VERIFIED  # as far as size and time tell
    found = verify("i3d")
    assert found.status is status("i3d") is Status.WRONG
    assert FILES["i3d"].pin.digest in found.detail


@pytest.mark.parametrize("name", ["lpips-vgg", "lpips-alex"])
def test_what_a_package_ships_is_verified_there(name: str) -> None:
    assert status(name) is Status.VERIFIED
    path = locate(name)
    assert "torchmetrics" in path.parts
    assert path.stat().st_size == FILES[name].size
    assert not list(path.parent.glob("*.verified"))
    with pytest.raises(CheckpointError, match="torchmetrics ships it") as caught:
        fetch(name, lambda done, total: None)
    assert "pip install" in caught.value.hint


def test_fetched_file_is_whole_and_verified(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/file")
    seen: list[tuple[int, int]] = []
    path = fetch("i3d", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert locate("i3d") == path
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    assert not list(folder.glob("*.part"))
    serve_from(monkeypatch, f"{server}/bad")
    assert fetch("i3d", lambda done, total: None) == path  # there already: no network


def test_second_address_is_tried(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(b"a wrong file is replaced")
    serve_from(monkeypatch, f"{server}/nothing", f"{server}/file")
    assert fetch("i3d", lambda done, total: None).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "reason"), [("bad", "wrong checksum"), ("nothing", "HTTP 404 Not Found")]
)
def test_anything_but_the_file_leaves_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path, served: str, reason: str
) -> None:
    serve_from(monkeypatch, f"{server}/{served}")
    with pytest.raises(CheckpointError, match=reason):
        fetch("i3d", lambda done, total: None)
    assert not list(folder.iterdir())


def test_interrupted_fetch_goes_on_where_it_was(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/file")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("i3d", interrupt)
    [part] = folder.iterdir()
    size = part.stat().st_size
    assert part.name.endswith(".part")
    assert 0 < size < len(CONTENT)
    seen: list[int] = []
    assert fetch("i3d", lambda done, total: seen.append(done)).read_bytes() == CONTENT
    assert requests == ["/file", f"/file bytes={size}-"]
    assert size < seen[0] <= seen[-1] == len(CONTENT)
    assert not part.exists()


def test_connections_that_break_are_followed_by_others(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_from(monkeypatch, f"{server}/breaks")
    assert fetch("i3d", lambda done, total: None).read_bytes() == CONTENT
    assert requests == ["/breaks", "/breaks bytes=1000000-", "/breaks bytes=2000000-"]


def test_what_a_broken_connection_brought_is_kept(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/cut")
    with pytest.raises(CheckpointError, match="ended after 5,000 of 2,304,000") as caught:
        fetch("i3d", lambda done, total: None)
    assert "5,000 bytes arrived and are kept" in caught.value.hint
    assert [path.stat().st_size for path in folder.iterdir()] == [5000]
    serve_from(monkeypatch, f"{server}/file")
    assert fetch("i3d", lambda done, total: None).read_bytes() == CONTENT
    assert requests[-1] == "/file bytes=5000-"


@pytest.mark.parametrize(
    ("begun", "way", "asked"),
    [
        (CONTENT[:1000], "whole", ["bytes=1000-"]),
        (CONTENT, "file", [f"bytes={len(CONTENT)}-"]),
        (CONTENT + b"!", "file", [f"bytes={len(CONTENT) + 1}-", ""]),
        (b"another file", "file", ["bytes=12-", ""]),
    ],
    ids=["server without parts", "all there", "too much there", "part of another file"],
)
def test_any_beginning_ends_well(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path,
    begun: bytes, way: str, asked: list[str],
) -> None:  # fmt: skip
    begin(begun)
    serve_from(monkeypatch, f"{server}/{way}")
    assert fetch("i3d", lambda done, total: None).read_bytes() == CONTENT
    assert [entry.partition(" ")[2] for entry in requests] == asked
    assert not list(folder.glob("*.part"))


def test_another_range_than_was_asked_for_is_not_taken(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = begin(CONTENT[:1000])
    serve_from(monkeypatch, f"{server}/other")
    with pytest.raises(CheckpointError, match="asked for the bytes from 1,000"):
        fetch("i3d", lambda done, total: None)
    assert part.read_bytes() == CONTENT[:1000]


def test_another_size_than_the_published_one_replaces_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = begin(CONTENT[:1000])
    file = replace(FILES["i3d"], urls=(f"{server}/bad",), size=len(CONTENT))
    monkeypatch.setitem(FILES, "i3d", file)
    with pytest.raises(CheckpointError, match="2,303,999 bytes offered, 2,304,000 expected"):
        fetch("i3d", lambda done, total: None)
    assert part.read_bytes() == CONTENT[:1000]


def test_a_disk_without_room_is_seen_before_a_byte_is_written(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/file")
    usage = shutil.disk_usage(folder.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(CheckpointError, match="2,304,000 bytes needed, 1,000,000 bytes free"):
        fetch("i3d", lambda done, total: None)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_named(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/file")
    folder.parent.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        fetch("i3d", lambda done, total: None)
    assert "TATS_CACHE" in caught.value.hint


def test_of_two_at_once_one_fetches(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_from(monkeypatch, f"{server}/slow")
    with ThreadPoolExecutor(2) as threads:
        paths = list(threads.map(lambda _: fetch("i3d", lambda done, total: None), range(2)))
    assert [path.read_bytes() for path in paths] == [CONTENT] * 2
    assert requests == ["/slow"]
    assert not list(paths[0].parent.glob("*.part"))


def test_unreachable_address_and_target_are_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    closed = "http://127.0.0.1:1/file"
    serve_from(monkeypatch, closed)
    with pytest.raises(CheckpointError) as caught:
        fetch("i3d", lambda done, total: None)
    assert f"{closed}: Connection refused" in caught.value.message
    assert f"put it at {folder / FILES['i3d'].filename}" in caught.value.hint
    assert "TATS_CACHE" in caught.value.hint
    assert not list(folder.iterdir())


def test_listing_needs_no_torch() -> None:
    code = f"import {weights.__name__}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
