"""What is wrong with paths is told before torch is imported, by every command that takes some."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tatscli

LINES = {
    "vqgan train --data videos --out taken": "taken exists and is not empty",
    "vqgan train --data gone": "gone: no such folder",
    "vqgan train --data videos --preset tiny --init gone": "gone does not exist",
    "vqgan train --data videos": "vgg16-397923af.pth is missing",
    "vqgan train --data videos --resume begun": "begun has saved no checkpoint yet",
    "vqgan train --data gone --resume auto --out begun": "gone: no such folder",
    "gpt train --data gone.csv --vqgan model": "gone.csv: no such file",
    "gpt train --data videos --vqgan gone": "gone does not exist",
    "gpt train --data videos --vqgan model --out taken": "taken exists and is not empty",
    "encode --data gone --vqgan model --out new": "gone: no such folder",
    "encode --data videos --vqgan taken --out new": "taken holds no checkpoint",
    "decode tokens --out taken": "taken exists and is not empty",
    "sample short --gpt gone": "gone does not exist",
    "sample long": "--gpt is not given, and there is no GPT run in runs",
    "sample long --gpt model --infill-gpt gone": "gone does not exist",
    "sample short --gpt model --name taken": "samples/taken exists and is not empty",
    "sample short --gpt model --context gone": "gone does not exist",
    "sample short --gpt model --compute-fvd --data gone": "gone does not exist",
    "vqgan eval gone --time": "gone does not exist",
    "vqgan eval model --data gone": "gone: no such folder",
    "vqgan eval model --time --out taken": "taken exists and is not empty",
    "eval fvd videos gone": "gone does not exist",
    "eval fvd videos samples/taken": "i3d_pretrained_400.pt is missing",
    "eval features videos --out real.npz": "i3d_pretrained_400.pt is missing",
    "data check gone": "gone: no such folder",
}
"""Calls, and what they are told."""

CALLS = """
import contextlib, io, json, sys
from tatscli.cli.main import main
told = {}
for line in sys.argv[1:]:
    sys.argv = ["tats", *line.split()]
    with contextlib.redirect_stderr(io.StringIO()) as screen, contextlib.suppress(SystemExit):
        main()
    told[line] = [screen.getvalue(), "torch" in sys.modules]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each call is told, and whether torch had been imported by then."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("videos", "samples/taken", "taken", "begun", "model/checkpoints"):
        (place / folder).mkdir(parents=True)
    for file in ("samples/taken/a.mp4", "taken/notes.txt", "model/checkpoints/last.ckpt"):
        (place / file).write_bytes(b"x")
    (place / "begun" / "config.yaml").write_text("data:\n  data: videos\n")
    done = subprocess.run(
        [sys.executable, "-c", CALLS, *LINES],
        capture_output=True,
        text=True,
        cwd=place,
        env={
            "PATH": "",
            "PYTHONPATH": str(Path(tatscli.__file__).parents[1]),
            "TATS_CACHE": str(place / "cache"),
        },
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", LINES)
def test_what_is_wrong_with_a_path_is_told_before_torch_is_there(told, line):
    message, is_loaded = told[line]
    assert message.startswith(f"error: {LINES[line]}")
    assert "hint: " in message
    assert not is_loaded


@pytest.fixture
def made(tmp_path):
    """What training and sampling leave behind, with a video in each."""
    (tmp_path / "runs" / "a" / "samples").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text(json.dumps({"kind": "vqgan"}))
    (tmp_path / "runs" / "a" / "config.yaml").write_text("data:\n  data: clips\n")
    (tmp_path / "runs" / "a" / "samples" / "reconstructions.mp4").write_bytes(b"")
    listing = {"samples": [{"file": "0.mp4"}]}
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "samples.json").write_text(json.dumps(listing))
    (tmp_path / "long" / "0.mp4").write_bytes(b"")


@pytest.mark.parametrize(
    "line",
    ["vqgan train --data", "gpt train --vqgan runs/a --data", "encode --vqgan runs/a --data",
     "data check"],
)  # fmt: skip
def test_runs_and_samples_are_no_datasets(tats, made, line):
    run = tats(*line.split(), "runs/a")
    assert (run.code, run.out) == (1, "")
    assert "error: runs/a is a run of tats vqgan train, not a dataset" in run.err
    assert "tats encode --data clips --vqgan runs/a" in run.err
    samples = tats(*line.split(), "long")
    assert "error: long holds samples that tats sample wrote" in samples.err
    assert "tats eval fvd REAL long" in samples.err


def test_other_files_of_these_names_do_no_harm(tats, made):
    Path("long/samples.json").write_text('{"mine": 1}')
    assert "0.mp4: " in tats("data", "check", "long").err
