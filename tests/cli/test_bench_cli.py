"""tats bench on the command line."""

import json
from pathlib import Path

import pytest

from tatscli.app import bench as use_case
from tatscli.config.bench import BenchConfig
from tatscli.core.limits import Machine

QUICK = ("--size", "tiny", "--device", "cpu", "--seconds", 0.001)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes no time to measure."""
    found = Machine(
        device="cpu",
        name="a computer",
        cores=2,
        threads=2,
        precision="float32",
        peak=2e11,
        float32_peak=2e11,
        bandwidth=3e10,
        torch="2",
        python="3",
        date="2026-01-01T00:00:00+00:00",
    )
    monkeypatch.setattr(use_case, "measure_machine", lambda *_: found)


def measured(tats, file: str, *arguments: object) -> dict:
    done = tats("bench", *QUICK, "--json", *arguments)
    assert done.code == 0, done.err
    Path(file).write_text(done.out)
    return json.loads(done.out)


def test_people_see_limits_rate_and_share(tats) -> None:
    done = tats("bench", "tokens", *QUICK)
    assert done.code == 0
    first, second, _, heading, row, _, work = done.out.splitlines()
    assert first.startswith("a computer (cpu), 2 cores, 2 threads, torch 2, Python 3")
    assert second == "float32: peak 200 G operations/s, bandwidth 30 GB/s"
    assert heading.split() == [
        *["operations", "bytes", "binds", "best", "median", "rate", "of", "the", "limit"]
    ]
    assert row.startswith("tokens ")
    assert " bytes " in row
    assert "clips/s" in row
    assert row.endswith("%")
    assert work == "tokens  1024 clips of 4x8x8 codes in batches of 32, one process"
    assert "best run" in done.err


def test_programs_see_one_object(tats) -> None:
    found = measured(tats, "a.json", "tokens", "encode")
    assert found["machine"]["name"] == "a computer"
    assert found["settings"] == {
        "size": "tiny",
        "precision": "float32",
        "batch_size": 4,
        "cuda_graphs": False,
        "seconds": 0.001,
    }
    assert [stage["stage"] for stage in found["stages"]] == ["encode", "tokens"]


def test_two_results_are_compared(tats) -> None:
    first = measured(tats, "a.json", "tokens", "encode")
    second = json.loads(json.dumps(first))
    [encode, tokens] = second["stages"]
    encode["rate"] *= 2
    tokens["work"] = "something else"
    Path("b.json").write_text(json.dumps(second))
    done = tats("bench", "--compare", "a.json", "b.json")
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line}
    assert rows["encode"][-1] == "2"
    assert rows["tokens"][-1] == "-"
    assert "tokens: other work" in done.err
    [row, other] = json.loads(tats("bench", "--compare", "a.json", "b.json", "--json").out)
    assert (row["stage"], row["ratio"], row["unit"]) == ("encode", 2.0, "clips")
    assert other["ratio"] is None


def test_a_stage_that_one_result_lacks_has_no_ratio(tats) -> None:
    first = measured(tats, "a.json", "tokens", "encode")
    first["stages"][0] |= {"rate": None, "work": "", "unit": "", "skipped": "no memory"}
    Path("b.json").write_text(json.dumps(first))
    first["stages"] = first["stages"][:1]
    Path("c.json").write_text(json.dumps(first))
    rows = json.loads(tats("bench", "--compare", "a.json", "b.json", "--json").out)
    assert [(row["ratio"], row["note"]) for row in rows] == [(None, "no memory"), (1.0, "")]
    rows = json.loads(tats("bench", "--compare", "a.json", "c.json", "--json").out)
    assert [row["note"] for row in rows] == ["no memory", "not in both"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("size", "published", "with --size tiny, b.json with published"),
        ("precision", "bf16", "with --precision float32, b.json with bf16"),
        ("batch_size", 8, "with --batch-size 4, b.json with 8"),
    ],
)
def test_results_of_other_settings_are_not_compared(tats, name, value, told) -> None:
    found = measured(tats, "a.json", "tokens")
    found["settings"][name] = value
    Path("b.json").write_text(json.dumps(found))
    done = tats("bench", "--compare", "a.json", "b.json")
    assert (done.code, done.out) == (1, "")
    assert told in done.err
    assert "hint: measure one of them again" in done.err


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"machine": {}}'])
def test_what_is_no_result_is_named(tats, content) -> None:
    measured(tats, "a.json", "tokens")
    if content is not None:
        Path("b.json").write_text(content)
    done = tats("bench", "--compare", "a.json", "b.json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: b.json")
    assert "hint: write one with: tats bench --json > FILE" in done.err


def test_an_unknown_stage_is_a_usage_error_that_lists_the_stages(tats) -> None:
    done = tats("bench", "tokens", "nonsense")
    assert (done.code, done.out) == (2, "")
    assert "'nonsense' is no stage" in done.err
    assert "read, vqgan-step, encode" in done.err


def test_comparing_measures_nothing(tats) -> None:
    done = tats("bench", "tokens", "--compare", "a.json", "b.json")
    assert done.code == 2
    assert "leave the stages out" in done.err


def test_stages_complete(tats, monkeypatch) -> None:
    monkeypatch.setenv("_TATS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tats bench sample")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert tats().out.split() == ["sample-short", "sample-long"]


def test_settings_reach_the_benchmark(tats, receive) -> None:
    [] = received = receive("tatscli.app.bench.bench")
    tats("bench", "i3d", "read", "--precision", "bf16", "--batch_size", 8, "--data", "x.mp4")
    [(stages, config, _)] = received
    assert stages == ["read", "i3d"]
    assert isinstance(config, BenchConfig)
    options = config.bench
    assert (options.size, options.precision, options.batch_size) == ("published", "bf16", 8)
    assert (options.device, options.seconds, str(options.data)) == ("auto", 5.0, "x.mp4")
