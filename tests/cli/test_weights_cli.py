"""`tats weights`: what it shows, and the codes with which it ends."""

import json
from pathlib import Path

from tatscli.core.weights import FILES


def test_absent_files_are_no_error_unless_they_are_named(tats):
    every = tats("weights", "verify", "--json")
    assert every.code == 0
    found = {row["name"]: row for row in json.loads(every.out)}
    assert list(found) == list(FILES)
    assert found["vgg16"]["status"] == "absent"
    assert found["lpips-vgg"]["status"] == "verified"
    named = tats("weights", "verify", "i3d", "lpips-vgg")
    assert named.code == 1
    assert "absent: i3d\n" in named.err
    assert tats("weights", "verify", "lpips-vgg", "lpips-alex").code == 0


def test_a_wrong_file_is_an_error_after_what_was_found(tats, tmp_path: Path):
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    for name in ("alexnet-owt-7be5be79.pth", "i3d_torchscript.pt"):
        (folder / name).write_bytes(b"something else")
    outcome = tats("weights", "verify")
    assert outcome.code == 1
    assert "wrong: i3d-torchscript, alexnet\n" in outcome.err
    assert "expected 7be5be79" in outcome.out
    assert "Traceback" not in outcome.err


def test_the_list_says_what_each_file_is_checked_by(tats):
    outcome = tats("weights", "list")
    assert outcome.code == 0
    assert "sha256, first 8 of 64 digits" in outcome.out
    assert str(Path("cache", "weights")) in outcome.err
    rows = json.loads(tats("weights", "list", "--json").out)
    assert [Path(row["path"]).name for row in rows] == [file.filename for file in FILES.values()]
