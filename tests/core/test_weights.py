"""Files from elsewhere: found, verified, fetched whole or not at all."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest

from tatscli.config.weights import WeightName
from tatscli.core import weights
from tatscli.core.weights import FILES, Pin, Status, fetch, locate, status, weights_folder
from tatscli.errors import CheckpointError

CONTENT = bytes(range(256)) * 9000


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a log; `cut` promises more than it sends."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:5000])
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "good").write_bytes(CONTENT)
    (tmp_path / "served" / "bad").write_bytes(CONTENT[:-1])
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
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


def put(content: bytes) -> Path:
    path = FILES["i3d"].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_command_line_offers_every_file() -> None:
    assert get_args(WeightName) == tuple(FILES)


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


def test_fetched_file_is_whole_and_verified(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/good")
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
    serve_from(monkeypatch, f"{server}/nothing", f"{server}/good")
    assert fetch("i3d", lambda done, total: None).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "reason"),
    [("bad", "wrong checksum"), ("cut", "ended after 5000 of 2304000"), ("nothing", "404")],
)
def test_anything_but_the_file_leaves_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path, served: str, reason: str
) -> None:
    serve_from(monkeypatch, f"{server}/{served}")
    with pytest.raises(CheckpointError, match=reason):
        fetch("i3d", lambda done, total: None)
    assert not list(folder.iterdir())


def test_interrupted_fetch_leaves_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    serve_from(monkeypatch, f"{server}/good")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("i3d", interrupt)
    assert not list(folder.iterdir())


def test_unreachable_address_and_target_are_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    closed = "http://127.0.0.1:1/file"
    serve_from(monkeypatch, closed)
    with pytest.raises(CheckpointError) as caught:
        fetch("i3d", lambda done, total: None)
    assert closed in caught.value.message
    assert str(folder / FILES["i3d"].filename) in caught.value.message
    assert "TATS_CACHE" in caught.value.hint


def test_listing_needs_no_torch() -> None:
    code = f"import {weights.__name__}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
