"""Times the published TATS code and ours on the same weights, on one machine in one run.

Run by hand; nothing is fetched, and pytest does not collect it:

    git clone https://github.com/songweige/TATS published
    python tests/compare_published.py published [--precision float32 bf16] [--only encode decode]

The published code runs in float32, as it ships, and is imported unmodified. Stand-ins take the
place of the packages it wants and this environment lacks, and of Lightning 1.5, which no longer
installs; they only do it favours: it logs and saves nothing, and its help starts without them.
Each round of a row times all sides in turn, so that noise hits them alike; the best round counts.
"""

import argparse
import contextlib
import copy
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[[], Any]
Precision = Literal["float32", "bf16"]

SEED = 20220
PUBLISHED = "published"
TOP_K, TOP_P = 2048, 0.92
"""Defaults of the published sampling scripts."""
GRAD_CLIP = 1.0
"""Of the published training recipe; ours by default."""
WARM_UP_FRAMES = 1
"""Latent frames drawn greedily before sampling is timed; they are compared, too."""

CPU = torch.device("cpu")

TARGETS = {
    ("sample 128", "bf16", 4): "75 tok/s over 1,024",
    ("sample 128", "float32", 4): "40 tok/s over 1,024",
    ("sample 1024", "bf16", 4): "75 tok/s",
    ("sample 1024", "float32", 4): "40 tok/s",
    ("sample 1024", "bf16", 16): "half the limit",
    ("sample 1024", "float32", 16): "half the limit",
    ("train CPU", "float32"): "9 s",
    ("train CPU", "bf16"): "3 s",
    ("encode", "float32"): "0.30 s",
    ("encode", "bf16"): "0.15 s",
    ("decode", "float32"): "2.0 s",
    ("decode", "bf16"): "0.6 s",
    ("i3d", "float32"): "3.4 s",
    ("i3d", "bf16"): "1.4 s",
    ("help", "-"): "0.25 s",
}
"""What we set out to reach, on another machine: two cores with AMX."""


@dataclass(frozen=True)
class Sizes:
    """What is compared: by default that of a published model.

    Attributes:
        layers: Of the GPT.
        heads: Of the GPT.
        width: Of the GPT.
        codes: Of GPT and VQGAN.
        frame: Latent side lengths (h, w) of the GPT's grid; 32 tokens, so that whole latent frames
            make 128. Only the product of the grid matters to a GPT.
        short: Latent frames that the published code samples as well.
        window: Latent frames of a whole window.
        hidden: Channels of the VQGAN.
        embedding: Width of its codes.
        judged: Channels of the discriminators.
        side: Of the frames that are encoded and decoded.
        trained_side: Of the frames of a training step.
        clips: That the I3D sees.
    """

    layers: int = 24
    heads: int = 16
    width: int = 1024
    codes: int = 16384
    frame: tuple[int, int] = (8, 4)
    short: int = 4
    window: int = 32
    hidden: int = 32
    embedding: int = 256
    judged: int = 64
    side: int = 128
    trained_side: int = 64
    clips: int = 16


QUICK = Sizes(
    layers=2, heads=4, width=128, codes=512, short=2, window=4, hidden=8, embedding=16, judged=16,
    side=64, trained_side=32, clips=2,
)  # fmt: skip
FRAMES = 16
TRAINED_CLIPS = 2
DOWNSAMPLE = (4, 8, 8)
OUR_I3D_BATCH = 4


@dataclass(frozen=True)
class Options:
    """What to compare, and how often.

    Attributes:
        checkout: Root of the published repository.
        precisions: Of ours.
        batches: Sequences sampled at once; the published code samples the first number.
        repeats: Rounds.
        full: Whether the published code samples a whole window, too.
        sizes: Of the models.
    """

    checkout: Path
    precisions: tuple[Precision, ...]
    batches: tuple[int, ...]
    repeats: int
    full: bool
    sizes: Sizes


class Timing(NamedTuple):
    """Seconds of one call, or the best of several."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds, None where a side did not run.

    Attributes:
        work: What was done.
        precision: Of ours; the published code is float32 always.
        published: Seconds of the published code.
        ours: Seconds of ours.
        tokens: Tokens that were sampled in that time.
        target: What we set out to reach.
        outputs: How far the outputs agree.
        note: Why a side did not run.
    """

    work: str
    precision: str = "-"
    published: float | None = None
    ours: float | None = None
    tokens: int = 0
    target: str = ""
    outputs: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        return self.published / self.ours if self.published and self.ours else None


class _Anything(type):
    """Class of ``_Nothing``, whose every attribute, too, is ``_Nothing``."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_Anything):
    """Stands for whatever a missing package has; can be inherited from and called."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return _Nothing

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _Nothing()


class _Missing(types.ModuleType):
    """Stands for a package that cannot be imported."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _LightningModule(nn.Module):
    """What the published models use of Lightning 1.5, without its cost."""

    global_step = 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, Any] = {}

    def save_hyperparameters(self, *_: Any, **__: Any) -> None: ...

    def log(self, name: str, value: Any, **_: Any) -> None:
        self.logged[name] = value

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


_WANTED = (
    "ftfy", "h5py", "imageio", "regex", "requests", "skvideo", "skvideo.io", "sklearn",
    "sklearn.metrics", "sklearn.metrics.pairwise", "torchvision", "torchvision.models",
    "torchvision.datasets", "torchvision.datasets.video_utils", "tqdm",
)  # fmt: skip


def stand_in(checkout: Path) -> None:
    """Make the published package importable: stand-ins for what is missing, and its folder."""
    lightning = _Missing("pytorch_lightning")
    vars(lightning)["LightningModule"] = _LightningModule
    sys.modules["pytorch_lightning"] = lightning
    for name in _WANTED:
        try:
            importlib.import_module(name)
        except Exception:  # absent, or built for another version of something
            sys.modules[name] = _Missing(name)
    sys.path.insert(0, str(checkout))
    warnings.filterwarnings("ignore", category=SyntaxWarning)


class Published(NamedTuple):
    """Modules of the published code."""

    vqgan: Any
    gpt: Any
    i3d: Any


def import_published(checkout: Path) -> Published:
    """Import the published code, leaving no stand-in behind for others to find."""
    modules, path = dict(sys.modules), list(sys.path)
    try:
        stand_in(checkout)
        names = ("tats.tats_vqgan", "tats.modules.gpt", "tats.fvd.pytorch_i3d")
        found = Published(*(importlib.import_module(name) for name in names))
    finally:
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Missing):
                del sys.modules[name]
                if name in modules:
                    sys.modules[name] = modules[name]
        sys.path[:] = path
    # Its weights would be fetched; at weight 0 it is not used.
    found.vqgan.LPIPS = nn.Identity
    return found


def on_weights(make: Call, state: Mapping[str, Tensor]) -> Any:
    """A published module on given weights."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict(state, assign=True)
    return module


def clocked(call: Call) -> Timing:
    """Time one call; CPU-seconds are those of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def better(one: Timing | None, other: Timing) -> Timing:
    """The smaller of both figures."""
    return other if one is None else Timing(min(one.wall, other.wall), min(one.cpu, other.cpu))


def race(sides: Mapping[str, Call], repeats: int) -> dict[str, Timing]:
    """Best of several rounds, in each of which all sides take their turn."""
    best: dict[str, Timing] = {}
    for _ in range(repeats):
        for name, call in sides.items():
            best[name] = better(best.get(name), clocked(call))
    return best


def warmed(sides: Mapping[str, Call]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each side gives, and why those that fail do."""
    outputs, failures = {}, {}
    for name, call in sides.items():
        try:
            outputs[name] = call()
        except Exception as error:
            failures[name] = reason(error)
    return outputs, failures


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def rows(
    work: str,
    key: tuple[Any, ...],
    sides: Mapping[str, Call],
    warm_up: Mapping[str, Call],
    judge: Callable[[Any, Any], str],
    repeats: int,
    tokens: int = 0,
) -> Iterator[Row]:
    """Warm all sides up, compare what that gives, time them: one row for each precision of ours.

    Args:
        work: Name of the row.
        key: Of the target, to be completed by the precision after its first part.
        sides: What is timed: ours by precision and, where it takes part, ``PUBLISHED``.
        warm_up: The same for what is compared.
        judge: Compares the published output with ours.
        repeats: Rounds.
        tokens: Sampled by each side.
    """
    outputs, failures = warmed(warm_up)
    best = race({name: sides[name] for name in sides if name in outputs}, repeats)
    theirs = best.get(PUBLISHED)
    for precision in sides:
        if precision == PUBLISHED:
            continue
        ours = best.get(precision)
        notes = [failures[name] for name in (PUBLISHED, precision) if name in failures]
        yield Row(
            work,
            precision,
            theirs.wall if theirs else None,
            ours.wall if ours else None,
            tokens,
            TARGETS.get((key[0], precision, *key[1:]), ""),
            judge(outputs[PUBLISHED], outputs[precision]) if theirs and ours else "",
            "; ".join(notes),
        )


def distance(theirs: Tensor, ours: Tensor) -> str:
    """Largest difference, beside the largest value."""
    return f"max diff. {(theirs - ours.float()).abs().max():.1e} of {theirs.abs().max():.2g}"


def equal_codes(theirs: Tensor, ours: Tensor) -> str:
    """Share of equal codes, and how many kinds there are."""
    share = (theirs == ours).float().mean()
    return (
        f"{share:.2%} of {theirs.numel()} codes equal ({len(set(theirs.flatten().tolist()))} kinds)"
    )


def equal_tokens(theirs: Tensor, ours: Tensor) -> str:
    """How long greedy samples go the same way."""
    same = (theirs == ours.flatten(1)).long()
    first = int(same.cumprod(dim=1).sum(dim=1).min())
    return f"greedy: {same.float().mean():.1%} of {same.numel()} equal, the first {first} of each"


def vqgan_of(options: Options, side: int) -> Any:
    """Our VQGAN with its discriminators, as ``TrainedVQGAN``, codes spread over its latents."""
    from tatscli.config.data import ClipConfig
    from tatscli.config.vqgan import VQGANConfig
    from tatscli.core.checkpoint import TrainedVQGAN
    from tatscli.core.models.discriminator import PatchDiscriminator
    from tatscli.core.models.vqgan import VQGAN

    sizes = options.sizes
    torch.manual_seed(SEED)
    config = VQGANConfig(
        embedding_dim=sizes.embedding,
        codes=sizes.codes,
        hidden_channels=sizes.hidden,
        downsample=DOWNSAMPLE,
        disc_channels=sizes.judged,
    )
    model = VQGAN(config).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    book = model.codebook
    with torch.no_grad():
        seen = model.latents(clip_of(side)).movedim(1, -1).flatten(0, -2)
        book.embeddings.copy_(seen.mean(0) + seen.std(0) * torch.randn_like(book.embeddings))
        book.z_avg.copy_(book.embeddings)
        book.N.fill_(1)
    shape = (config.image_channels, config.disc_channels, config.disc_layers)
    judges = {
        f"{name}.{key}": value
        for name, judge in (
            ("image_discriminator", PatchDiscriminator(2, *shape)),
            ("video_discriminator", PatchDiscriminator(3, *shape)),
        )
        for key, value in judge.state_dict().items()
    }
    clip = ClipConfig(resolution=side, sequence_length=FRAMES)
    return TrainedVQGAN(model, clip, 0.0, 0, judges)


def clip_of(side: int, number: int = 0) -> Tensor:
    """A smooth clip, (1, 3, T, side, side)."""
    coarse = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(number)) - 0.5
    return F.interpolate(coarse, (FRAMES, side, side), mode="trilinear")


def published_vqgan_of(published: Published, trained: Any) -> Any:
    """The published VQGAN on the weights of ours."""
    from tatscli.core.original import OriginalVQGAN, VQGANFacts, published_vqgan

    facts = VQGANFacts(config=trained.model.config, clip=trained.clip, rate=trained.rate)
    checkpoint = published_vqgan(
        OriginalVQGAN(facts, trained.model.state_dict(), dict(trained.judges), trained.step)
    )
    args = checkpoint["hyper_parameters"]["args"]
    args.perceptual_weight = 0.0
    args.discriminator_iter_start = 0
    model = on_weights(lambda: published.vqgan.VQGAN(args), checkpoint["state_dict"])
    model.codebook._need_init = False
    return model


def encode(options: Options, published: Published) -> Iterator[Row]:
    """A clip to codes."""
    from tatscli.core.models.inference import vqgan_for_inference

    side = options.sizes.side
    trained, video = vqgan_of(options, side), clip_of(side)
    theirs = published_vqgan_of(published, trained).eval()
    sides: dict[str, Call] = {PUBLISHED: torch.no_grad()(lambda: theirs.encode(video))}
    for precision in options.precisions:
        ours = vqgan_for_inference(copy.deepcopy(trained.model), CPU, precision)
        sides[precision] = partial(ours.encode, video)
    work = f"encode {FRAMES}x{side}x{side}"
    yield from rows(work, ("encode",), sides, sides, equal_codes, options.repeats)


def decode(options: Options, published: Published) -> Iterator[Row]:
    """Codes to a clip."""
    from tatscli.core.models.inference import vqgan_for_inference

    side = options.sizes.side
    trained = vqgan_of(options, side)
    theirs = published_vqgan_of(published, trained).eval()
    grid = trained.grid
    codes = torch.randint(options.sizes.codes, (1, *grid))
    sides: dict[str, Call] = {PUBLISHED: torch.no_grad()(lambda: theirs.decode(codes))}
    for precision in options.precisions:
        ours = vqgan_for_inference(copy.deepcopy(trained.model), CPU, precision)
        sides[precision] = partial(ours.decode, codes)
    work = f"decode {'x'.join(map(str, grid))}"
    yield from rows(work, ("decode",), sides, sides, distance, options.repeats)


def i3d(options: Options, published: Published) -> Iterator[Row]:
    """Features of clips: the published code takes 16 at once, ours 4."""
    from tatscli.core.models.i3d import I3D, SIDE, random_weights
    from tatscli.core.models.inference import i3d_for_inference

    count = options.sizes.clips
    weights = random_weights(SEED)
    torch.manual_seed(SEED)
    videos = torch.rand(count, 3, FRAMES, SIDE, SIDE) * 2 - 1
    theirs = on_weights(lambda: published.i3d.InceptionI3d(400, in_channels=3), weights).eval()
    sides: dict[str, Call] = {PUBLISHED: torch.no_grad()(lambda: theirs(videos))}
    for precision in options.precisions:
        ours = i3d_for_inference(I3D(weights, eps=1e-5), CPU, precision)
        sides[precision] = partial(our_features, ours, videos)
    work = f"i3d {count}x{FRAMES}x{SIDE}x{SIDE}"
    yield from rows(work, ("i3d",), sides, sides, distance, options.repeats)


@torch.inference_mode()
def our_features(network: Any, videos: Tensor) -> Tensor:
    """Logits by our network, batch by batch."""
    batches = torch.split(videos, OUR_I3D_BATCH)
    return torch.cat([network(batch).logits for batch in batches])


def sample(options: Options, published: Published) -> Iterator[Row]:
    """Tokens of the first latent frames, then of whole windows."""
    from tatscli.config.gpt import ConditionLayout, GPTConfig
    from tatscli.core.models.gpt import GPT
    from tatscli.core.models.inference import gpt_for_inference

    sizes = options.sizes
    torch.manual_seed(SEED)
    grid = (sizes.window, *sizes.frame)
    frame = sizes.frame[0] * sizes.frame[1]
    config = GPTConfig(
        layers=sizes.layers,
        heads=sizes.heads,
        width=sizes.width,
        codes=sizes.codes,
        grid=grid,
        condition=ConditionLayout.unconditional(),
        block_size=sizes.window * frame,
    )
    model = GPT(config).eval()
    with torch.no_grad():
        model.pos_emb.normal_(0, 0.02)
    theirs = published_gpt_of(published, model)
    ours = {
        precision: gpt_for_inference(copy.deepcopy(model), CPU, precision)
        for precision in options.precisions
    }
    del model
    for frames in (sizes.short, sizes.window):
        whole = frames == sizes.window
        for place, batch in enumerate(options.batches):
            drawn: dict[str, Call] = {}
            warm_up: dict[str, Call] = {}
            if not place and (options.full or not whole):
                told = partial(their_tokens, published.gpt, theirs, batch)
                drawn[PUBLISHED] = partial(told, frames * frame, greedy=False)
                warm_up[PUBLISHED] = partial(told, WARM_UP_FRAMES * frame, greedy=True)
            for precision, gpt in ours.items():
                drawn[precision] = partial(our_tokens, gpt, batch, frames, greedy=False)
                warm_up[precision] = partial(our_tokens, gpt, batch, WARM_UP_FRAMES, greedy=True)
            yield from rows(
                f"sample {frames * frame} tokens, batch {batch}",
                (f"sample {frames * frame}", batch),
                drawn,
                warm_up,
                equal_tokens,
                # A whole window takes minutes, in which noise averages out.
                1 if whole and sizes is not QUICK else options.repeats,
                batch * frames * frame,
            )


def published_gpt_of(published: Published, gpt: Any) -> Any:
    """The published GPT on the weights of ours."""
    from tatscli.config.data import ClipConfig
    from tatscli.config.vqgan import VQGANConfig
    from tatscli.core.models.vqgan import VQGAN
    from tatscli.core.original import (
        GPTFacts,
        OriginalGPT,
        OriginalVQGAN,
        VQGANFacts,
        published_gpt,
    )

    # A published file of a GPT has a VQGAN inside; none is used here.
    tiny = VQGANConfig(embedding_dim=1, codes=2, hidden_channels=1)
    clip = ClipConfig(resolution=64, sequence_length=FRAMES)
    inside = VQGANFacts(config=tiny, clip=clip, rate=0.0)
    checkpoint = published_gpt(
        OriginalGPT(
            GPTFacts(config=gpt.config, classes=(), vqgan=inside),
            gpt.state_dict(),
            OriginalVQGAN(inside, VQGAN(tiny).state_dict(), {}, 0),
            None,
            0,
        )
    )
    args, prefix = checkpoint["hyper_parameters"]["args"], "transformer."
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }

    def make() -> Any:
        return published.gpt.GPT(
            args,
            gpt.config.vocabulary,
            args.block_size,
            n_layer=args.n_layer,
            n_head=args.n_head,
            n_embd=args.n_embd,
        )

    return on_weights(make, state).eval()


def their_tokens(module: Any, gpt: Any, batch: int, steps: int, greedy: bool) -> Tensor:
    """Sample as the published scripts do, (B, steps)."""
    torch.manual_seed(SEED)
    start = torch.zeros(batch, 1, dtype=torch.long)
    tokens: Tensor = module.sample_with_past(
        start,
        gpt,
        steps=steps,
        sample_logits=not greedy,
        top_k=None if greedy else TOP_K,
        callback=None,
        temperature=1.0,
        top_p=None if greedy else TOP_P,
    )
    return tokens


def our_tokens(gpt: Any, batch: int, frames: int, greedy: bool) -> Tensor:
    """Sample as our commands do, (B, t, h, w)."""
    from tatscli.core.models.gpt import condition_ids
    from tatscli.core.sampling.filters import TokenFilter
    from tatscli.core.sampling.generate import Chances, generate_window

    return generate_window(
        gpt,
        condition_ids(gpt.config.condition, batch),
        Chances(SEED, range(batch)),
        TokenFilter(temperature=0) if greedy else TokenFilter(1.0, TOP_K, TOP_P),
        frames=frames,
    )


def train(options: Options, published: Published) -> Iterator[Row]:
    """Steps of generator and discriminators, perceptual weight 0; ours through its engine."""
    side = options.sizes.trained_side
    trained = vqgan_of(options, side)
    work = f"train step {TRAINED_CLIPS}x{FRAMES}x{side}x{side}"
    for precision in options.precisions:
        try:
            theirs, ours, outputs = train_in_turn(options, published, trained, precision)
        except Exception as error:
            yield Row(work, precision, note=reason(error))
            continue
        target = TARGETS.get(("train CPU", precision), "")
        yield Row(f"{work}, wall", precision, theirs.wall, ours.wall, outputs=outputs)
        yield Row(f"{work}, CPU", precision, theirs.cpu, ours.cpu, target=target, outputs=outputs)


def train_in_turn(
    options: Options, published: Published, trained: Any, precision: str
) -> tuple[Timing, Timing, str]:
    """Best step of the published code and of ours, and how their first reconstructions agree.

    After each step of ours the engine tells, and then the published code has its turn; a step of
    ours is all that the engine does from one telling to the next.
    """
    from tatscli.config.train import VQGANTrainConfig
    from tatscli.core.training.engine import Clips, fit
    from tatscli.core.training.placement import Placement
    from tatscli.core.training.vqgan import FIGURES, MONITOR, VQGANTraining

    steps, side = 1 + options.repeats, options.sizes.trained_side
    model = published_vqgan_of(published, trained).train()
    optimizers, _ = model.configure_optimizers()
    video = torch.cat([clip_of(side, number) for number in range(TRAINED_CLIPS)])
    batch = {"video": video}
    config = VQGANTrainConfig.model_validate(
        {
            "data": trained.clip.model_dump() | {"data": "synthetic"},
            "model": trained.model.config.model_dump(),
            "loss": {"perceptual_weight": 0, "disc_start": 0, "disc_warmup": 0, "disc_ramp": 0},
            "optim": {"grad_clip": GRAD_CLIP},
            "train": {
                "batch_size": TRAINED_CLIPS, "max_steps": steps,
                "val_check_interval": str(steps),
            },
            "compute": {"workers": 0},
        }
    )  # fmt: skip
    module = VQGANTraining(config, config.optim.learning_rate, 0.0)
    module.start_from(trained)
    best: dict[str, Timing] = {}
    errors: list[float] = []
    begun: list[Timing] = []

    def now() -> Timing:
        return Timing(time.perf_counter(), time.process_time())

    def on_step(step: int, figures: Mapping[str, float]) -> None:
        end = now()
        theirs = clocked(lambda: published_step(model, optimizers, batch))
        if step == 1:
            errors.extend((model.logged["train/recon_loss"].item(), figures["l1"]))
        else:
            start = begun[-1]
            ours = Timing(end.wall - start.wall, end.cpu - start.cpu)
            for name, timing in ((PUBLISHED, theirs), (precision, ours)):
                best[name] = better(best.get(name), timing)
        begun.append(now())

    data = _SameClips(video)
    kind: Any = "bf16-mixed" if precision == "bf16" else "32-true"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        fit(
            module,
            Clips(data, TRAINED_CLIPS, data),
            loop=config.train,
            compute=config.compute,
            placement=Placement("cpu", 1, 1, kind),
            folder=Path(folder),
            monitor=MONITOR,
            figures=FIGURES,
            draw=lambda module, step: None,
            on_step=on_step,
            tell_every=1,
        )
    theirs_l1, our_l1 = errors
    outputs = f"first L1 {our_l1:.6f}, relative diff. {abs(our_l1 / theirs_l1 - 1):.1e}"
    return best[PUBLISHED], best[precision], outputs


class _SameClips(torch.utils.data.Dataset[Any]):
    """A clip for each slot, so that every batch is the one that the published code learns from."""

    def __init__(self, video: Tensor) -> None:
        self._video = video

    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: Any) -> Any:
        from tatscli.core.data.clips import Clip

        return Clip(self._video[item if isinstance(item, int) else item[0]], 0)


def published_step(model: Any, optimizers: Sequence[torch.optim.Optimizer], batch: Any) -> None:
    """One step of all optimisers as Lightning 1.5 makes it: only its own weights need gradients."""
    weights = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    # The published forward moves its frame numbers to CUDA, whatever the device.
    on_cpu = mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor)
    with on_cpu, torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for index, optimizer in enumerate(optimizers):
            for owner, owned in enumerate(weights):
                for weight in owned:
                    weight.requires_grad_(owner == index)
            loss = model.training_step(batch, 0, index)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights[index], GRAD_CLIP)
            optimizer.step()


def help_(options: Options, published: Published) -> Iterator[Row]:
    """Wall time of the help; the published script's without the packages that stand-ins replace."""
    script = options.checkout / "scripts" / "sample_vqgan_transformer_short_videos.py"
    code = (
        "import pathlib, runpy, sys; "
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import compare_published; "
        f"compare_published.stand_in(pathlib.Path({str(options.checkout)!r})); "
        f"sys.argv = ['script', '--help']; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    tats = Path(sys.executable).with_name("tats")
    program = [str(tats)] if tats.exists() else [sys.executable, "-m", "tatscli"]
    sides: dict[str, Call] = {
        PUBLISHED: lambda: run([sys.executable, "-c", code]),
        "-": lambda: run([*program, "--help"]),
    }
    # No precision here, and what is printed is not compared.
    yield from rows("--help", ("help",), sides, sides, lambda *_: "", options.repeats)


def run(command: Sequence[str]) -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])


WORKS: dict[str, Callable[[Options, Published], Iterator[Row]]] = {
    "sample": sample,
    "train": train,
    "encode": encode,
    "decode": decode,
    "i3d": i3d,
    "help": help_,
}


def machine() -> dict[str, str]:
    """Where and when this is."""
    model, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = value
    return {
        "cpu": model + (" with AMX" if "amx_bf16" in flags else ""),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


COLUMNS = ("work", "precision", "published", "ours", "ratio", "to reach*", "outputs")
WIDTHS = (34, 9, 24, 24, 6, 20, 0)


def line(cells: Sequence[str]) -> str:
    """A line of the table."""
    return "  ".join(f"{c:<{w}}" for c, w in zip(cells, WIDTHS, strict=True)).rstrip()


def cells_of(row: Row) -> list[str]:
    """A row as text."""

    def seconds(value: float | None) -> str:
        if value is None:
            return "-"
        rate = f" ({row.tokens / value:.1f} tok/s)" if row.tokens else ""
        return f"{value:.3g} s{rate}"

    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    said = "; ".join(filter(None, (row.outputs, row.note)))
    seen = [row.work, row.precision, seconds(row.published), seconds(row.ours)]
    return [*seen, ratio, row.target or "-", said]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="root of the published repository")
    parser.add_argument(
        "--precision", nargs="+", choices=("float32", "bf16"), default=("float32", "bf16"),
        help="of ours (default: both)",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=tuple(WORKS), help="rows (default: all)")
    parser.add_argument(
        "--batch", nargs="+", type=int, default=(4, 16),
        help="sequences sampled at once (default: 4 16); the published code takes the first",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, help="rounds, best counts (default: 3; 1 if quick)")
    parser.add_argument(
        "--full", action="store_true", help="published sampling of a whole window, too: minutes"
    )
    parser.add_argument("--quick", action="store_true", help="small models: does it work?")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def main() -> None:
    """Compare, and print."""
    asked = arguments()
    from tatscli.core.allocator import keep_freed_memory

    keep_freed_memory()  # as our commands do; it makes both sides faster
    options = Options(
        checkout=asked.checkout.resolve(),
        precisions=tuple(asked.precision),
        batches=tuple(asked.batch),
        repeats=max(1, asked.repeats or (1 if asked.quick else 3)),
        full=asked.full,
        sizes=QUICK if asked.quick else Sizes(),
    )
    if not (options.checkout / "tats" / "tats_vqgan.py").is_file():
        sys.exit(f"{asked.checkout} is no checkout of the published code: no tats/tats_vqgan.py")
    place = machine()
    published = import_published(options.checkout)
    table = sys.stderr if asked.json else sys.stdout
    print(", ".join(f"{name} {value}" for name, value in place.items()), file=table)
    print(
        f"best of {options.repeats} (whole windows of samples: one run); wall seconds unless said; "
        "the published code is float32 always",
        file=table,
    )
    if asked.quick:
        print("QUICK: small models, the figures mean nothing", file=table)
    print(line(COLUMNS), file=table, flush=True)
    done: list[Row] = []
    for name in asked.only or WORKS:
        try:
            for row in WORKS[name](options, published):
                # The design's figures are for other sizes than these.
                done.append(replace(row, target="") if asked.quick else row)
                print(line(cells_of(done[-1])), file=table, flush=True)
        except Exception as error:
            done.append(Row(name, note=reason(error)))
            print(line(cells_of(done[-1])), file=table, flush=True)
    print("* of the design, for another machine; ratio: times faster", file=table)
    if asked.json:
        found = [asdict(row) | {"ratio": row.ratio} for row in done]
        print(json.dumps({"machine": place, "quick": asked.quick, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
