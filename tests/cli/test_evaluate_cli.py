"""`tats eval fvd`: what goes where, and the codes with which it ends."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tiny_app import CheapNetwork

from tatscli.app import evaluate
from tatscli.app.evaluate import FVDResult
from tatscli.config.words import with_error

GIVEN = ("--features", "random", "--frames", 9, "--workers", 0, "--device", "cpu")


@pytest.fixture
def sides(tmp_path: Path) -> Path:
    """Two files of five videos, and some of two that are of no use."""
    rng = np.random.default_rng(0)
    for name in ("real", "fake"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (5, 9, 8, 8, 3), np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((5, 9, 16, 16, 3), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((5, 9, 8, 8), np.uint8))
    np.save(tmp_path / "one.npy", np.zeros((1, 9, 8, 8, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("no table of videos\n")
    return tmp_path


def test_json_is_all_that_stdout_gets_and_two_of_it_compare(
    tats, sides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Network", CheapNetwork)
    outcome = tats("eval", "fvd", "real.npy", "fake.npy", *GIVEN, "--json", "--quiet")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert list(found) == [field.name for field in fields(FVDResult)]
    assert (found["measure"], found["schema"]) == ("random-feature distance", "tats.fvd/1")
    assert outcome.err == "".join(f"warning: {text}\n" for text in found["warnings"])

    table = tats("eval", "fvd", "real.npy", "fake.npy", *GIVEN)
    assert with_error(found["value"], found["standard_error"]) in table.out
    assert found["signature"] in table.out
    assert (
        "features 10/10 videos"
        in tats("eval", "fvd", "real.npy", "fake.npy", *GIVEN, "--no-cache").err
    )

    rows = json.loads(
        tats("eval", "fvd", "real.npy", "fake.npy", *GIVEN, "--all-protocols", "--json").out
    )
    assert [row["protocol"] for row in rows][:2] == ["fvd", "tats"]
    assert rows[0]["value"] == pytest.approx(found["value"], rel=1e-9)
    (sides / "a.json").write_text(outcome.out)
    (sides / "b.json").write_text(json.dumps(rows))
    (sides / "c.json").write_text(json.dumps(rows[1]))
    same = tats("eval", "compare", "a.json", "b.json", "--json")
    assert same.code == 0 and json.loads(same.out)[0]["difference"] == pytest.approx(0, abs=1e-9)
    other = tats("eval", "compare", "a.json", "c.json")
    assert (other.code, other.out) == (1, "")
    assert "protocol fvd and tats; eps 0.001 and 1e-05; resize tf1 and half-pixel" in other.err


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (["empty", "fake.npy"], 1, "no videos and no folders of frames in it"),
        (["real.npy", "large.npy"], 1, "0 of real.npy is 8x8, 0 of large.npy is 16x16"),
        (["real.npy", "flat.npy"], 1, "uint8 (5, 9, 8, 8), not 5 axes of videos"),
        (["real.npy", "one.npy"], 1, "at least 2 videos on each side, got 5 and 1"),
        (["text.csv", "fake.npy"], 1, "no column path"),
        (["real.npy", "fake.npy", "--frames", 10], 1, "none of its 5 videos is long enough"),
        (["real.npy", "fake.npy", "--frames", 8], 2, "--frames: the network (I3D) needs 9 frames"),
        (["real.npy", "fake.npy", "--limit", 1], 2, "--limit: a distance needs at least 2 videos"),
        (["real.npy", "fake.npy", "--protocol", "fid"], 2, "--protocol"),
        (["real.npy", "fake.npy", "--all-protocols", "--eps", 1], 2, "leave out what defines one"),
        (["real.npy", "fake.npy", "--features", "i3d"], 1, "i3d_pretrained_400.pt is missing"),
    ],
)
def test_mistakes_end_with_a_code_a_message_and_nothing_on_stdout(
    tats, sides: Path, given: list, code: int, told: str
) -> None:
    outcome = tats("eval", "fvd", *GIVEN, *given, "--json")
    assert (outcome.code, outcome.out) == (code, "")
    assert told in outcome.err
    assert "Traceback" not in outcome.err


def test_the_self_test_says_the_one_command_that_it_needs(tats) -> None:
    outcome = tats("eval", "fvd", "--self-test")
    assert (outcome.code, outcome.out) == (1, "")
    assert "hint: run tats weights fetch i3d; or put the file at " in outcome.err
    assert "without" not in outcome.err
    other = tats("eval", "fvd", "--self-test", "--features", "random")
    assert other.err.endswith("--self-test --frames 10 to 30, without --features\n")


def test_files_of_features_know_what_they_are_of(tats, sides: Path) -> None:
    made = tats("eval", "features", "real.npy", "--out", "real.npz", *GIVEN, "--json")
    assert made.code == 0 and json.loads(made.out)["videos"] == 5
    for more, told in (
        (["--seed", 1], "real.npz has features of random-"),
        (["--protocol", "tats"], "eps 0.001, asked for 1e-05; resize tf1, asked for half-pixel"),
        (["--all-protocols"], "features of another definition"),
    ):
        outcome = tats("eval", "fvd", "real.npz", "fake.npy", *GIVEN, *more)
        assert (outcome.code, outcome.out) == (1, "")
        assert told in outcome.err
        assert "features 5/5" not in outcome.err  # said before the work, not after it
    wrong = tats("eval", "features", "real.npy", "--out", "real.json", *GIVEN)
    assert wrong.code == 1 and "is no .npz file" in wrong.err
