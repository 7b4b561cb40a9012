"""What the figures of a training run say about it, in words.

Each rule looks at a few figures and gives a verdict, with the number it rests on and the options
that help. Figures are series of (step, value); steps are those done, from 1.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from statistics import median
from typing import Literal

from tatscli.config.words import counted

Series = Sequence[tuple[int, float]]
Figures = Mapping[str, Series]
"""Series by the names of the metrics, such as ``train/l1``."""

Level = Literal["good", "early", "watch", "bad"]
"""Nothing to do; too early to say; keep an eye on it; act. In this order from best to worst."""
LEVELS: tuple[Level, ...] = ("good", "early", "watch", "bad")

RECENT = 5
"""Points whose median is the present value of a figure: one odd batch, or the first with the start
of the readers, does not decide."""
ENOUGH = 3
"""Points below which it is too early to say."""

COLLAPSED, SPARSE = 0.2, 0.5
"""Parts of the codes that could be used which are: codebooks of 4,096 to 16,384 codes that work are
reported to use three quarters or more, those that collapsed a few per cent."""

WINS = 0.95
"""Part of the patches from which on a discriminator's answers are foregone: it has nothing left to
learn, and what it teaches no longer depends on how good a reconstruction is."""
EQUAL = 0.5
"""The GAN's share that the adaptive weight of Esser et al. 2021 (equation 7) would set: more than
that, from a discriminator that wins, moves the generator more than the clips do."""
DOMINATES = 0.99
"""The GAN's share at which reconstruction hardly counts. At the published weights 0.97 was seen in
runs whose reconstructions went on improving."""

DIP, RUIN = 1.0, 3.0
"""Decibels lost since the discriminators act: a dip is usual and recovers; 3 dB are twice the
squared error."""

WAITS, STARVES = 0.2, 0.5
"""Parts of the time spent on waiting for clips: a fifth is worth another reader, half means that
the reader sets the pace."""
SETTLED = 30.0
"""Seconds of training below which such a part says nothing: starting readers takes seconds."""

RISING = 3
"""Validations in a row without a better one that are no accident: the clips are fixed."""
NOTHING_LEFT = 0.01
"""Nats a token below which losses differ by accident alone; what is learnt by heart may have 0."""
OVERFITS = 0.02
"""Part by which the validation loss is above its best where more training makes a GPT worse."""

GUESSING = 0.98
"""Part of ln K, the loss of guessing among K codes, above which nothing was learnt: the plain
frequencies of the codes alone give less."""
FIRST_STEPS = 150
"""Steps after the warm-up of the rate in which a GPT learns at least those frequencies, and in
which an autoencoder settles: until then, errors of 0.84 were seen in runs that ended well."""

GREY = 0.5
"""Mean absolute error that a grey picture has at most, as frames are in [-0.5, 0.5]; networks that
were just made have 0.3 to 0.4."""
WORSE = 1.1
"""Times ln K that mark a loss as worse than guessing: a GPT that was just made has 1.0."""
UNSETTLED = 10
"""Times these limits count until the first steps are done."""
LOST = 4
"""Times its own best that the absolute error of a run has where it was lost: 12 dB. What
discriminators cost is judged apart, and was never more than half of it."""
FORGOT = 0.25
"""Part of ln K that the loss is above its own best where what was learnt is lost: of batches that
differ, five in a row were a fifth of that apart."""

AGAIN = "in a new run that starts from these weights (--init)"
"""Where settings are changed that a run which is continued must keep."""
_NOT_FINITE = re.compile(r"step (\d+): ([^;]*)")


@dataclass(frozen=True)
class Verdict:
    """What is to be said about one side of a run.

    Attributes:
        subject: The side, such as ``codebook``.
        level: How it is.
        text: One short sentence, with the figures.
        figure: The number that the level rests on, where there is one; the text has its unit.
        advice: What helps, with the options; empty where nothing has to.
    """

    subject: str
    level: Level
    text: str
    figure: float | None = None
    advice: str = ""

    @property
    def line(self) -> str:
        """Subject and text."""
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True)
class Facts:
    """What a run is, as far as its figures are to be understood.

    Attributes:
        kind: What it trains.
        codes: Codes K of the VQGAN; 0 where nobody knows.
        log_steps: Steps between figures.
        warmup: Steps in which the learning rate rises.
        is_bf16: Whether the networks compute in bf16.
        not_finite: The message with which it stopped at a number that is none; empty if it did not.
        positions: Of latent grids in a step of all processes.
        random_restart: Whether dead codes are moved.
        codebook_decay: Decay of the moving averages of the codes.
        restart_threshold: Part of the mean count below which a code is dead.
        discriminators: The names of those that have weight.
        disc_start: Step from which they act.
        disc_ramp: Steps in which their weight rises.
        encoded: Whether the clips are tokens already.
    """

    kind: Literal["vqgan", "gpt"]
    codes: int
    log_steps: int
    warmup: int = 0
    is_bf16: bool = False
    not_finite: str = ""
    positions: int = 1
    random_restart: bool = False
    codebook_decay: float = 0.99
    restart_threshold: float = 0.1
    discriminators: tuple[str, ...] = ()
    disc_start: int = 0
    disc_ramp: int = 0
    encoded: bool = False

    @property
    def first_restart(self) -> int:
        """Step in which the first codes are moved, those that nothing was given to; 0 for none.

        All counts begin at 1. After n steps that of such a code is d^n, for a decay d, and the mean
        d^n + p (1 - d^n), for p positions a code in each step.
        """
        if not self.random_restart:
            return 0
        given = self.restart_threshold * self.positions / self.codes
        left = given / (1 - self.restart_threshold + given)
        return math.ceil(math.log(left) / math.log(self.codebook_decay))


def judge(figures: Figures, facts: Facts) -> list[Verdict]:
    """What the figures say about each side of a run; sides that it lacks are left out."""
    finite = {
        name: [(step, value) for step, value in series if math.isfinite(value)]
        for name, series in figures.items()
    }
    verdicts = [rule(finite, facts) for rule in _RULES[facts.kind]]
    numbers = _numbers(figures, facts)
    if numbers.level == "good":
        numbers = _lost(finite, facts) or numbers
    return [numbers, *filter(None, verdicts)]


def worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first of the worst, if there is one that asks for attention."""
    found = max(verdicts, key=lambda v: LEVELS.index(v.level), default=None)
    return found if found and found.level in ("watch", "bad") else None


def _numbers(figures: Figures, facts: Facts) -> Verdict:
    others = ", or --precision float32" if facts.is_bf16 else ""
    advice = (
        f"a lower --learning-rate or a smaller --grad-clip{others}; --resume goes on from the last "
        "checkpoint, where one was saved"
    )
    if facts.not_finite:
        found = _NOT_FINITE.search(facts.not_finite)
        if found:
            text = f"not finite at step {int(found[1]):,}: {found[2]}"
            return Verdict("numbers", "bad", text, int(found[1]), advice)
        return Verdict("numbers", "bad", facts.not_finite, None, advice)
    for name, series in figures.items():
        if series and not math.isfinite(series[-1][1]):
            step, value = series[-1]
            text = f"not finite at step {step:,}: {name} = {value}"
            return Verdict("numbers", "bad", text, step, advice)
    if not figures:
        return Verdict("numbers", "early", "too early to say: no figures yet")
    return Verdict("numbers", "good", "all figures are finite")


def _lost(figures: Figures, facts: Facts) -> Verdict | None:
    """What is to be said where the model makes nothing of use any more, in finite numbers."""
    is_vqgan = facts.kind == "vqgan"
    if not (is_vqgan or facts.codes):
        return None
    guess = 0.0 if is_vqgan else math.log(facts.codes)
    name, what = ("l1", "mean absolute error") if is_vqgan else ("loss", "loss")
    trained, validated = figures.get(f"train/{name}", ()), figures.get(f"val/{name}", ())[-1:]
    if not trained:
        return None
    step, now = trained[-1]
    limit = GREY if is_vqgan else WORSE * guess
    if step <= facts.warmup + FIRST_STEPS:
        limit *= UNSETTLED
    since = _above(trained, limit)
    # One odd batch decides nothing; that all validation clips agree with it does.
    text = ""
    agrees = since and validated and validated[0][0] >= since[0][0] and validated[0][1] > limit
    if len(since) >= ENOUGH or agrees:
        known = "that of a grey picture is at most 0.5"
        if not is_vqgan:
            known = f"guessing among {facts.codes:,} codes has {guess:.2f}"
        text = f"diverged at step {since[0][0]:,}: {what} {now:.4g}; {known}"
    else:
        best, at = _best(trained)
        since = _above(trained, LOST * best if is_vqgan else best + FORGOT * guess)
        if len(since) >= RECENT:
            text = f"fell back at step {since[0][0]:,}: {what} {now:.4g}, {best:.4g} at step {at:,}"
    if not text:
        return None
    advice = (
        "a lower --learning-rate or a smaller --grad-clip, in a new run; --init starts it from a "
        "checkpoint that was saved before, such as best.ckpt"
    )
    return Verdict("numbers", "bad", text, now, advice)


def _codebook(figures: Figures, facts: Facts) -> Verdict | None:
    # What random restart mends cannot be seen before it has acted.
    start, codes = max(facts.warmup, facts.first_restart), facts.codes
    used = _since(figures.get("train/codes_used", ()), start)
    if len(used) < ENOUGH:
        due = start + ENOUGH * facts.log_steps
        return _early("codebook", f"judged from about step {due:,} on")
    # The largest: the last window of a run may be shorter than the others.
    count = max(value for _, value in used[-ENOUGH:])
    could = codes * -math.expm1(-facts.positions * facts.log_steps / codes)
    share = count / could
    text = f"{count:,.0f} of {codes:,} codes used over {counted(facts.log_steps, 'step')}"
    if could < 0.9 * codes:
        text += f", which could use {could:,.0f}"
    if (dead := figures.get("train/codes_dead")) and dead[-1][1]:
        text += f"; {_percent(dead[-1][1])} are dead"
    if share >= SPARSE:
        return Verdict("codebook", "good", text, count / codes)
    advice = f"--random-restart, {AGAIN}"
    if facts.random_restart:
        advice = (
            "a new run with a lower --learning-rate, a smaller --embedding-dim or fewer --codes"
        )
    level: Level = "bad" if share < COLLAPSED else "watch"
    return Verdict("codebook", level, text, count / codes, advice)


def _discriminator(name: str, figures: Figures, facts: Facts) -> Verdict | None:
    if name not in facts.discriminators:
        return None
    subject, start = f"{name} discriminator", facts.disc_start
    sides = [
        _since(figures.get(f"train/disc_{name}_right_{side}", ()), start)
        for side in ("real", "fake")
    ]
    if min(map(len, sides)) < ENOUGH:
        return _acts_later(subject, start)
    real, fake = map(_now, sides)
    low, high = min(real, fake), max(real, fake)
    text = f"right on {_percent(real)} of real and {_percent(fake)} of reconstructed patches"
    if low > WINS:
        advice = f"a later --disc-start, a lower --{name}-gan-weight or a shorter --disc-warmup"
        shares = _since(figures.get("train/gan_share", ()), start)
        share = _now(shares) if shares else 0.0
        text += f", and {_percent(share)} of the generator's gradient is the GAN's"
        level: Level = "bad" if share >= EQUAL else "watch"
        return Verdict(subject, level, f"wins: {text}", low, f"{advice}, {AGAIN}")
    if high > WINS and low < 1 - WINS:
        advice = f"a longer --disc-warmup, {AGAIN}"
        return Verdict(subject, "watch", f"tells nothing apart: {text}", low, advice)
    return Verdict(subject, "good", text, low)


def _gan_share(figures: Figures, facts: Facts) -> Verdict | None:
    if not facts.discriminators:
        return None
    shares = _since(figures.get("train/gan_share", ()), facts.disc_start)
    if len(shares) < ENOUGH:
        return _acts_later("GAN share", facts.disc_start)
    share = _now(shares)
    text = f"{_percent(share)} of the generator's gradient is the GAN's"
    if share < DOMINATES:
        return Verdict("GAN share", "good", text, share)
    advice = f"a lower {', '.join(_weights(facts))} or --gan-feat-weight, {AGAIN}"
    return Verdict("GAN share", "watch", text, share, advice)


def _reconstruction(figures: Figures, facts: Facts) -> Verdict | None:
    start = facts.disc_start
    if not (facts.discriminators and start):
        return None
    # Of training clips, the mean absolute error is known: in dB it moves as PSNR does.
    error = [(step, -20 * math.log10(v)) for step, v in figures.get("train/l1", ()) if v > 0]
    for name, series in (("PSNR", figures.get("val/psnr", ())), ("training error", error)):
        before = [value for step, value in series if step <= start][-ENOUGH:]
        after = [value for step, value in series if step > start][-ENOUGH:]
        if not (before and len(after) == ENOUGH):
            continue
        lost = median(before) - median(after)
        course = f"{lost:.1f} dB worse" if lost > 0 else f"{-lost:.1f} dB better"
        text = f"{course} in {name} than before the discriminators acted (step {start:,})"
        if lost <= DIP:
            return Verdict("reconstruction", "good", text, -lost)
        level: Level = "bad" if lost > RUIN else "watch"
        settled = start + facts.disc_ramp
        if series[-1][0] <= settled:
            text += f"; a dip is usual until about step {settled:,}"
        weights = " and ".join(_weights(facts))
        advice = f"a later --disc-start, a longer --disc-ramp or a lower {weights}, {AGAIN}"
        return Verdict("reconstruction", level, text, -lost, advice)
    return _acts_later("reconstruction", start)


def _loader(figures: Figures, facts: Facts) -> Verdict | None:
    waiting = figures.get("train/waiting", ())
    if len(waiting) < ENOUGH:
        every = "step" if facts.log_steps == 1 else f"{facts.log_steps:,} steps"
        return _early("loader", f"waiting is timed every {every}")
    share = _now(waiting)
    text = f"{_percent(share)} of the time is spent on waiting for clips"
    if share < WAITS:
        return Verdict("loader", "good", text, share)
    lasted = _lasted(figures.get("train/seconds", ()))
    if lasted < SETTLED:
        why = f"{_percent(share)} of {lasted:.0f} s are spent on waiting for clips"
        return _early("loader", f"{why}; judged from {SETTLED:.0f} s of training on")
    advice = "more --workers"
    if facts.encoded:
        advice += ", or the tokens on a faster disk"
    elif facts.kind == "gpt":
        advice += ", or tokens that tats encode writes once in place of the videos"
    else:
        advice += ", or videos that are smaller and have key frames more often"
    return Verdict("loader", "bad" if share >= STARVES else "watch", text, share, advice)


def _learning(figures: Figures, facts: Facts) -> Verdict | None:
    losses, due = figures.get("train/loss", ()), facts.warmup + FIRST_STEPS
    if not facts.codes:
        return None
    if len(losses) < ENOUGH or losses[-1][0] < due:
        return _early("learning", f"judged from step {due:,} on")
    loss, guess = _now(losses), math.log(facts.codes)
    text = f"loss {loss:.2f}; guessing among {facts.codes:,} codes has {guess:.2f}"
    if loss < GUESSING * guess:
        return Verdict("learning", "good", text, loss)
    advice = (
        "another --learning-rate or a longer --lr-warmup; tats vqgan eval says what the codes are "
        "worth"
    )
    return Verdict("learning", "bad", f"nothing learnt: {text}", loss, advice)


def _overfitting(figures: Figures, facts: Facts) -> Verdict | None:
    validated, trained = figures.get("val/loss", ()), figures.get("train/loss", ())
    if len(validated) <= RISING:
        return _early("overfitting", f"{counted(len(validated), 'validation')} so far")
    at, (step, best) = min(enumerate(validated), key=lambda item: item[1][1])
    since, now = len(validated) - 1 - at, _now(validated[at:][-RISING:])
    rise = (now - best) / max(best, NOTHING_LEFT)
    then = [value for done, value in trained if done <= step]
    if since < RISING or not then or now < NOTHING_LEFT:
        last = validated[-1][1]
        text = f"validation loss {last:.3f}, best {best:.3f} at step {step:,}"
        if last - best > OVERFITS * max(best, NOTHING_LEFT) and now >= NOTHING_LEFT:
            return _early("overfitting", text)
        return Verdict("overfitting", "good", text, rise)
    falls = _now(trained) < median(then[-RECENT:])
    text = (
        f"validation loss {now:.3f}, up {_percent(rise)} since step {step:,}, while that of "
        f"training {'fell' if falls else 'did not fall'} to {_now(trained):.3f}"
    )
    if not falls:
        return Verdict("overfitting", "watch", text, rise, "a lower --learning-rate")
    advice = (
        f"best.ckpt keeps step {step:,}; more videos, a larger --weight-decay, or more --dropout, "
        f"{AGAIN}"
    )
    return Verdict("overfitting", "bad" if rise > OVERFITS else "watch", text, rise, advice)


_RULES: dict[str, tuple[Callable[[Figures, Facts], Verdict | None], ...]] = {
    "vqgan": (
        _codebook,
        partial(_discriminator, "image"),
        partial(_discriminator, "video"),
        _gan_share,
        _reconstruction,
        _loader,
    ),
    "gpt": (_learning, _overfitting, _loader),
}
"""In the order of the pipeline: of equally bad sides, the first is shown."""


def _now(series: Series) -> float:
    return median(value for _, value in series[-RECENT:])


def _since(series: Series, start: int) -> Series:
    return [(step, value) for step, value in series if step > start]


def _lasted(seconds: Series) -> float:
    """How long the steps took, from seconds a step, each of the steps since the one before."""
    ends = [0, *(step for step, _ in seconds)]
    return sum((ends[n + 1] - ends[n]) * each for n, (_, each) in enumerate(seconds))


def _above(series: Series, limit: float) -> Series:
    """The last points, as far as all of them are above a limit."""
    return list(takewhile(lambda point: point[1] > limit, reversed(series)))[::-1]


def _best(series: Series) -> tuple[float, int]:
    """The lowest value that a figure ever had, as ``_now`` takes it, and when."""
    ends = range(min(RECENT, len(series)), len(series) + 1)
    return min((_now(series[max(0, end - RECENT) : end]), series[end - 1][0]) for end in ends)


def _weights(facts: Facts) -> list[str]:
    return [f"--{name}-gan-weight" for name in facts.discriminators]


def _early(subject: str, why: str) -> Verdict:
    return Verdict(subject, "early", f"too early to say: {why}")


def _acts_later(subject: str, start: int) -> Verdict:
    return _early(subject, f"the discriminators act from step {start:,} on, then {ENOUGH} figures")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
