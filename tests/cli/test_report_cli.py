"""``tats report`` as it is typed."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that has just started."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("train: {max_steps: 10}\n")
    (folder / "run.json").write_text(json.dumps({"kind": "vqgan", "status": "running"}))
    return folder


def test_a_page_is_written_and_named(tats, run):
    outcome = tats("report", "runs/one")
    assert outcome.code == 0
    assert "runs/one/report.html" in outcome.out
    assert (run / "report.html").is_file()
    assert "open runs/one/report.html in a browser" in outcome.err


def test_the_result_as_json_says_what_is_on_the_page(tats, run, tmp_path):
    found = {"measure": "fvd", "value": 1.5, "standard_error": None, "signature": "tats:v1"}
    (tmp_path / "fvd.json").write_text(json.dumps(found))
    outcome = tats("report", "runs", "--out", "x.html", "--metrics", "fvd.json", "--json")
    found = json.loads(outcome.out)
    assert (found["page"], found["runs"], found["left_out"]) == ("x.html", 1, [])
    assert "1.5" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "holds no run and no samples"),
        (["missing"], "does not exist"),
        (["runs/one", "--out", "page.txt"], "ends in .html"),
        (["runs/one", "--metrics", "missing.json"], "--json > missing.json"),
        (["runs/one", "--out", "taken.html"], "taken.html cannot be written"),
    ],
)
def test_what_is_wrong_is_said_with_what_mends_it(tats, run, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.html").mkdir()
    outcome = tats("report", *arguments)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err
