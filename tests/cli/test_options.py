"""Options generated from configs."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import typer
import yaml

from tatscli.cli.options import configured, option_type
from tatscli.config.base import FILE_ONLY, Config, Obsolete, Published
from tatscli.config.files import read_compat

TRAIN = ("vqgan", "train", "--data", "videos")


@pytest.fixture
def resolved(tats, receive):
    """Calls tats vqgan train; the config that reached training."""
    received = receive("tatscli.app.train.train_vqgan")

    def call(*arguments):
        outcome = tats(*TRAIN, *arguments)
        assert outcome.code == 0, outcome.err
        return received.pop()[0], outcome

    return call


def test_an_option_sets_its_field(resolved):
    config, _ = resolved("--codes", 512, "--learning-rate", 1e-3, "--out", "here")
    assert config.model.codes == 512
    assert config.optim.learning_rate == 1e-3
    assert config.train.out == Path("here")


@pytest.mark.parametrize("spelling", ["--sample-every-n-frames", "--sample_every_n_frames"])
def test_dashes_and_underscores_are_the_same(resolved, spelling):
    config, _ = resolved(spelling, 4)
    assert config.data.sample_every_n_frames == 4


@pytest.mark.parametrize("spelling", ["--n-codes", "--n_codes", "--codes"])
def test_published_names_are_accepted(resolved, spelling):
    config, _ = resolved(spelling, 512)
    assert config.model.codes == 512


@pytest.mark.parametrize(
    ("published", "condition"), [("label", "label"), ("text", "text"), ("stft", "sound")]
)
def test_published_values_become_ours(tats, receive, published, condition):
    received = receive("tatscli.app.train.train_gpt")
    outcome = tats("gpt", "train", "--data", "videos", "--cond_stage_key", published)
    assert outcome.code == 0, outcome.err
    assert received[0][0].model.condition == condition


def test_our_values_are_none_of_a_published_option(tats):
    arguments = ("gpt", "train", "--data", "videos", "--cond_stage_key")
    wrong = tats(*arguments, "sound")
    assert wrong.code == 2
    assert "'sound' is not one of 'label', 'text', 'stft'" in wrong.err
    twice = tats(*arguments, "stft", "--condition", "sound")
    assert twice.code == 2
    assert "--condition and --cond-stage-key are the same setting; give one" in twice.err


def test_values_keep_their_underscores(tats, receive):
    received = receive("tatscli.app.sample.short")
    tats("sample", "short", "--save_name", "my_samples")
    assert received[0][0].sample.name == "my_samples"


def test_a_triple_is_three_values(resolved, tats):
    config, _ = resolved("--downsample", 2, 16, 16)
    assert config.model.downsample == (2, 16, 16)
    short = tats(*TRAIN, "--downsample", 2, 16)
    assert short.code == 2
    assert "'--downsample' requires 3 arguments" in short.err


def test_a_switch_has_a_no(resolved):
    assert resolved("--random-restart")[0].model.random_restart
    assert resolved("--preset", "tiny")[0].model.random_restart
    assert not resolved("--preset", "tiny", "--no_random_restart")[0].model.random_restart


def test_a_choice_is_one_of_the_choices(resolved, tats):
    assert resolved("--norm-type", "group")[0].model.norm_type == "group"
    wrong = tats(*TRAIN, "--norm-type", "layer")
    assert wrong.code == 2
    assert "'layer' is not one of 'batch', 'group'" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--codes", 8, "--n_codes", 8], "--codes and --n-codes"),
        (["--strict", "--no-strict"], "--strict and --no-strict"),
        (["--data_path", "videos"], "--data and --data-path"),
    ],
)
def test_a_setting_given_by_two_names_is_an_error_with_both(tats, arguments, names):
    outcome = tats(*TRAIN, *arguments)
    assert outcome.code == 2
    assert f"error: {names} are the same setting; give one" in outcome.err


def test_a_rate_and_a_base_rate_are_an_error_with_both(tats):
    outcome = tats(*TRAIN, "--learning-rate", 1e-3, "--lr", 1e-3)
    assert outcome.code == 2
    assert "--learning-rate and --lr set the same thing" in outcome.err


@pytest.mark.parametrize("length", ["short", "long"])
def test_one_class_and_all_classes_are_an_error_with_both(tats, receive, length):
    received = receive(f"tatscli.app.sample.{length}")
    outcome = tats("sample", length, "--label", "star", "--class_cond")
    assert (outcome.code, received) == (2, [])
    assert "--label and --class-cond set the same thing; give one of them" in outcome.err
    assert tats("sample", length, "--label", "star", "--no-class-cond").code == 0


def test_an_obsolete_option_is_taken_with_a_note(resolved):
    config, outcome = resolved("--image_folder")
    assert outcome.err == (
        "note: --image-folder has no effect: folders of frames are recognised by themselves\n"
    )
    assert config == resolved()[0]


def test_a_wrong_option_is_named_with_the_nearest_right_one(tats):
    outcome = tats(*TRAIN, "--resolutoin", 64)
    assert outcome.code == 2
    assert "No such option: --resolutoin" in outcome.err
    assert "--resolution" in outcome.err.replace("--resolutoin", "")


def test_a_wrong_command_is_named_with_the_nearest_right_one(tats):
    outcome = tats("sampel", "long")
    assert outcome.code == 2
    assert "No such command 'sampel'. Did you mean 'sample'?" in outcome.err


def test_options_beat_the_file_which_beats_the_preset(resolved, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  codes: 64\n  embedding_dim: 8\n")
    config, _ = resolved("--preset", "tiny", "--config", file, "--codes", 32)
    assert (config.model.codes, config.model.embedding_dim) == (32, 8)
    assert config.model.downsample == (4, 8, 8)


def test_resuming_starts_from_the_settings_of_the_run(tats, receive, tmp_path):
    received = receive("tatscli.app.train.train_vqgan")
    settings = {"data": {"data": "there"}, "model": {"codes": 99}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert tats("vqgan", "train", "--resume", tmp_path, "--max-steps", 7).code == 0
    config, run, _ = received[0]
    assert (config.model.codes, config.train.max_steps, run) == (99, 7, tmp_path)


def test_a_dry_run_refuses_what_a_resumption_refuses(tats, tmp_path):
    settings = {"data": {"data": "there"}, "model": {"codes": 99}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    again = ("vqgan", "train", "--resume", tmp_path)
    outcome = tats(*again, "--dry-run")
    assert (outcome.code, outcome.out) == (1, "")
    assert "has saved no checkpoint yet" in outcome.err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    shown = tats(*again, "--max-steps", 7, "--dry-run")
    assert (shown.code, yaml.safe_load(shown.out)["model"]["codes"]) == (0, 99)
    dry, real = (tats(*again, "--preset", "tiny", *more) for more in ((), ("--dry-run",)))
    assert dry == real
    assert (dry.code, dry.out) == (1, "")
    assert "was trained with other settings: data.resolution: 128 -> 64; " in dry.err
    assert "model.codes: 99 -> 1024; " in dry.err
    outs = ("--out", tmp_path, "--resume", "auto", "--codes", 8)
    assert "model.codes: 99 -> 8" in tats("vqgan", "train", *outs, "--dry-run").err


def test_a_new_start_and_a_resumption_are_an_error(tats, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"data": "there"}}))
    outcome = tats("vqgan", "train", "--resume", tmp_path, "--init", "run")
    assert outcome.code == 2
    assert "--resume continues a run, --init starts a new one; give one" in outcome.err


@pytest.mark.parametrize(("stage", "other"), [("vqgan", "gpt"), ("gpt", "vqgan")])
def test_a_run_of_the_other_stage_is_not_resumed(tats, tmp_path, stage, other):
    shown = tats(other, "train", "--data", "x", "--dry-run").out
    (tmp_path / "config.yaml").write_text(shown)
    outcome = tats(stage, "train", "--resume", tmp_path)
    assert outcome.code == 2
    assert outcome.err.splitlines()[0].endswith(f"is a run of tats {other} train")
    assert f"tats {other} train --resume" in outcome.err


@pytest.mark.parametrize("stage", ["vqgan", "gpt"])
def test_a_dry_run_of_a_new_start_leaves_out_what_the_weights_decide(tats, stage, tmp_path):
    arguments = (stage, "train", "--data", "x", "--init", "gone", "--dry-run")
    name, value = ("dropout", 0.5) if stage == "gpt" else ("codes", 64)
    outcome = tats(*arguments, f"--{name}", value)
    assert "gone was not looked at" in outcome.err
    shown = yaml.safe_load(outcome.out)
    assert shown["train"]["init"] == "gone"
    assert shown["model"] == {name: value}
    assert shown["data"] == {"data": "x"}
    # What is printed can be given back, and says the same again.
    (tmp_path / "shown.yaml").write_text(outcome.out)
    assert tats(stage, "train", "-c", "shown.yaml", "--dry-run").out == outcome.out


@pytest.mark.parametrize("stage", ["vqgan", "gpt"])
def test_a_dry_run_shows_every_published_setting(tats, stage):
    arguments = ("--data", "x", "--dry-run")
    plain = yaml.safe_load(tats(stage, "train", *arguments).out)
    compat = yaml.safe_load(tats(stage, "train", *arguments, "--compat", "tats").out)
    for section, settings in read_compat(stage, "tats").values.items():
        for name, value in settings.items():
            assert compat[section].pop(name) == value != plain[section].pop(name)
    assert compat == plain


def test_options_beat_the_file_which_beats_compat_which_beats_the_preset(resolved, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("loss:\n  disc_warmup: 7\n  disc_ramp: 8\n")
    config, _ = resolved("--disc-ramp", 9, "-c", file, "--compat", "tats", "--preset", "tiny")
    loss = config.loss
    assert (loss.perceptual_range, loss.disc_warmup, loss.disc_ramp) == (0.5, 7, 9)
    # The preset's warm-up is 20; what only the preset sets stays.
    assert (config.optim.lr_warmup, config.model.codes) == (0, 1024)
    assert resolved("--preset", "tiny")[0].optim.lr_warmup == 20


@pytest.mark.parametrize("length", ["short", "long"])
def test_samplers_take_the_published_numerics(tats, receive, length):
    received = receive(f"tatscli.app.sample.{length}")
    tats("sample", length, "--compat", "tats")
    tats("sample", length)
    compat, plain = (config for config, *_ in received)
    assert (compat.filter.condition_ids, plain.filter.condition_ids) == ("sampled", "masked")


def test_compat_is_of_something_known(tats):
    outcome = tats(*TRAIN, "--compat", "vqvae")
    assert outcome.code == 2
    assert "'vqvae' is not" in outcome.err and "tats" in outcome.err


def test_resuming_what_is_no_run_is_an_error(tats, tmp_path):
    outcome = tats("vqgan", "train", "--resume", tmp_path)
    assert outcome.code == 2
    assert f"{tmp_path} is no run folder: it has no config.yaml" in outcome.err


def help_page(tats, *command):
    outcome = tats(*command, "-h")
    assert outcome.code == 0
    return outcome.out


def test_help_shows_sentence_default_range_and_choices(tats):
    page = help_page(tats, "vqgan", "train")
    assert "Entries of the codebook. [default: 16384, >= 2, <= 65536]" in page
    assert "Compression along time, height and width; powers of two. [default: 4 8 8]" in page
    assert "manifest, or HDF5 file. [required]" in page
    assert "current batch. [default: --no-random-restart]" in page
    assert "<batch|group>" in page
    assert "<demo|tiny>" in page


def test_help_shows_the_defaults_of_the_command(tats):
    assert "Clips a device takes at once. [default: 3, >= 1]" in help_page(tats, "gpt", "train")
    assert "Clips a device takes at once. [default: 2, >= 1]" in help_page(tats, "vqgan", "train")


def test_help_hides_published_names_and_file_only_settings(tats):
    page = help_page(tats, "vqgan", "train")
    for name in ("--n-codes", "--data-path", "--lr ", "--image-folder", "--no-strict "):
        assert name not in page
    assert "--padding-type" not in page


@pytest.mark.parametrize("width", [80, 120])
def test_no_option_is_cut_off_in_a_usual_terminal(tats, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in (["vqgan", "train"], ["gpt", "train"], ["sample", "long"], ["eval", "fvd"]):
        monkeypatch.setenv("COLUMNS", str(width))
        assert "…" not in tats(*command, "-h").out


def test_settings_of_a_file_only_are_no_options(tats, resolved, tmp_path):
    assert tats(*TRAIN, "--codebook-decay", 0.5).code == 2
    file = tmp_path / "mine.yaml"
    file.write_text("model: {codebook_decay: 0.5}\n")
    assert resolved("-c", file)[0].model.codebook_decay == 0.5


@pytest.mark.parametrize("kind", [bool, int, float, str, Path, Literal["a"], tuple[int, int]])
def test_what_an_option_can_carry(kind):
    assert option_type(kind, "--x") == kind
    assert option_type(kind | None, "--x") == kind


def test_a_number_or_a_word_is_carried_as_text():
    assert option_type(int | Literal["auto"], "--x") is str


@pytest.mark.parametrize("kind", [list[int], int | str, dict[str, int], tuple[list[int], int]])
def test_what_no_option_can_carry_is_refused_when_the_program_starts(kind):
    with pytest.raises(TypeError, match="--x: no option can carry .*; mark the field FILE_ONLY"):
        option_type(kind, "--x")


class Part(Config):
    """Part."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {"old": Obsolete("it is gone", is_flag=False)}

    mode: Annotated[Literal["a", "b"], Published("all_a", value="a")] = "b"
    """The mode."""
    hidden: Annotated[int, FILE_ONLY] = 3
    """Not an option."""


class Whole(Config):
    """Whole."""

    part: Part = Part()


@pytest.fixture
def small(monkeypatch, capsys):
    """A command of one section; its config and what it said."""
    app, received = typer.Typer(), []

    @app.command()
    @configured()
    def command(config: Whole) -> None:
        """Do it."""
        received.append(config)

    def call(*arguments):
        with pytest.raises(SystemExit):
            app(list(arguments))
        return received.pop().part, capsys.readouterr().err

    return call


def test_a_published_flag_sets_its_value(small):
    assert small()[0].mode == "b"
    assert small("--all-a")[0].mode == "a"


def test_an_obsolete_option_can_have_a_value(small):
    part, told = small("--old", "5")
    assert part == Part()
    assert told == "note: --old has no effect: it is gone\n"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (("vqgan", "train", "--data", "", "--dry-run"), "--data"),
        (("vqgan", "train", "--data_path", "", "--dry-run"), "--data_path"),
        (("vqgan", "train", "--data=", "--dry-run"), "--data"),
        (("data", "check", ""), "the argument after check"),
        (("data", "check", "--json", ""), "the argument after --json"),
        (("demo", ""), "the argument after demo"),
        (("report", ""), "the argument after report"),
        (("report", "run", "--metrics", ""), "--metrics"),
        (("report", "run", "--out="), "--out"),
        (("eval", "compare", "a.json", ""), "the argument after a.json"),
        (("eval", "features", "videos", "-o", ""), "-o"),
        (("ckpt", "info", ""), "the argument after info"),
        (("eval", "fvd", "videos", "", "--match", ""), "the argument after videos"),
    ],
)
def test_a_variable_that_is_not_set_is_not_the_current_folder(tats, line, named) -> None:
    done = tats(*line)
    assert done.code == 2
    assert f"error: {named} is empty" in done.err


def test_what_ends_like_an_option_without_a_value_may_be_a_path(tats) -> None:
    assert "error: a=: no such folder" in tats("data", "check", "a=").err
