"""The command lines of the published README, moved over by changing the program's name."""

import pytest
import yaml

VQGAN = (
    "vqgan train --embedding_dim 256 --n_codes 16384 --n_hiddens 32 --downsample 2 16 16 "
    "--no_random_restart --gpus 4 --sync_batchnorm --batch_size 2 --num_workers 16 "
    "--accumulate_grad_batches 8 --progress_bar_refresh_rate 1000 --max_steps 2000000 "
    "--gradient_clip_val 1.0 --lr 0.00005 --data_path DATA --default_root_dir OUT "
    "--resolution 256 --sequence_length 32 --frame_rate 16 --discriminator_iter_start 13000 "
    "--norm_type batch --perceptual_weight 4 --image_gan_weight 1 --video_gan_weight 1 "
    "--gan_feat_weight 4"
)
GPT = (
    "gpt train --gpus 4 --batch_size 6 --accumulate_grad_batches 4 --frame_rate 8 "
    "--resolution 256 --unconditional --vqvae VQGAN --data_path DATA --default_root_dir OUT "
    "--vocab_size 16384 --block_size 4096 --n_layer 24 --n_head 16 --n_embd 1024 "
    "--sequence_length 32 --num_workers 16 --val_check_interval 2 "
    "--progress_bar_refresh_rate 1000 --sync_batchnorm --max_steps 2000000"
)
SHORT = (
    "sample short --gpt_ckpt GPT --vqgan_ckpt VQGAN --save_name NAME --n_sample 64 "
    "--batch_size 16 --resolution 256"
)
CONDITION_AND_FVD = (
    " --class_cond --compute_fvd --data_path DIR --dataset UCF --sample_every_n_frames 4"
)
LONG = (
    "sample long --gpt_ckpt GPT --vqgan_ckpt VQGAN --save_name NAME --n_sample 64 "
    "--batch_size 16 --sample_length 64 --sample_resolution 16 --temporal_sample_pos 1"
)
HIERARCHY = (
    "gpt train --num_workers 32 --val_check_interval 0.5 --progress_bar_refresh_rate 500 --gpus 8 "
    "--sync_batchnorm --unconditional --vqvae VQGAN --data_path DATA --default_root_dir OUT "
    "--vocab_size 16384 --n_layer 24 --n_head 16 --n_embd 1024 --resolution 128 "
    "--spatial_length 128 --max_steps 2000000 "
)
INFILL = HIERARCHY + "--batch_size 3 --block_size 1280 --sequence_length 20 --n_unmasked 256"
KEYS = (
    HIERARCHY + "--batch_size 4 --block_size 1024 --sequence_length 64 "
    "--sample_every_n_latent_frames 4"
)
HIERARCHICAL = (
    "sample long --ckpt1 KEYS --ckpt2 INFILL --vqgan VQGAN --save OUT --batch_size 12 --n_sample 8 "
    "--top_k_init 16384 --top_p_init 0.99 --top_k 2048 --top_p 0.8 --sample_length 64 "
    "--sample_resolution 16 --temporal_sample_pos 1 --run 1 --dataset sky --save_videos"
)
LINES = {
    "tatscli.app.train.train_vqgan": VQGAN,
    "tatscli.app.train.train_gpt": GPT,
    "tatscli.app.sample.short": SHORT + CONDITION_AND_FVD,
    "tatscli.app.sample.long": LONG,
}


def parts(line):
    """Command, and each option with its values."""
    command, *options = line.split(" --")
    return command.split(), [f"--{option}".split() for option in options]


def test_the_vqgan_line_resolves(tats):
    outcome = tats(*VQGAN.split(), "--dry-run")
    assert outcome.code == 0
    config = yaml.safe_load(outcome.out)
    assert config["data"] == {
        "resolution": 256,
        "sequence_length": 32,
        "frame_rate": 16.0,
        "sample_every_n_frames": 1,
        "input": "video",
        "missing_sound": "silence",
        "max_bad": 0.5,
        "data": "DATA",
        "strict": False,
    }
    expected = {
        "model": {
            "embedding_dim": 256,
            "codes": 16384,
            "hidden_channels": 32,
            "downsample": [2, 16, 16],
            "random_restart": False,
            "norm_type": "batch",
        },
        "loss": {
            "perceptual_weight": 4,
            "image_gan_weight": 1,
            "video_gan_weight": 1,
            "gan_feat_weight": 4,
            "disc_start": 13000,
        },
        "optim": {"grad_clip": 1, "base_learning_rate": 0},
        "train": {
            "out": "OUT",
            "max_steps": 2_000_000,
            "batch_size": 2,
            "accumulate": 8,
            "log_every": 1000,
        },
        "compute": {"gpus": 4, "workers": 16, "sync_batchnorm": True},
    }
    for section, settings in expected.items():
        assert {name: config[section][name] for name in settings} == settings
    rate = config["optim"]["learning_rate"]
    assert rate == pytest.approx(8 * 4 / 8 * 2 / 4 * 5e-5), "accumulate, processes, batch, base"
    assert outcome.err == (
        "note: devices were not looked at; --gpus 4 is believed\n"
        "note: learning rate 0.0001 from base rate 5e-05 by the published rule "
        "(accumulate 8, 4 processes, batch 2)\n"
    )


def test_the_gpt_line_resolves(tats):
    outcome = tats(*GPT.split(), "--dry-run")
    assert outcome.code == 0
    config = yaml.safe_load(outcome.out)
    expected = {
        "data": {"data": "DATA", "resolution": 256, "sequence_length": 32, "frame_rate": 8},
        "model": {
            "layers": 24,
            "heads": 16,
            "width": 1024,
            "vocab_size": 16384,
            "block_size": 4096,
            "condition": "none",
        },
        "train": {
            "out": "OUT",
            "batch_size": 6,
            "accumulate": 4,
            "val_check_interval": "2",
            "log_every": 1000,
            "max_steps": 2_000_000,
        },
        "compute": {"gpus": 4, "workers": 16, "sync_batchnorm": True},
    }
    assert config["vqgan"] == "VQGAN"
    for section, settings in expected.items():
        assert {name: config[section][name] for name in settings} == settings


def test_the_short_line_reaches_sampling(tats, receive):
    received = receive("tatscli.app.sample.short")
    assert tats(*SHORT.split()).code == 0
    assert received.pop()[0].real.resolution == 256
    outcome = tats(*SHORT.split(), *CONDITION_AND_FVD.split())
    assert (outcome.code, outcome.err) == (0, "")
    config = received[0][0].model_dump(mode="json")
    assert config["sample"] | config["real"] == {
        "gpt": "GPT",
        "vqgan": "VQGAN",
        "out": "samples",
        "name": "NAME",
        "samples": 64,
        "batch_size": 16,
        "seed": 0,
        "lossless": False,
        "compute_fvd": True,
        "data": "DIR",
        "dataset": "UCF",
        "resolution": 256,
        "sample_every_n_frames": 4,
    }
    assert config["condition"]["class_cond"]


def test_the_long_line_reaches_sampling(tats, receive):
    received = receive("tatscli.app.sample.long")
    outcome = tats(*LONG.split())
    assert (outcome.code, outcome.err) == (0, "")
    config = received[0][0].model_dump(mode="json")
    assert config["window"] == {
        "length": 64,
        "frames": 0,
        "temporal_sample_pos": 1,
        "sample_resolution": 16,
        "infill_gpt": None,
    }
    assert (config["sample"]["samples"], config["sample"]["name"]) == (64, "NAME")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (INFILL, {"infill": False, "n_unmasked": 256, "latent_stride": 1}),
        (KEYS, {"infill": False, "n_unmasked": 0, "latent_stride": 4}),
    ],
    ids=["infill", "keys"],
)
def test_the_hierarchical_lines_resolve(tats, line, expected):
    outcome = tats(*line.split(), "--dry-run")
    assert outcome.code == 0
    model = yaml.safe_load(outcome.out)["model"]
    assert {name: model[name] for name in expected} == expected
    assert "--spatial-length has no effect: the latent side follows" in outcome.err


def test_the_hierarchical_sampling_line_reaches_sampling(tats, receive):
    received = receive("tatscli.app.sample.long")
    outcome = tats(*HIERARCHICAL.split())
    assert outcome.code == 0
    config = received[0][0]
    assert (str(config.sample.gpt), str(config.window.infill_gpt)) == ("KEYS", "INFILL")
    cuts = config.filter
    assert (cuts.top_k, cuts.top_p, cuts.top_k_init, cuts.top_p_init) == (2048, 0.8, 16384, 0.99)
    assert "--run has no effect" in outcome.err


ONE_BY_ONE = [
    (use_case, option) for use_case, line in LINES.items() for option in map(tuple, parts(line)[1])
]


@pytest.mark.parametrize(("use_case", "option"), ONE_BY_ONE, ids=lambda part: part[0])
def test_every_option_of_the_lines_has_an_effect(tats, receive, use_case, option):
    received = receive(use_case)
    command, _ = parts(LINES[use_case])
    # These presets set what some options of the lines unset: random restart, a label condition.
    preset = {"vqgan": ["--preset", "tiny"], "gpt": ["--preset", "demo"]}.get(command[0], [])
    base = [*command, *preset]
    if "train" in command and option[0] != "--data_path":
        base += ["--data", "x"]
    name, *values = option
    if name == "--norm_type":
        base += ["--hidden-channels", "16"]  # as group norm needs
    other = [{"batch": "group"}.get(value, value) for value in values]
    other = [str(4 * float(v) if "." in v else 4 * int(v)) if v[0].isdigit() else v for v in other]
    with_option = tats(*base, name, *other)
    assert with_option.code == 0, with_option.err
    if name != "--data_path" or "sample" in command:
        # Batch statistics are shared by default, so here what is typed is compared with its no.
        without = ["--no-sync-batchnorm"] if name == "--sync_batchnorm" else []
        assert tats(*base, *without).code == 0
        assert received[0][0] != received[1][0]
    else:
        assert str(received[0][0].data.data) == "DATA"


def test_options_of_the_comparison_are_noted_where_there_is_none(tats, unchecked):
    outcome = tats("sample", "short", "--gpt_ckpt", "gone", "--resolution", 256, "--dataset", "UCF")
    assert outcome.code == 1
    assert outcome.err.startswith(
        "note: without --compute-fvd this has no effect: --dataset, --resolution\nerror: "
    )


def test_a_file_with_every_setting_says_nothing_about_a_comparison(tats, unchecked, tmp_path):
    file = tmp_path / "sample.yaml"
    file.write_text(tats("config", "show", "sample", "short").out)
    outcome = tats("sample", "short", "--config", file, "--gpt", "gone")
    assert outcome.err.startswith("error: ")


def test_the_short_forms(tats, receive):
    outcome = tats("vqgan", "train", "--data", "DIR", "--gpus", 4, "--dry-run")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["compute"]["gpus"] == 4
    received = receive("tatscli.app.sample.long")
    assert tats("sample", "long", "--length", 64).code == 0
    assert received[0][0].window.length == 64


def test_a_dry_run_touches_nothing(tats, tmp_path):
    assert tats(*VQGAN.split(), "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_flags_of_text_and_of_sound_are_taken_with_a_note(tats):
    done = tats(
        "gpt", "train", "--data", "d", "--cond_stage_key", "text", "--text_cond", "--dry-run"
    )
    assert (done.code, "  condition: text\n" in done.out) == (0, True)
    assert "--text-cond has no effect: captions always become BPE tokens" in done.err
    done = tats(
        "gpt", "train", "--data", "d", "--cond_stage_key", "stft", "--stft_data",
        "--stft_vqvae", "S", "--dry-run",
    )  # fmt: skip
    assert (done.code, "  condition: sound\n" in done.out) == (0, True)
    assert "sound_vqgan: S" in done.out
    assert "--stft-data has no effect" in done.err
