"""tats doctor at the terminal."""

import json

import pytest

from tatscli.app.doctor import Finding

FOUND = [
    Finding("python", "ok", "tats 1"),
    Finding("shm", "warning", "64 MB [free]", "--shm-size 8g"),
]
BROKEN = Finding("torch", "error", "it is broken", "mend it")


@pytest.fixture
def found(monkeypatch):
    def replace(findings):
        monkeypatch.setattr("tatscli.app.doctor.diagnose", lambda *_: findings)

    return replace


def test_where_nobody_looks_each_finding_is_a_line(tats, found):
    found(FOUND)
    outcome = tats("doctor")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "ok      python       tats 1",
        "warning shm          64 MB [free]; fix: --shm-size 8g",
    ]
    assert outcome.err == "note: 1 ok, 1 warning, 0 errors\n"


def test_an_error_is_exit_code_one_with_what_mends_it(tats, found):
    found([*FOUND, BROKEN])
    outcome = tats("doctor", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)[2] == {
        "check": "torch",
        "level": "error",
        "text": "it is broken",
        "fix": "mend it",
    }
    assert outcome.err == (
        "error: commands will fail on this machine because of torch\nhint: torch: mend it\n"
    )


def test_a_terminal_gets_colours_and_fixes_on_lines_of_their_own(tats, found, monkeypatch):
    found([*FOUND, BROKEN])
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = tats("doctor").out.splitlines()
    assert len(lines) == 5
    assert "\x1b[32mok" in lines[0]
    assert "fix: --shm-size 8g" in lines[2]
    assert "\x1b[1;31merror" in lines[3]


def test_this_machine_really(tats):
    outcome = tats("doctor", "--json", "--out", "runs")
    names = [item["check"] for item in json.loads(outcome.out)]
    assert list(dict.fromkeys(names)) == [
        *["python", "torch", "torchvision", "lightning", "gpu", "arithmetic", "video", "loader"],
        *["shm", "memory", "cores", "files", "cache", "runs", "weights", "launch"],
    ]
    assert outcome.code == any(item["level"] == "error" for item in json.loads(outcome.out))
