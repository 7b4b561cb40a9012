"""The one place where errors become messages."""

import errno
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from tatscli.cli.main import main
from tatscli.errors import DataError, TatsError


@pytest.fixture
def failing(monkeypatch, unchecked):
    """Makes tats data check end with an exception."""

    def fail(error):
        def check(*_):
            raise error

        monkeypatch.setattr("tatscli.app.data.check_data", check)

    return fail


def assert_is_message(outcome, code, told):
    assert outcome.code == code
    assert outcome.err.startswith("error: ")
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_an_error_is_message_and_hint_on_stderr(tats, failing):
    failing(DataError("a [b] is damaged", "mend it with tats [c]"))
    outcome = tats("data", "check", "videos")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: a [b] is damaged\nhint: mend it with tats [c]\n"


def test_an_error_without_a_hint_is_one_line(tats, failing):
    failing(TatsError("broken"))
    assert tats("data", "check", "videos").err == "error: broken\n"


def test_success_is_zero(tats):
    assert tats("--version").code == 0


def test_ctrl_c_is_130(tats, failing):
    failing(KeyboardInterrupt())
    outcome = tats("data", "check", "videos")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_sigterm_is_143(tats, monkeypatch, unchecked):
    monkeypatch.setattr(
        "tatscli.app.data.check_data", lambda *_: signal.raise_signal(signal.SIGTERM)
    )
    outcome = tats("data", "check", "videos")
    assert (outcome.code, outcome.out, outcome.err) == (143, "", "")


def test_a_run_stopped_by_a_signal_ends_with_its_code(tats, monkeypatch, unchecked, tmp_path):
    from tatscli.app.train import TrainResult

    result = TrainResult(tmp_path, tmp_path / "last.ckpt", 5, "stopped", {}, 15)
    monkeypatch.setattr("tatscli.app.train.train_vqgan", lambda *_: result)
    outcome = tats("vqgan", "train", "--data", "videos", "--json")
    assert outcome.code == 128 + 15
    assert '"status": "stopped"' in outcome.out
    monkeypatch.setenv("LOCAL_RANK", "1")
    outcome = tats("vqgan", "train", "--data", "videos", "--json")
    assert (outcome.code, outcome.out) == (0, "")


def test_debugging_shows_the_traceback(tats, failing, monkeypatch):
    failing(DataError("broken"))
    tats("--version")  # sets up everything but the call below
    monkeypatch.setenv("TATS_DEBUG", "1")
    monkeypatch.setattr("sys.argv", ["tats", "data", "check", "videos"])
    with pytest.raises(DataError, match="broken"):
        main()


def test_what_nobody_expected_keeps_its_traceback(failing, tats, monkeypatch):
    failing(ZeroDivisionError("a bug"))
    tats("--version")
    monkeypatch.setattr("sys.argv", ["tats", "data", "check", "videos"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_named(tats, failing, code):
    failing(OSError(code, os.strerror(code), "runs/vqgan"))
    outcome = tats("data", "check", "videos")
    assert_is_message(outcome, 1, f"runs/vqgan: {os.strerror(code)}")
    assert "write elsewhere" in outcome.err


def test_a_disk_that_fills_up_is_a_message_without_a_path_too(tats, failing):
    with pytest.raises(OSError, match="No space left") as full:
        Path("/dev/full").write_text("a line")
    assert full.value.filename is None
    failing(full.value)
    outcome = tats("data", "check", "videos")
    assert_is_message(outcome, 1, "error: No space left on device\nhint: free some space")


def test_an_unknown_weight_file_is_a_usage_error_that_lists_the_names(tats):
    outcome = tats("weights", "fetch", "nonsense")
    assert outcome.code == 2
    assert "'nonsense' is not one of 'i3d', 'i3d-torchscript', 'i3d-tf', 'vgg16'" in outcome.err


def test_a_dataset_without_a_usable_clip_is_an_error_after_what_was_found(tats):
    made = tats("data", "synth", "shapes", "--size", 16, "--train-videos", 1, "--test-videos", 1,
                "--video-frames", 12)  # fmt: skip
    assert made.code == 0, made.err
    outcome = tats("data", "check", "shapes", "--sequence-length", 16)
    assert outcome.code == 1
    assert "too short" in outcome.out
    assert "error: shapes: no training video is long enough for a clip of 16 frames" in outcome.err
    assert "hint: --sequence-length 12 is the longest that fits both splits" in outcome.err
    sound = tats("data", "check", "shapes", "--sequence-length", 12)
    assert sound.code == 0
    assert "nothing is wrong" in sound.err


def test_a_missing_required_option_is_a_usage_error(tats):
    outcome = tats("vqgan", "train")
    assert_is_message(outcome, 2, "--data is required")
    assert "hint: add --data, or --config FILE" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--codes", 1], "--codes: Input should be greater than or equal to 2, got 1"),
        (["--n_codes", 70000], "--n-codes: Input should be less than or equal to 65536, got 70000"),
        (["--learning-rate", 0], "--learning-rate: Input should be greater than 0, got 0"),
        (["--resolution", 100], "height 100 cannot be downsampled by 8"),
        (["--sequence-length", 6], "frames 6 cannot be downsampled by 4"),
        (["--downsample", 3, 8, 8], "--downsample: factors must be powers of two, got (3, 8, 8)"),
        (["--val_check_interval", "1.5"], "--val-check-interval: a whole number of steps or"),
        (["--frame-rate", "nan"], "--frame-rate: Input should be a finite number, got nan"),
    ],
)
def test_what_is_out_of_range_is_a_usage_error_with_both_numbers(tats, arguments, told):
    assert_is_message(tats("vqgan", "train", "--data", "x", *arguments), 2, told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--codes", "many"], "Invalid value for '--codes'"),
        (["extra"], "Got unexpected extra argument"),
        (["--preset", "huge"], "is not one of 'demo', 'tiny'"),
    ],
)
def test_a_line_that_does_not_parse_is_a_usage_error(tats, arguments, told):
    outcome = tats("vqgan", "train", "--data", "x", *arguments)
    assert outcome.code == 2
    assert told in outcome.err
    assert "Usage: tats vqgan train" in outcome.err
    assert outcome.out == ""


def test_an_option_without_its_value_is_a_usage_error(tats):
    outcome = tats("vqgan", "train", "--codes")
    assert outcome.code == 2
    assert "Option '--codes' requires an argument" in outcome.err


def test_a_bad_config_file_is_a_usage_error(tats, tmp_path):
    assert_is_message(tats("vqgan", "train", "-c", "gone.yaml"), 2, "gone.yaml: No such file")
    (tmp_path / "a.yaml").write_text("model:\n  code: 5\n")
    outcome = tats("vqgan", "train", "--data", "x", "-c", "a.yaml")
    assert_is_message(outcome, 2, "a.yaml: model.code is not a setting; did you mean model.codes?")


def test_gpus_that_are_not_there_name_the_cpu(tats, monkeypatch, unchecked):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = tats("vqgan", "train", "--data", "x", "--preset", "tiny", "--gpus", 4)
    assert_is_message(outcome, 1, "--gpus 4, but 0 CUDA devices are visible")
    assert "--device cpu" in outcome.err


@pytest.fixture
def train(tats):
    """Starts training on a folder."""

    def call(folder, *arguments):
        small = ["--preset", "tiny", "--device", "cpu", "--resolution", 16]
        return tats("vqgan", "train", "--data", folder, *small, *arguments)

    return call


def test_a_folder_that_is_not_there_is_named(train, tats):
    assert_is_message(train("gone"), 1, "gone")
    assert_is_message(tats("data", "check", "gone"), 1, "gone")


def test_an_empty_folder_is_named(train, tats, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_is_message(train("empty"), 1, "empty")
    assert_is_message(tats("data", "check", "empty"), 1, "empty")
    assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_a_folder_is_named(train, tmp_path):
    (tmp_path / "clip.mp4").write_text("hello")
    assert_is_message(train("clip.mp4"), 1, "clip.mp4")


def test_a_text_file_called_a_video_is_named_and_fatal_where_nothing_is_left(train, tats, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "clip.mp4").write_text("this is no video")
    (tmp_path / "bad" / "none.mp4").touch()
    for outcome in (train("bad"), tats("data", "check", "bad")):
        assert outcome.code == 1
        assert "error: " in outcome.err
        assert "clip.mp4" in outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.out == ""


def test_an_existing_run_folder_is_not_overwritten(train, tats, tmp_path):
    made = tats("data", "synth", "shapes", "--size", 16, "--train-videos", 1, "--test-videos", 1)
    assert made.code == 0, made.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    outcome = train("shapes", "--out", "mine", "--max-steps", 1)
    assert outcome.code == 1
    assert "error: mine exists and is not empty; nothing was overwritten" in outcome.err
    assert "hint: choose another --out" in outcome.err
    (tmp_path / "mine" / "config.yaml").write_text("")
    outcome = train("shapes", "--out", "mine", "--max-steps", 1)
    assert "hint: continue that run with --resume auto, or choose another --out" in outcome.err
    (tmp_path / "mine" / "checkpoints").mkdir()
    (tmp_path / "mine" / "checkpoints" / "last.ckpt").write_text("precious")
    outcome = train("shapes", "--out", "mine", "--max-steps", 1)
    assert "hint: continue that run with --resume mine, or choose another --out" in outcome.err
    left = {file.name for file in (tmp_path / "mine").iterdir()}
    assert left == {"notes.txt", "config.yaml", "checkpoints"}
    again = tats("data", "synth", "mine")
    assert_is_message(again, 1, "mine")


@pytest.fixture
def clutter(tmp_path):
    """Files and folders of the wrong kind, in the folder where commands are called."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("precious")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "train-000.safetensors").touch()
    (tmp_path / "file").write_text("hello")
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps([1]))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "bad.yaml").write_text("model: [")
    (tmp_path / "list.yaml").write_text("- 1")
    return tmp_path


TRAIN = ["vqgan", "train", "--preset", "tiny", "--device", "cpu", "--data"]
NO_VIDEOS = "no videos and no folders of frames in it"
MISTAKES = [
    (["data", "synth", "file"], "file is a file, and a folder is to be written", "another name"),
    (["demo", "file"], "file is a file, and a folder is to be written", "another name"),
    (["data", "check", "text.h5"], "text.h5: cannot be read", "such a file has train_data"),
    ([*TRAIN, "tokens"], "tokens holds tokens, and videos are needed", "tats gpt train --data"),
    ([*TRAIN, "empty"], NO_VIDEOS, "tats data synth"),
    ([*TRAIN, "full", "--gpus", 1], "--gpus 1 and --device cpu contradict", "leave one of them"),
    ([*TRAIN, "full", "--init", "weights.pt"], "it holds: weight", "a checkpoint that tats or"),
    (["encode", "--data", "full", "--vqgan", "gone"], "gone does not exist", "a run folder"),
    (["encode", "--data", "full", "--vqgan", "empty"], "empty holds no checkpoint", "a run folder"),
    (["encode", "--data", "full", "--vqgan", "text.ckpt"], "it is a text", "a checkpoint that"),
    (["decode", "file"], "file: no token dataset, manifest.json is not there", "tats encode"),
    (["tokens", "info", "file"], "file: no token dataset", "tats encode"),
    (["tokens", "merge", "full", "empty", "--out", "new"], "full: no token dataset", "tats encode"),
    (["tokens", "merge", "full", "--out", "new"], "1 token dataset given", "name two or more"),
    (["gpt", "train", "--data", "full"], "--vqgan is not given", "add --vqgan RUN"),
    (["sample", "short", "--gpt", "gone"], "gone does not exist", "a run folder"),
    (["sample", "short", "--gpt", "pickle.ckpt"], "pickle.ckpt is refused", "do not trust"),
    (["sample", "short", "--gpt", "weights.pt"], "weights.pt is neither", "a checkpoint that tats"),
    (["sample", "long", "--gpt", "text.ckpt", "--length", 4], "it is a text", "a checkpoint that"),
    (["eval", "fvd", "gone", "full"], "gone does not exist", "REAL and FAKE"),
    (["eval", "fvd", "full", "gone"], "gone does not exist", "REAL and FAKE"),
    (["eval", "classes", "gone", "full"], "gone does not exist", "REAL and FAKE"),
    (["eval", "classes", "full", "empty"], "empty/samples.json: No such file", "tats sample wrote"),
    (["import", "weights.pt"], "weights.pt is neither", "a checkpoint that tats"),
    (["export", "empty"], "empty holds no checkpoint", "a run folder"),
    (["ckpt", "info", "text.ckpt"], "it is a text", "a checkpoint that"),
    (["config", "copy", "vqgan-tiny", "file/a.yaml"], "file/a.yaml cannot be written", "is a file"),
    (
        ["bench", "--compare", "file", "file"],
        "file is no result of tats bench",
        "tats bench --json",
    ),
]


@pytest.mark.parametrize(("arguments", "told", "helps"), MISTAKES)
def test_a_likely_mistake_is_told_with_what_mends_it(tats, clutter, arguments, told, helps):
    before = set(clutter.rglob("*"))
    outcome = tats(*arguments)
    assert_is_message(outcome, 1, told)
    assert helps in outcome.err.split("hint: ")[1]
    assert {path for path in clutter.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.parametrize(
    ("arguments", "told", "helps"),
    [
        (["vqgan", "train", "-c", "bad.yaml"], "bad.yaml, line 1, is not valid", "config copy"),
        (["vqgan", "train", "-c", "list.yaml"], "list.yaml holds a list", "tats config copy"),
        (["vqgan", "train", "-c", "empty"], "empty: Is a directory", "tats config copy"),
        (["vqgan", "train", "--resume", "file"], "file is no run folder", "its --out"),
        (["encode"], "--data is required\n--vqgan is required", "add --data and --vqgan"),
        (["bench", "nonsense"], "'nonsense' is no stage", "stages are read"),
        (["config", "show", "nonsense"], "is no command with settings", "vqgan train"),
    ],
)
def test_a_mistake_in_the_call_is_told_with_what_mends_it(tats, clutter, arguments, told, helps):
    outcome = tats(*arguments)
    assert_is_message(outcome, 2, told)
    assert helps in outcome.err.split("hint: ")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dta", "check"], "No such command 'dta'. Did you mean 'data'?"),
        (["vqgan", "trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["vqgan", "nope"], "No such command 'nope'. There are train, eval."),
        (["nope"], "No such command 'nope'. There are demo, doctor, data, vqgan, encode,"),
        (["vqgan", "train", "clips"], "extra argument(s) (clips). Did you mean --data clips?"),
        (["gpt", "train", "--data", "a", "b"], "Got unexpected extra argument(s) (b) "),
        (
            ["vqgan", "train", "--preset", "tny"],
            ": 'tny' is not one of 'demo', 'tiny'. Did you mean 'tiny'?",
        ),
        (["data", "check", "x", "--sequence-lenght", 4], "Possible options: --sequence-length"),
        (["data", "check"], "Missing argument 'DIR'"),
        (["eval", "fvd", "x"], "REAL and FAKE are needed"),
    ],
)
def test_what_is_misspelt_or_missing_is_told_with_what_is_near(tats, arguments, told):
    outcome = tats(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sample", "long", "--length", 0], "--length: Input should be greater than or equal to 1"),
        (["sample", "short", "--samples", -1], "--samples: Input should be greater than"),
        (["sample", "short", "--top-p", 2], "--top-p: Input should be less than or equal to 1"),
        (["data", "synth", "x", "--classes", 9], "--classes: Input should be less than or equal"),
        (["gpt", "train", "--data", "x", "--layers", 0], "--layers: Input should be greater than"),
        (["gpt", "train", "--data", "x", "--width", 100, "--heads", 3], "width 100 is not div"),
        ([*TRAIN, "x", "--resolution", 50], "by 8 (downsample is 4 8 8); the nearest that can: 48"),
        ([*TRAIN, "x", "--gpus", -1], "--gpus: Input should be greater than or equal to 0, got -1"),
        ([*TRAIN, "x", "--batch-size", 0], "--batch-size: Input should be greater than"),
    ],
)
def test_numbers_that_make_no_sense_are_a_usage_error(tats, arguments, told):
    assert_is_message(tats(*arguments), 2, told)


FULL_GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 5.81 MiB is free. Including non-PyTorch memory, this process has 79.09 GiB in use."
)
FULL_MACHINE = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
)
DEAD_WORKER = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


@pytest.mark.parametrize(
    ("arguments", "within", "helps"),
    [
        (["sample", "short"], "sample.short_sampler", "--batch-size auto"),
        (["sample", "long"], "sample.long_sampler", "--precision bf16"),
        (["decode", "tokens"], "encode.local_tokens", "--batch-size"),
        (["vqgan", "eval", "run", "--time"], "reconstruct.noted_vqgan", "--batch-size"),
        (["eval", "classes", ".", "."], "recognise.read_listing", "--clips"),
        (["bench"], "bench.choose_device", "--size"),
    ],
)
@pytest.mark.parametrize("failure", [FULL_GPU, FULL_MACHINE, DEAD_WORKER])
def test_a_machine_that_gives_out_is_told_with_the_options_that_need_less(
    tats, monkeypatch, unchecked, arguments, within, helps, failure
):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(f"tatscli.app.{within}", fail)
    outcome = tats(*arguments)
    if failure is FULL_GPU:
        told = "error: out of memory on the GPU: 2.50 GiB more were asked for, and 5.81 MiB of"
    elif failure is FULL_MACHINE:
        told = "error: out of memory: 99 bytes more were asked for"
    else:
        told, helps = "error: process 4711 that read clips was killed by signal", "--workers 0"
    assert_is_message(outcome, 1, told)
    assert helps in outcome.err.split("hint: ")[1]
