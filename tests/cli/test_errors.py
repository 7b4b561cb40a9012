"""The one place where errors become messages."""

import errno
import os
from pathlib import Path

import pytest

from tatscli.cli.main import main
from tatscli.errors import DataError, TatsError


@pytest.fixture
def failing(monkeypatch):
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


def test_a_run_stopped_by_a_signal_ends_with_its_code(tats, monkeypatch, tmp_path):
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
    assert "--out" in outcome.err


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
    assert "hint: --sequence-length 12 or less fits both splits" in outcome.err
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


def test_gpus_that_are_not_there_name_the_cpu(tats, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = tats("vqgan", "train", "--data", "x", "--gpus", 4)
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
    assert "hint: continue that run with --resume mine, or choose another --out" in outcome.err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    again = tats("data", "synth", "mine")
    assert_is_message(again, 1, "mine")
