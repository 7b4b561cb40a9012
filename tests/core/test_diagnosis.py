"""Each rule on series made up for it: what it names, from which figure, and what it advises."""

import math
import re
from dataclasses import replace

import pytest
import torch
import typer

from tatscli.cli.main import app
from tatscli.core.diagnosis import Facts, Verdict, judge, worst
from tatscli.core.models.codebook import Codebook

VQGAN = Facts(
    "vqgan", codes=100, log_steps=10, warmup=20, positions=1000,
    discriminators=("image", "video"), disc_start=100, disc_ramp=50,
)  # fmt: skip
GPT = Facts("gpt", codes=1024, log_steps=10, warmup=50)


def series(*values: float, first: int = 10, every: int = 10) -> list[tuple[int, float]]:
    return [(first + every * number, value) for number, value in enumerate(values)]


def acting(*values: float) -> list[tuple[int, float]]:
    """Figures from after the start of the discriminators."""
    return series(*values, first=110)


def right(real: float, fake: float, share: float | None = 0.8, name: str = "image"):
    found = {f"train/disc_{name}_right_real": acting(*[real] * 4),
             f"train/disc_{name}_right_fake": acting(*[fake] * 4)}  # fmt: skip
    return found | ({} if share is None else {"train/gan_share": acting(*[share] * 4)})


def psnr(before: float, after: float, steps: int = 600):
    return {"val/psnr": [(80, before), (100, before), *((steps + n, after) for n in (-2, -1, 0))]}


def codes(used: float, dead: float = 0.0):
    return {"train/codes_used": series(90, 90, *[used] * 3), "train/codes_dead": series(dead)}


def losses(validated: list[float], trained: list[float] | list[tuple[int, float]]):
    known = trained if isinstance(trained[0], tuple) else series(*trained)
    return {"val/loss": series(*validated), "train/loss": known}


def later(*values: float) -> list[tuple[int, float]]:
    """Figures from long after the start."""
    return series(*values, first=300)


def waits(*shares: float, seconds: float = 2):
    """Parts of the time spent on waiting, and seconds a step."""
    shares = shares if len(shares) > 1 else shares * 3
    return {"train/waiting": series(*shares), "train/seconds": series(*[seconds] * len(shares))}


def errors(*values: float, first: int = 300, validated: float | None = None):
    """Mean absolute errors, long after the start."""
    trained = series(*values, first=first)
    found = {"train/l1": trained}
    return found if validated is None else found | {"val/l1": [(trained[-1][0], validated)]}


CASES = [
    # subject, figures, facts, level, words
    ("numbers", {"train/l1": series(1, 0.5)}, VQGAN, "good", "finite"),
    ("numbers", {"val/loss": series(1, math.nan)}, GPT, "bad", "at step 20: val/loss = nan"),
    ("numbers", {}, replace(VQGAN, not_finite="step 7: l1 = nan, gradient norm = inf; the last"),
     "bad", "not finite at step 7: l1 = nan, gradient norm = inf"),
    ("numbers", {}, replace(GPT, not_finite="odd", is_bf16=True), "bad", "odd"),
    ("numbers", {}, VQGAN, "early", "too early to say"),
    ("codebook", codes(80), VQGAN, "good", "80 of 100 codes used over 10 steps"),
    ("codebook", codes(51), VQGAN, "good", "51 of 100"),
    ("codebook", codes(49), VQGAN, "watch", "49 of 100"),
    ("codebook", codes(21), VQGAN, "watch", "21 of 100"),
    ("codebook", codes(19, 0.81), VQGAN, "bad", "19 of 100 codes used over 10 steps; 81 % are"),
    ("codebook", codes(1), replace(VQGAN, random_restart=True, restart_threshold=0.9), "bad",
     "1 of 100"),
    # Codes are moved from step 64 on, when they are below a tenth of the mean count.
    ("codebook", codes(1), replace(VQGAN, random_restart=True), "early", "step 94"),
    # 10 steps of 2 positions cannot use more than 18 codes.
    ("codebook", codes(16), replace(VQGAN, positions=2), "good", "which could use 18"),
    ("codebook", {"train/codes_used": series(1, 1)}, VQGAN, "early", "too early to say"),
    ("codebook", {"train/codes_used": series(1, 1, 1, 1)}, VQGAN, "early", "step 50"),
    ("image discriminator", right(0.8, 0.7), VQGAN, "good", "80 % of real and 70 %"),
    ("image discriminator", right(1, 0.94), VQGAN, "good", "94 %"),
    ("image discriminator", right(1, 0.96), VQGAN, "bad", "wins: right on 100 % of real and 96 %"),
    ("image discriminator", right(1, 0.96), VQGAN, "bad", "80 % of the generator's gradient"),
    ("video discriminator", right(1, 1, name="video"), VQGAN, "bad", "wins"),
    ("image discriminator", right(1, 1, share=0.3), VQGAN, "watch", "wins"),
    ("image discriminator", right(1, 1, share=None), VQGAN, "watch", "wins"),
    ("image discriminator", right(0.99, 0.01), VQGAN, "watch", "tells nothing apart"),
    ("image discriminator", right(1, 1), replace(VQGAN, disc_start=200), "early", "step 200"),
    ("GAN share", right(0.8, 0.7, share=0.97), VQGAN, "good", "97 %"),
    ("GAN share", right(0.8, 0.7, share=0.995), VQGAN, "watch", "100 %"),
    ("GAN share", {}, VQGAN, "early", "step 100"),
    ("reconstruction", psnr(25, 26), VQGAN, "good", "1.0 dB better in PSNR"),
    ("reconstruction", psnr(25, 24.1), VQGAN, "good", "0.9 dB worse"),
    ("reconstruction", psnr(25, 23), VQGAN, "watch", "2.0 dB worse in PSNR than before"),
    ("reconstruction", psnr(25, 23, 140), VQGAN, "watch", "a dip is usual until about step 150"),
    ("reconstruction", psnr(25, 21), VQGAN, "bad", "4.0 dB worse"),
    # Twice the absolute error is 6 dB.
    ("reconstruction", {"train/l1": [(90, 0.1), (110, 0.2), (120, 0.2), (130, 0.2)]}, VQGAN, "bad",
     "6.0 dB worse in training error"),
    ("reconstruction", {"val/psnr": [(100, 25), (200, 5)]}, VQGAN, "early", "step 100"),
    ("loader", {"train/waiting": series(0.9, 0.1, 0.1)}, VQGAN, "good", "10 % of the time"),
    ("loader", waits(0.9, 0.3, 0.3), VQGAN, "watch", "30 %"),
    ("loader", waits(0.6), VQGAN, "bad", "60 %"),
    ("loader", waits(0.6), GPT, "bad", "60 %"),
    ("loader", waits(0.6, seconds=0.1), GPT, "early", "60 % of 3 s are spent on waiting for clips"),
    ("loader", waits(0.1, seconds=0.1), GPT, "good", "10 % of the time"),
    ("loader", {"train/waiting": series(0.9)}, VQGAN, "early", "every 10 steps"),
    ("learning", {"train/loss": series(7, 6.9, 6.9, 6.9, first=230)}, GPT, "bad", "nothing learnt"),
    ("learning", {"train/loss": series(7, 6, 6, 6, first=230)}, GPT, "good", "loss 6.00; guessing"),
    ("learning", {"train/loss": series(7, 7, 7, 7)}, GPT, "early", "step 200"),
    ("overfitting", losses([4, 3, 3.1, 3.2, 3.3], [4, 3, 2, 1, 1]), GPT, "bad", "up 7 % since"),
    ("overfitting", losses([4, 3, 3.01, 3.02, 3.01], [4, 3, 2, 1, 1]), GPT, "watch", "since step"),
    # A rise that has not lasted yet may be an accident, and is nothing good.
    ("overfitting", losses([4, 3, 2, 3, 3], [4, 3, 2, 1, 1]), GPT, "early",
     "too early to say: validation loss 3.000, best 2.000 at step 30"),
    ("overfitting", losses([4, 3, 2, 1, 2], [4, 3, 2, 1, 2]), GPT, "early", "best 1.000 at step"),
    ("overfitting", losses([4, 3, 2, 3, 2.01], [4, 3, 2, 1, 1]), GPT, "good", "best 2.000 at step"),
    ("overfitting", losses([4, 0, 0, 0, 0], [4, 3, 2, 1, 0]), GPT, "good", "best 0.000 at step 20"),
    ("overfitting", losses([4, 0, 1, 1, 1], [4, 3, 2, 1, 0]), GPT, "bad", "since step 20"),
    ("overfitting", losses([4, 3, 4, 5, 6], [4, 3, 4, 5, 6]), GPT, "watch", "did not fall"),
    ("overfitting", losses([4, 5, 6], [4, 3, 2]), GPT, "early", "3 validations"),
    ("overfitting", losses([4], [4, 3, 2]), GPT, "early", "1 validation so far"),
    # Noise around grey is 0.5 away and more; in the first steps that is no wonder.
    ("numbers", errors(0.1, 0.6, 0.7, 0.8), VQGAN, "bad",
     "diverged at step 310: mean absolute error 0.8; that of a grey picture is at most 0.5"),
    ("numbers", errors(0.1, 0.1, 0.6, 0.7), VQGAN, "good", "finite"),
    ("numbers", errors(0.1, 0.6, 0.7, 0.8, first=110), VQGAN, "good", "finite"),
    ("numbers", errors(0.1, 0.1, 197, first=20, validated=2208), VQGAN, "bad", "at step 40"),
    ("numbers", errors(0.1, 0.1, 0.6, validated=0.1), VQGAN, "good", "finite"),
    ("numbers", errors(0.1, 0.1, 0.1, validated=0.6), VQGAN, "good", "finite"),
    ("numbers", errors(*[0.05] * 5, *[0.21] * 5), VQGAN, "bad",
     "fell back at step 350: mean absolute error 0.21, 0.05 at step 340"),
    ("numbers", errors(*[0.05] * 5, *[0.21] * 4), VQGAN, "good", "finite"),
    # What discriminators cost is judged apart.
    ("numbers", errors(*[0.05] * 5, *[0.15] * 9), VQGAN, "good", "finite"),
    ("numbers", losses([6], later(2, 8, 8, 9)), GPT, "bad",
     "diverged at step 310: loss 9; guessing among 1,024 codes has 6.93"),
    # The loss of an untrained GPT, and that of validation where training goes on.
    ("numbers", losses([9, 9], later(7.1, 7.1, 7.1, 3)), GPT, "good", "finite"),
    ("numbers", losses([6], later(*[2] * 5, *[4] * 5)), GPT, "bad",
     "fell back at step 350: loss 4, 2 at step 340"),
    ("numbers", losses([6], later(*[2] * 5, *[3.5] * 5)), GPT, "good", "finite"),
    ("numbers", losses([6], later(9, 9, 9)), replace(GPT, codes=0), "good", "finite"),
]  # fmt: skip


def verdict(subject: str, figures, facts: Facts) -> Verdict:
    [found] = [v for v in judge(figures, facts) if v.subject == subject]
    return found


@pytest.mark.parametrize(("subject", "figures", "facts", "level", "words"), CASES)
def test_the_rule(subject, figures, facts, level, words):
    found = verdict(subject, figures, facts)
    assert (found.level, words in found.line) == (level, True), found
    assert bool(found.advice) == (level in ("watch", "bad"))


def test_codes_are_not_judged_before_random_restart_can_have_acted():
    """The tiny preset, as it went: 4 clips of 4 x 16 x 16 positions, 1,024 codes, warm-up 20."""
    tiny = Facts("vqgan", codes=1024, log_steps=10, warmup=20, positions=4096, random_restart=True)
    used = series(1024, 212, 131, 102, 69, 128, 80, 119, 106, 106, 94, 169, 849, 836, 756, 662)
    levels = {
        step: verdict("codebook", {"train/codes_used": used[: step // 10]}, tiny).level
        for step in range(10, 170, 10)
    }
    assert {step for step, level in levels.items() if level != "early"} == {140, 150, 160}
    assert {levels[step] for step in (140, 150, 160)} == {"good"}


def test_the_first_restart_is_that_of_the_codebook():
    """Of codes that are given nothing, while the others are given all."""
    book = Codebook(codes=8, width=2, random_restart=True)
    moved = False
    step = 0
    while not moved:
        step += 1
        book.forward(torch.zeros(1, 2, 1, 2, 2))
        before = book.N.clone()
        book.update()
        moved = bool((before < book.N).sum() > 1)
    facts = Facts("vqgan", codes=8, log_steps=1, positions=4, random_restart=True)
    assert facts.first_restart == step


def test_a_gpt_of_the_tiny_preset_is_judged_within_200_steps():
    tiny = Facts("gpt", codes=1024, log_steps=10, warmup=20)
    figures = {"train/loss": series(*[5.0] * 20)}
    assert verdict("learning", figures, tiny).level == "good"


def test_the_advice_names_options_that_the_command_has():
    train = {
        kind: typer.main.get_command(app).commands[kind].commands["train"]
        for kind in ("vqgan", "gpt")
    }
    for subject, figures, facts, *_ in CASES:
        command = train[facts.kind]
        options = {name for parameter in command.params if not parameter.hidden
                   for name in parameter.opts}  # fmt: skip
        named = re.findall(r"--[a-z-]+", verdict(subject, figures, facts).advice)
        assert set(named) <= options


def test_the_advice_is_about_what_is_wrong():
    named = {
        subject: verdict(subject, figures, facts).advice
        for subject, figures, facts, level, _ in CASES if level == "bad" and facts in (VQGAN, GPT)
    }  # fmt: skip
    assert "--random-restart" in named["codebook"]
    assert "--disc-start" in named["image discriminator"]
    assert "--video-gan-weight" in named["video discriminator"]
    assert "--workers" in named["loader"]
    read = verdict("loader", waits(0.6), replace(GPT, encoded=True)).advice
    assert "--workers" in read and "tats encode" not in read
    assert "--dropout" in named["overfitting"]
    assert "best.ckpt keeps step 20" in named["overfitting"]
    assert "--learning-rate" in named["numbers"]
    bf16 = replace(VQGAN, not_finite="step 1: l1 = nan", is_bf16=True)
    assert "--precision float32" in verdict("numbers", {}, bf16).advice
    again = verdict("codebook", codes(1), replace(VQGAN, random_restart=True)).advice
    assert "--random-restart" not in again


def test_what_a_run_lacks_is_not_judged():
    plain = replace(VQGAN, discriminators=())
    assert [v.subject for v in judge({}, plain)] == ["numbers", "codebook", "loader"]
    image = replace(VQGAN, discriminators=("image",), disc_start=0)
    subjects = [v.subject for v in judge({}, image)]
    assert subjects == ["numbers", "codebook", "image discriminator", "GAN share", "loader"]
    assert [v.subject for v in judge({}, replace(GPT, codes=0))] == [
        "numbers",
        "overfitting",
        "loader",
    ]


def test_odd_values_in_between_do_not_decide():
    waiting = {"train/waiting": series(0.1, math.nan, 0.1, 1.0, 0.1)}
    assert verdict("loader", waiting, VQGAN).level == "good"
    waiting = {"train/waiting": series(0.1, math.nan, math.nan, 0.1)}
    assert verdict("loader", waiting, VQGAN).level == "early"


def test_the_worst_is_the_first_of_those_that_are_bad():
    levels = ("good", "watch", "bad", "bad", "early")
    verdicts = [Verdict(str(n), level, "") for n, level in enumerate(levels)]
    assert worst(verdicts).subject == "2"
    assert worst([verdicts[4], verdicts[1]]).subject == "1"
    assert worst([verdicts[0], verdicts[4]]) is None
    assert worst([]) is None
