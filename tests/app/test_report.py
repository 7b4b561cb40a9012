"""The report: what it shows of runs and samples, and what it makes of broken ones."""

import base64
import csv
import io
import json
import re
import shutil
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_app import Notes, short_config

from tatscli.app.report import build, folders
from tatscli.app.report import page as page_parts
from tatscli.app.report.build import report
from tatscli.app.report.curves import charts, thinned
from tatscli.app.results import read_results
from tatscli.app.run import read_figures
from tatscli.app.sample import short
from tatscli.errors import DataError, RunError

NAME = "<script>alert('x')</script>&\"quotes\""


class Read(HTMLParser):
    """What a browser would see: tags, texts, and data in JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.data: list[dict] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("script", "style") else self._in

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "script" and self.tags[-1][1].get("type") == "application/json":
            self.data.append(json.loads(data))
        elif not self._in:
            self.text += f"{data}\n"

    def headings(self, level):
        return [attrs for tag, attrs in self.tags if tag == f"h{level}"]

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


def read(page: Path) -> Read:
    return Read(page.read_text(encoding="utf-8"))


@pytest.fixture
def run(vqgan_run, tmp_path) -> Path:
    """A VQGAN run to break."""
    return Path(shutil.copytree(vqgan_run, tmp_path / "mine"))


@pytest.fixture(scope="session")
def samples(gpt_run, shared) -> Path:
    return short(short_config(gpt_run, shared / "samples", sample={"name": "drawn"})).folder


def result(**values) -> dict:
    """What ``tats eval fvd --json`` prints, as far as it tells one."""
    least = {"measure": "fvd", "value": 1.5, "standard_error": None, "signature": "tats:v1"}
    return least | values


def edit(run: Path, **values) -> None:
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_has_all_its_parts(run):
    found = report([run])
    assert found.page == run / "report.html"
    assert (found.runs, found.sample_folders, found.left_out) == (1, 0, [])
    page = read(found.page)
    assert page.sections() == [
        "summary",
        "verdicts",
        "curves",
        "reconstructions",
        "codes",
        "settings",
    ]
    assert "3 of 3" in page.text
    assert "finished" in page.text
    assert len(page.headings(1)) == 1


def test_the_parameters_of_a_run_are_recorded_and_shown(run):
    parameters = json.loads((run / "run.json").read_text())["parameters"]
    assert parameters > 0
    assert f"{parameters:,}" in read(report([run]).page).text


def test_every_metric_is_drawn_with_every_value(run):
    [data] = read(report([run]).page).data
    drawn = {
        (series["part"], tuple(series["x"]), tuple(series["y"]))
        for chart in data["charts"]
        for series in chart["series"]
    }
    expected = set()
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for name in {row["metric"] for row in rows}:
        mine = [row for row in rows if row["metric"] == name]
        xs, ys = zip(*((int(r["step"]) + 1, float(r["value"])) for r in mine), strict=True)
        expected.add((name.split("/")[0], xs, ys))
    assert drawn == expected


def test_training_and_validation_of_one_name_share_a_chart(run):
    found = charts([read_figures(run / "metrics.csv")])
    [l1] = [chart for chart in found if chart.name == "l1"]
    assert [curve.part for curve in l1.curves] == ["train", "val"]


def test_runs_are_laid_over_each_other_and_their_settings_compared(vqgan_run, other_vqgan_run):
    found = report([vqgan_run, other_vqgan_run], vqgan_run.parent / "both.html")
    page = read(found.page)
    [data] = page.data
    assert data["runs"] == ["vqgan", "other"]
    assert {s["run"] for chart in data["charts"] for s in chart["series"]} == {0, 1}
    cells = page.text[page.text.index("What differs") : page.text.index("All settings")].split()
    assert {"train.seed", "train.max_steps"} <= set(cells)
    assert not {"train.out", "model.codes"} & set(cells)


def test_stages_do_not_share_charts(vqgan_run, gpt_run):
    page = read(report([vqgan_run, gpt_run], vqgan_run.parent / "stages.html").page)
    assert [data["runs"] for data in page.data] == [["vqgan"], ["gpt"]]
    assert "samples-while-training" in page.sections()


def test_samples_play_with_what_they_were_asked_for(samples):
    page = read(report([samples], samples.parent / "samples.html").page)
    videos = [attrs for tag, attrs in page.tags if tag == "video"]
    assert [v["title"] for v in videos] == [
        "The first 3 samples: circle; square; circle",
        "sample 0: circle",
        "sample 1: square",
        "sample 2: circle",
    ]
    assert all({"muted", "loop", "playsinline"} <= set(v) and "autoplay" not in v for v in videos)
    assert "temperature" in page.text


def test_a_folder_of_runs_and_samples_is_all_of_them(vqgan_run, samples, gpt_run, tmp_path):
    for folder in (vqgan_run, gpt_run):
        shutil.copytree(folder, tmp_path / "demo" / folder.name)
    shutil.copytree(samples, tmp_path / "demo" / "samples" / "short")
    found = report([tmp_path / "demo"])
    assert (found.runs, found.sample_folders) == (2, 1)
    assert found.page == tmp_path / "demo" / "report.html"


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_a_run_that_did_not_finish_says_so(run, status):
    edit(run, status=status, error="loss is not finite at step 3" if status == "failed" else None)
    page = read(report([run]).page)
    assert status in page.text
    assert ("not finite at step 3" in page.text) == (status == "failed")
    assert ("still going on" in page.text) == (status == "running")


def test_a_run_that_was_continued_is_shown_whole(run):
    began = datetime(2026, 3, 1, 9, 0).astimezone()

    def session(hour, minutes, before, **facts):
        start = began + timedelta(hours=hour)
        times = {"started": start, "ended": start + timedelta(minutes=minutes)}
        facts |= {name: moment.isoformat() for name, moment in times.items()}
        return facts | {"steps_before": before, "command": ["tats", "vqgan", f"of {hour}"]}

    earlier = [session(0, 30, 0, status="stopped"), session(5, 2, 1, status="killed")]
    edit(run, sessions=earlier, **session(8, 10, 1))
    page = read(report([run]).page)
    assert "1 Mar 2026, 09:00" in page.text
    assert "42 min 0 s in 3 sessions" in page.text
    cells = page.text[page.text.index("Sessions") : page.text.index("Commands")].split("\n")
    assert [c for c in cells if c in ("1", "none", "2 to 3")] == ["1", "none", "2 to 3"]
    assert [c for c in cells if c in ("stopped", "killed", "finished")] == [
        "stopped", "killed", "finished",
    ]  # fmt: skip
    for hour in (0, 5, 8):
        assert f"tats vqgan 'of {hour}'" in page.text
    edit(run, sessions="lost")
    assert "10 min 0 s\n" in read(report([run]).page).text


def test_a_run_without_metrics_or_pictures_yet_has_a_page(run):
    (run / "metrics.csv").unlink()
    shutil.rmtree(run / "samples")
    edit(run, status="running", ended=None, steps=None)
    page = read(report([run]).page)
    assert "No metrics yet" in page.text
    assert page.sections() == ["summary", "verdicts", "curves", "settings"]


def test_a_line_cut_off_and_values_that_are_no_numbers_are_gaps(run):
    (run / "metrics.csv").write_text("step,metric,value\n0,train/l1,nan\n1,train/l1,0.5\n2,trai")
    [data] = read(report([run]).page).data
    [chart] = data["charts"]
    assert chart["series"] == [{"run": 0, "part": "train", "x": [1, 2], "y": [None, 0.5]}]


@pytest.mark.parametrize("content", ["", "[]", '{"machine": 3, "data": [], "started": 7}'])
def test_a_damaged_record_costs_only_what_it_held(run, content):
    (run / "run.json").write_text(content)
    page = read(report([run]).page)
    assert "unknown" in page.text
    assert "reconstructions" in page.sections()


def test_a_damaged_config_costs_only_what_it_held(run):
    (run / "config.yaml").write_text("a: [")
    notes = Notes()
    page = read(report([run], reporter=notes).page)
    assert "settings" not in page.sections()
    assert "not valid YAML" in notes.warnings[0]


def test_a_damaged_picture_is_left_out_and_named(run):
    video = sorted(run.glob("samples/*.mp4"))[-1]
    video.write_bytes(b"nothing")
    found = report([run])
    assert len(found.left_out) == 1
    assert str(video.name) in found.left_out[0]
    assert "reconstructions" in read(found.page).sections()


def test_names_and_texts_are_only_text(run, samples, tmp_path, monkeypatch):
    evil = run.rename(tmp_path / NAME.replace("/", "|"))
    edit(evil, command=["tats", NAME], error=NAME, status="failed")
    (evil / "metrics.csv").write_text(f'step,metric,value\n0,"train/{NAME}</script>",1\n')
    (evil / "fvd.json").write_text(json.dumps(result(measure=NAME, signature=NAME) | {NAME: NAME}))
    drawn = Path(shutil.copytree(samples, tmp_path / "drawn"))
    listing = drawn / "samples.json"
    content = json.loads(listing.read_text())
    content["samples"][0]["label"] = NAME
    listing.write_text(json.dumps(content))
    said = verdict("bad", subject=NAME, text=NAME, advice=NAME)
    monkeypatch.setattr(build, "diagnose", said.diagnose)
    found = report([evil, drawn], tmp_path / "page.html")
    page = read(found.page)
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json"}, {}]
    assert page.text.count("alert('x')") > 8
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]


def test_the_page_refers_to_nothing_and_forbids_all_but_its_script(run):
    found = report([run])
    page, html = read(found.page), found.page.read_text(encoding="utf-8")
    refs = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "data", "action")]
    assert refs
    assert all(ref.startswith(("data:", "#")) for ref in refs)
    assert "url(" not in html
    assert "@import" not in html
    [policy] = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_pictures_have_words(run, samples):
    page = read(report([run, samples]).page)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "video")


def verdict(level, **texts):
    given = {"subject": "codes", "text": "half", "figure": 0.5, "advice": "more"} | texts
    found = SimpleNamespace(level=level, **given)
    return SimpleNamespace(diagnose=lambda run: [verdict_of_good, found])


verdict_of_good = SimpleNamespace(subject="loss", level="good", text="falls", figure="", advice="")


def test_verdicts_are_shown_worst_first(run, monkeypatch):
    monkeypatch.setattr(build, "diagnose", verdict("bad").diagnose)
    page = read(report([run]).page)
    assert "verdicts" in page.sections()
    assert re.search(r"Bad\s*codes\s*half\s*more\s*Good\s*loss", page.text)


def test_a_run_that_cannot_be_judged_is_shown_without_verdicts(run, monkeypatch):
    def refuse(run):
        raise RunError("metrics.csv, line 7: 'x' is no figure")

    monkeypatch.setattr(build, "diagnose", refuse)
    notes = Notes()
    assert "verdicts" not in read(report([run], reporter=notes).page).sections()
    assert notes.warnings == ["no verdicts: metrics.csv, line 7: 'x' is no figure"]


def test_no_verdicts_no_section(run, monkeypatch):
    monkeypatch.setattr(build, "diagnose", lambda run: [])
    assert "verdicts" not in read(report([run]).page).sections()


def test_evaluations_are_shown_from_the_folder_and_from_where_they_are_named(run, tmp_path):
    signature = "fvd|frames:16|tats:0.1"
    found = {
        "measure": "fvd", "value": 123.4, "standard_error": 4.56, "signature": signature,
        "skipped": [], "warnings": ["few videos", "two rates"], "sizes": [{"96x72": 24}],
        "frame_rates": [25, 25], "dead": list(range(700, 1713)),
    }  # fmt: skip
    (run / "fvd.json").write_text(json.dumps(found))
    given = tmp_path / "eval.json"
    scores = {
        "psnr_db": 21.5, "codes": 16, "usage": {"perplexity_by_place": [[1.5] * 8] * 8},
        "measures": {"l1": {"mean": 0.12345, "standard_error": 0.002, "lowest": 0.1}},
        "distance": {"kernel": 1.72796, "kernel_standard_error": 1.04, "value": 3},
    }  # fmt: skip
    given.write_text(json.dumps({"vqgan": "runs/v", "reconstruction": scores, "time": None}))
    page = read(report([run], metrics=[given]).page)
    assert "metrics" in page.sections()
    for shown in ("123.4 ± 4.6", "few videos; two rates", "96x72: 24", "25 25", "1,013 values"):
        assert shown in page.text
    assert "1700 1701" not in page.text
    for shown in (signature, "reconstruction: psnr db", "21.5", "0.1235 ± 0.0020", "1.7 ± 1.0",
                  "64 values"):  # fmt: skip
        assert shown in page.text


def test_the_distance_of_samples_is_a_result(tmp_path):
    distance = {"measure": "fvd", "value": 1, "standard_error": None, "signature": "fvd|n:2"}
    file = tmp_path / "samples.json"
    file.write_text(json.dumps({"folder": "samples/long", "fvd": distance}))
    [found] = read_results(file)
    assert found.values == distance


def test_what_is_no_result_of_an_evaluation_is_refused_or_left_out(run, tmp_path):
    (run / "notes.json").write_text("[1]")
    notes = Notes()
    report([run], reporter=notes)
    assert "notes.json holds no result of an evaluation" in notes.notes[0]
    for name, target in (
        ("notes.json", "RESULT.json"),
        ("missing.json", run / "missing.json"),
        ("metrics.csv", "RESULT.json"),
        ("run.json", "RESULT.json"),
    ):
        with pytest.raises(DataError, match=re.escape(str(run / name))) as caught:
            report([run], metrics=[run / name])
        for command in ("eval fvd REAL FAKE", "eval classes REAL FAKE", "vqgan eval CKPT"):
            assert f"tats {command}" in caught.value.hint
        assert caught.value.hint.endswith(f"--json > {target}")


def test_results_of_all_protocols_are_shown_each(run, tmp_path):
    given = tmp_path / "all.json"
    given.write_text(json.dumps([result(protocol=name) for name in ("stylegan-v", "videogpt")]))
    page = read(report([run], metrics=[given]).page)
    assert {"stylegan-v", "videogpt"} <= set(page.text.split())


def test_a_wrong_folder_is_an_error_with_a_hint(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for wrong, said in (
        (tmp_path / "empty", "holds no run and no samples"),
        (tmp_path / "missing", "does not exist"),
        (run / "config.yaml", "is a file"),
    ):
        with pytest.raises(RunError, match=said) as caught:
            report([wrong])
        assert "tats sample" in caught.value.hint


def test_only_a_page_is_overwritten(run):
    before = (run / "config.yaml").read_text()
    with pytest.raises(RunError, match="names no page"):
        report([run], run / "config.yaml")
    assert (run / "config.yaml").read_text() == before
    report([run])
    assert report([run]).page.is_file()
    (run / "report.html").write_text("<p>mine</p>")
    with pytest.raises(RunError, match="no report wrote it") as caught:
        report([run])
    assert "--out" in caught.value.hint
    assert (run / "report.html").read_text() == "<p>mine</p>"


def test_pictures_say_which_clips_are_held_out(run):
    said = "From the top left on, training clips: 1 and 2; held-out clips: 3 and 4."
    assert said in read(report([run]).page).text
    [first, *_] = json.loads((run / "run.json").read_text())["pictured_as"]
    assert f"They are of: {first}; " in read(report([run]).page).text
    edit(run, pictured={"train": 1, "val": 2}, pictured_as=None)
    assert "training clips: 1; held-out clips: 2 and 3." in read(report([run]).page).text
    for unknown in (None, {"val": "all"}, 7):
        edit(run, pictured=unknown)
        assert "From the top left" not in read(report([run]).page).text
    edit(run, pictured_as=["a " * 40, ""])
    said = f"From the top left on, of: {'a ' * 28}...; unknown."
    assert said in read(report([run]).page).text


def test_pictures_of_a_gpt_say_what_was_asked_for(gpt_run, tmp_path):
    names = json.loads((gpt_run / "run.json").read_text())["pictured_as"]
    assert len(names) == 4 and {*names} <= {"circle", "square"}
    said = f"From the top left on, of: {'; '.join(names)}."
    assert said in read(report([gpt_run], tmp_path / "gpt.html").page).text


def test_samples_say_what_they_were_given(samples, tmp_path):
    folder = Path(shutil.copytree(samples, tmp_path / "given"))
    listing = folder / "samples.json"
    content = json.loads(listing.read_text())
    for sample in content["samples"]:
        given = {"text": "a red ball", "given": "some/v6.mp4", "class": "ball", "audio": "s.wav"}
        sample |= {"label": None, "truth": sample["file"], **given}
    listing.write_text(json.dumps(content))
    page = read(report([folder]).page)
    titles = [attrs["title"] for tag, attrs in page.tags if tag == "video"]
    assert titles[1] == "sample 0: a red ball, ball, from v6.mp4, sound of s.wav"
    assert titles[0].startswith("The first 3 samples, each right of what its video really shows: a")
    assert "Frames of the first 3, in a row each, each below what its video" in page.text


def test_given_videos_of_one_name_and_parts_of_one_video_are_told_apart(samples, tmp_path):
    folder = Path(shutil.copytree(samples, tmp_path / "given"))
    listing = folder / "samples.json"
    content = json.loads(listing.read_text())
    given = ({"given": "/d/star/2.mp4"}, {"given": "/d/ball/2.mp4"}, {"given": "/d/star/1.mp4"})
    for number, sample in enumerate(content["samples"]):
        sample |= {"label": None, "given_start": 1.5 * number} | given[number]
    del content["samples"][2]["given_start"]
    listing.write_text(json.dumps(content))
    page = read(report([folder]).page)
    titles = [attrs["title"] for tag, attrs in page.tags if tag == "video"]
    assert [title.split(": ")[1] for title in titles[1:]] == [
        "from star/2.mp4 at 0.0 s", "from ball/2.mp4 at 1.5 s", "from 1.mp4",
    ]  # fmt: skip


def test_videos_show_their_first_frame_until_they_play(run, samples, tmp_path):
    page = read(report([run, samples], tmp_path / "both.html").page)
    for video in (attrs for tag, attrs in page.tags if tag == "video"):
        kind, content = video["poster"].split(",")
        assert kind == "data:image/jpeg;base64"
        assert len(content) < build.AROUND
        poster = Image.open(io.BytesIO(base64.b64decode(content)))
        assert max(poster.size) <= page_parts.POSTER
        shape = int(video["width"]) / int(video["height"])
        assert poster.width / poster.height == pytest.approx(shape, rel=0.05)


def test_a_precision_is_called_what_the_option_calls_it(run):
    for recorded, shown in (("32-true", "float32"), ("bf16-mixed", "bf16"), ("odd", "odd")):
        edit(run, precision=recorded)
        page = read(report([run]).page)
        assert f"Precision\n{shown}\n" in page.text


def test_a_large_run_fits_by_choosing_the_newest_and_a_spread(run, monkeypatch):
    [picture, video] = [sorted(run.glob(f"samples/*.{kind}"))[-1] for kind in ("png", "mp4")]
    for step in range(100, 1100, 10):
        for file in (picture, video):
            shutil.copyfile(file, run / "samples" / f"reconstructions-{step:07}{file.suffix}")
    shown = [int(a["data-step"]) for t, a in read(report([run]).page).tags if "data-step" in a]
    assert len(shown) == build.STEPS
    assert {shown[0], shown[-1]} == {2, 1090}
    room = picture.stat().st_size + video.stat().st_size
    monkeypatch.setattr(build, "PAGE_BYTES", 120_000 + 8 * room)
    found = report([run])
    assert found.page.stat().st_size < build.PAGE_BYTES
    fewer = [int(a["data-step"]) for t, a in read(found.page).tags if "data-step" in a]
    assert 1 < len(fewer) < build.STEPS
    assert fewer[-1] == 1090
    assert fewer[0] < 600
    assert f"{len(fewer)} of " in read(found.page).text
    assert found.left_out


def test_long_curves_keep_their_extremes():
    points = [(n, float(n % 7)) for n in range(10_000)]
    points[5_003] = (5_003, 99.0)
    points[6_001] = (6_001, -99.0)
    few = thinned(points, 200)
    assert len(few) <= 202
    assert few == sorted(few)
    assert {points[0], points[-1], points[5_003], points[6_001]} <= set(few)
    assert thinned(points[:200], 200) == points[:200]


def test_names_are_as_long_as_it_takes(tmp_path):
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert list(folders._names(places)) == ["a/run", "b/run", "c"]
