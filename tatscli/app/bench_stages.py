"""The stages of the benchmark: those of the pipeline, and they call what it calls.

Models have random weights, which cost what trained ones cost.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tatscli.config.bench import BenchConfig, StageName
from tatscli.config.data import ClipConfig
from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.config.vqgan import VIDEO_CHANNELS, VQGANConfig
from tatscli.config.words import counted
from tatscli.core.checkpoint import TrainedVQGAN
from tatscli.core.data.clips import Address, Clip, ClipSource
from tatscli.core.data.index import build_index, is_dataset, single_video
from tatscli.core.data.tokens import TokenClip, TokenDataset, TokenHeader, TokenWriter
from tatscli.core.data.video import Frames, video_writer
from tatscli.core.limits import (
    Progress,
    Runs,
    Window,
    Work,
    codebook_operations,
    counted_operations,
    decoding_cost,
    gpt_step_weights,
    gpt_training_operations,
    sampling_work,
    size_of,
    synchronize,
    timed,
    training_bytes,
)
from tatscli.core.memory import free_memory
from tatscli.core.metrics.features import video_features
from tatscli.core.metrics.protocol import PROTOCOLS
from tatscli.core.models.gpt import GPT, condition_ids
from tatscli.core.models.i3d import random_i3d
from tatscli.core.models.inference import gpt_for_inference, vqgan_for_inference
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream, encode_stream
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import Chances, generate_long, generate_window
from tatscli.core.training.placement import Placement
from tatscli.errors import DataError, DeviceError, TatsError

if TYPE_CHECKING:
    from tatscli.core.training.stage import Stage

STAGES: tuple[StageName, ...] = get_args(StageName)
"""All stages, in the order of the work."""

CHOSEN_BY = TokenFilter(top_k=2048, top_p=0.92)
"""How tokens are drawn: as tats sample does by default."""

_SEED = 0
_READ_CLIPS = 8
_TOKEN_CLIPS = 1024
_TOKEN_BATCH = 32
_GIB = 2**30
_ENDLESS = {
    "max_steps": 10**6,
    "val_check_interval": str(10**6),
    "checkpoint_every": 10**6,
    "grid_every": 10**6,
}
"""A run that only trains, until it is told to stop."""


class _Shape(NamedTuple):
    """Sizes of what is measured.

    Attributes:
        vqgan: Codes, their width, channels.
        downsample: Of the VQGAN.
        clip: Frames and side of the clips that are encoded, decoded and read.
        step: Clips, frames and side of a training step of the VQGAN.
        judges: Channels of its discriminators.
        gpt: Layers, heads, width.
        grid: Of the GPT.
        gpt_batch: Clips of a training step of the GPT.
        i3d: Clips and frames of which features are computed.
        video: Frames, height and width of the made video.
        memory: Bytes that training steps need, as measured in float32 on a CPU, rounded up.
    """

    vqgan: tuple[int, int, int]
    downsample: tuple[int, int, int]
    clip: tuple[int, int]
    step: tuple[int, int, int]
    judges: int
    gpt: tuple[int, int, int]
    grid: tuple[int, int, int]
    gpt_batch: int
    i3d: tuple[int, int]
    video: tuple[int, int, int]
    memory: dict[str, float]


_SHAPES = {
    "published": _Shape(
        vqgan=(16384, 256, 32),
        downsample=(4, 8, 8),
        clip=(16, 128),
        step=(2, 16, 64),
        judges=64,
        gpt=(24, 16, 1024),
        grid=(4, 16, 16),
        gpt_batch=3,
        i3d=(4, 16),
        video=(250, 256, 340),
        memory={"vqgan-step": 3 * _GIB, "gpt-step": 12 * _GIB},
    ),
    "tiny": _Shape(
        vqgan=(128, 32, 8),
        downsample=(2, 4, 4),
        clip=(16, 32),
        step=(2, 16, 32),
        judges=8,
        gpt=(4, 4, 192),
        grid=(4, 8, 8),
        gpt_batch=4,
        i3d=(1, 9),
        video=(100, 128, 170),
        memory={},
    ),
}


class Measured(NamedTuple):
    """A stage that was run.

    Attributes:
        text: What a run does.
        unit: What is counted.
        amount: Units of a run.
        work: What a run asks for at least.
        seconds: Of each run.
    """

    text: str
    unit: str
    amount: float
    work: Work
    seconds: list[float]


class Workshop:
    """What the stages share: settings, models, and a folder for what they write."""

    def __init__(self, config: BenchConfig, device: torch.device, folder: Path) -> None:
        self.options, self.device, self.folder = config.bench, device, folder
        self.shape = _SHAPES[config.bench.size]

    @property
    def vqgan_config(self) -> VQGANConfig:
        """Architecture of the VQGAN."""
        codes, width, channels = self.shape.vqgan
        return VQGANConfig(
            codes=codes,
            embedding_dim=width,
            hidden_channels=channels,
            downsample=self.shape.downsample,
            disc_channels=self.shape.judges,
        )

    @property
    def gpt_config(self) -> GPTConfig:
        """Architecture of the GPT."""
        layers, heads, width = self.shape.gpt
        grid = self.shape.grid
        return GPTConfig(
            layers=layers,
            heads=heads,
            width=width,
            codes=self.shape.vqgan[0],
            grid=grid,
            condition=ConditionLayout.unconditional(),
            block_size=grid[0] * grid[1] * grid[2],
        )

    @cached_property
    def vqgan(self) -> VQGAN:
        """Ready for use; made when first asked for."""
        torch.manual_seed(_SEED)
        model = VQGAN(self.vqgan_config)
        return vqgan_for_inference(model, self.device, self.options.precision)

    @cached_property
    def gpt(self) -> GPT:
        """Ready for use; made when first asked for."""
        config = self.gpt_config
        # In float32, and once more where the layers are laid out for the device.
        self.require(8 * gpt_step_weights(config), "a GPT of this size")
        torch.manual_seed(_SEED)
        options = self.options
        return gpt_for_inference(
            GPT(config), self.device, options.precision, graphs=options.cuda_graphs
        )

    def require(self, needed: float, what: str) -> None:
        """Refuse what does not fit, before the system ends this process.

        Raises:
            DeviceError: There is less; the message has both numbers.
        """
        free = free_memory(self.device)
        if free is not None and needed > free:
            raise DeviceError(
                f"{what} needs about {needed / _GIB:.1f} GiB of memory, {free / _GIB:.1f} are free"
            )

    def warmed(self, call: Callable[[], object]) -> float:
        """Seconds of a run that only warms up."""
        start = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - start

    def timed(self, call: Callable[[], object], tell: Progress) -> list[float]:
        """Seconds of runs, as many as the settings ask for."""
        return timed(call, self.device, self.options.seconds, tell)

    def counted(self, call: Callable[[], object]) -> float:
        """Operations of a run, which is also the warm-up."""
        with counted_operations() as operations:
            call()
        synchronize(self.device)
        return operations()


def measure(name: StageName, workshop: Workshop, tell: Progress) -> Measured | str:
    """A stage, or why it cannot run here."""
    try:
        return _MEASURES[name](workshop, tell)
    except TatsError as error:
        return error.message
    except (MemoryError, RuntimeError) as error:
        # What torch raises where memory ends, and for what a device does not support.
        return str(error).partition("\n")[0] or type(error).__name__
    finally:
        gc.collect()
        if workshop.device.type == "cuda":
            torch.cuda.empty_cache()


def _read(workshop: Workshop, tell: Progress) -> Measured:
    frames, side = workshop.shape.clip
    path = workshop.options.data
    if path is None:
        path = workshop.folder / "made.mp4"
        with video_writer(path, 25) as write:
            for picture in _scene(*workshop.shape.video):
                write(picture[None])
    if is_dataset(path):
        index = build_index(path, progress=tell)
        root, entries = index.root, [entry for entry in index.entries if entry.kind == "file"]
    else:
        root, entry = single_video(path)
        entries = [entry] if entry.kind == "file" else []
    if not entries:
        raise DataError(f"{path}: frames without a codec, which is what the limit of reading is")
    source = ClipSource(entries, root, ClipConfig(resolution=side, sequence_length=frames))
    chance = np.random.default_rng(_SEED)
    clips = [
        Address(number, int(chance.integers(source.starts[number])))
        for number in chance.integers(len(source.entries), size=_READ_CLIPS).tolist()
    ]
    used = {clip.entry: source.entries[clip.entry] for clip in clips}
    costs = {number: decoding_cost(root / entry.path, entry.info) for number, entry in used.items()}
    codec = sum(
        costs[clip.entry].seconds(used[clip.entry].info, source.frames(clip)) for clip in clips
    )

    def read() -> None:
        for clip in clips:
            source.read(clip)

    read()
    infos = [entry.info for entry in used.values()]
    gap = sum(len(info.times) for info in infos) / sum(len(info.keys) for info in infos)
    sizes = ", ".join(sorted({f"{info.width}x{info.height}" for info in infos}))
    text = (
        f"{len(clips)} random clips of {frames} frames at {side} pixels, from {path.name} "
        f"({sizes}), a key frame every {gap:.3g} frames, one process"
    )
    return Measured(text, "clips", len(clips), Work(codec=codec), workshop.timed(read, tell))


def _scene(frames: int, height: int, width: int) -> Iterator[Frames]:
    """A view that wanders over a rough landscape, (height, width, 3) each; flat ones cost less."""
    chance = np.random.default_rng(_SEED)
    size = (2 * width, 2 * height)
    land = np.zeros((size[1], size[0], 3))
    for cell in (4, 16, 64):
        grid = chance.integers(0, 256, (size[1] // cell + 1, size[0] // cell + 1, 3), np.uint8)
        rough = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
        land += np.asarray(rough, np.float64) / 3
    picture = land.astype(np.uint8)
    for number in range(frames):
        turn = 2 * np.pi * number / 100
        top = round(height * (1 + np.sin(turn)) / 2)
        left = round(width * (1 + np.cos(1.3 * turn)) / 2)
        yield picture[top : top + height, left : left + width]


def _vqgan_step(workshop: Workshop, tell: Progress) -> Measured:
    from tatscli.core.training.vqgan import MONITOR, VQGANTraining  # imports Lightning, seconds

    batch, frames, side = workshop.shape.step
    workshop.require(workshop.shape.memory.get("vqgan-step", 0), "a training step of this VQGAN")
    config = VQGANTrainConfig.model_validate(
        {
            "data": {"data": workshop.folder, "resolution": side, "sequence_length": frames},
            "model": workshop.vqgan_config,
            "loss": {"perceptual_weight": 0, "disc_start": 0, "disc_warmup": 0, "disc_ramp": 0},
            "train": _ENDLESS | {"batch_size": batch},
            "compute": {"workers": 0},
        }
    )
    torch.manual_seed(_SEED)
    module = VQGANTraining(config, config.optim.learning_rate, 25.0)
    items = [Clip(video, -1) for video in _videos(batch, frames, side)]
    seconds, operations = _time_steps(workshop, module, config, _Items(items), MONITOR, tell)
    grid = workshop.vqgan_config.grid(frames, side, side)
    exact = codebook_operations(workshop.vqgan_config, batch * int(np.prod(grid)))
    work = Work(operations - exact, exact, training_bytes(module.parameters()))
    text = f"batch {batch} of {frames}x{side}x{side}, both discriminators, no perceptual network"
    return Measured(text, "steps", 1, work, seconds)


def _gpt_step(workshop: Workshop, tell: Progress) -> Measured:
    from tatscli.core.training.gpt import MONITOR, GPTTraining  # imports Lightning, seconds

    batch, architecture = workshop.shape.gpt_batch, workshop.gpt_config
    workshop.require(workshop.shape.memory.get("gpt-step", 0), "a training step of this GPT")
    config = GPTTrainConfig.model_validate(
        {
            "data": {"data": workshop.folder},
            "train": _ENDLESS | {"batch_size": batch},
            "compute": {"workers": 0},
        }
    )
    frames, side = workshop.shape.clip
    torch.manual_seed(_SEED)
    vqgan = VQGAN(workshop.vqgan_config)
    trained = TrainedVQGAN(vqgan, ClipConfig(resolution=side, sequence_length=frames), 25.0, 0)
    module = GPTTraining(config, architecture, trained, (), config.optim.learning_rate)
    items = [TokenClip(codes, -1) for codes in _codes(workshop, batch, architecture.grid)]
    seconds, _ = _time_steps(workshop, module, config, _Items(items), MONITOR, tell)
    operations = gpt_training_operations(architecture, batch)
    work = Work(operations, bytes=training_bytes(module.gpt.parameters()))
    text = f"batch {batch} of {architecture.video_tokens} tokens, {_size(architecture)}"
    return Measured(text, "steps", 1, work, seconds)


class _Items(Dataset[Any]):
    """The same clips over and over."""

    def __init__(self, items: Sequence[Clip | TokenClip]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item: tuple[int, int]) -> Clip | TokenClip:
        return self._items[item[0]]


class _EnoughError(Exception):
    """Leaves the training loop, which by itself ends by validating and writing checkpoints."""


def _time_steps(
    workshop: Workshop,
    module: "Stage",
    config: VQGANTrainConfig | GPTTrainConfig,
    items: _Items,
    monitor: str,
    tell: Progress,
) -> tuple[list[float], float]:
    """Time steps of the training engine, each from the end of the step before to its own.

    The first step warms up, and its operations are counted.

    Returns:
        Seconds of each further step; operations of a step.
    """
    from tatscli.core.training.callbacks import GracefulStop
    from tatscli.core.training.engine import Clips, fit

    runs = Runs(workshop.options.seconds, tell)
    ends: list[float] = []
    counting = ExitStack()
    operations = counting.enter_context(counted_operations())

    def on_step(step: int, figures: object) -> None:
        counting.close()
        # The engine answers a signal at the end of a step, by saving.
        if any(isinstance(c, GracefulStop) and c.signal for c in module.trainer.callbacks):  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        synchronize(workshop.device)
        ends.append(time.perf_counter())
        if len(ends) > 1:
            runs.add(ends[-1] - ends[-2])
        if runs.enough:
            raise _EnoughError

    placement = Placement(
        accelerator=workshop.device.type,  # type: ignore[arg-type]  # choose_device gives no other
        processes=1,
        nodes=1,
        precision="32-true" if workshop.options.precision == "float32" else "bf16-mixed",
    )
    with counting, suppress(_EnoughError):
        outcome = fit(
            module,
            Clips(items, len(items), items),
            loop=config.train,
            compute=config.compute,
            placement=placement,
            folder=workshop.folder / type(module).__name__,
            monitor=monitor,
            figures={},
            draw=lambda module, step: None,
            on_step=on_step,
            tell_every=1,
        )
        if outcome.signal:
            raise KeyboardInterrupt
    return runs.seconds, operations()


def _encode(workshop: Workshop, tell: Progress) -> Measured:
    frames, side = workshop.shape.clip
    model, config = workshop.vqgan, workshop.vqgan_config
    video = _videos(1, frames, side).to(workshop.device)
    found: list[Tensor] = []

    def encode() -> None:
        found[:] = [encode_stream(model, video)]

    operations = workshop.counted(encode)
    # In float32, encoding allows no shortcuts; in bf16 the comparison with the codes stays float32.
    exact = operations
    if workshop.options.precision != "float32":
        exact = codebook_operations(config, found[0].numel())
    read = [*_tensors(model.encoder, model.pre_vq_conv), model.codebook.embeddings]
    work = Work(operations - exact, exact, size_of([*read, video, *found]))
    return Measured(
        f"1 clip of {frames}x{side}x{side}", "clips", 1, work, workshop.timed(encode, tell)
    )


def _decode(workshop: Workshop, tell: Progress) -> Measured:
    model, config = workshop.vqgan, workshop.vqgan_config
    frames, side = workshop.shape.clip
    codes = _codes(workshop, 1, config.grid(frames, side, side)).to(workshop.device)
    found: list[Tensor] = []

    def decode() -> None:
        found[:] = decode_stream(model, codes)

    operations = workshop.counted(decode)
    # Of the codebook, only the vectors of these codes.
    vectors = codes.numel() * config.embedding_dim * model.codebook.embeddings.element_size()
    read = [*_tensors(model.post_vq_conv, model.decoder), codes]
    work = Work(operations, bytes=size_of([*read, *found]) + vectors)
    text = f"1 clip of {frames}x{side}x{side} from {_times(codes.shape[1:])} codes"
    return Measured(text, "clips", 1, work, workshop.timed(decode, tell))


def _tokens(workshop: Workshop, tell: Progress) -> Measured:
    folder, grid = workshop.folder / "tokens", workshop.shape.grid
    frames, side = workshop.shape.clip
    writer = TokenWriter(
        folder,
        TokenHeader(
            fingerprint="made",
            codes=workshop.shape.vqgan[0],
            grid=grid,
            clip=ClipConfig(resolution=side, sequence_length=frames),
            stride=frames,
            classes=(),
            videos={"train": ("made.mp4",)},
            clips={"train": _TOKEN_CLIPS},
        ),
    )
    for unit in writer.units:
        count = unit.stop - unit.first
        starts = [float(number) for number in range(unit.first, unit.stop)]
        writer.write(unit, _codes(workshop, count, grid), [-1] * count, [0] * count, starts)
    writer.finish()
    dataset = TokenDataset(folder, "train")
    order = np.random.default_rng(_SEED).permutation(_TOKEN_CLIPS).tolist()
    batches = [order[i : i + _TOKEN_BATCH] for i in range(0, _TOKEN_CLIPS, _TOKEN_BATCH)]

    def load() -> None:
        for batch in batches:
            default_collate(dataset.__getitems__(batch))

    load()
    delivered = _TOKEN_CLIPS * size_of([dataset[0].tokens])
    text = f"{_TOKEN_CLIPS} clips of {_times(grid)} codes in batches of {_TOKEN_BATCH}, one process"
    return Measured(text, "clips", _TOKEN_CLIPS, Work(bytes=delivered), workshop.timed(load, tell))


def _sample_short(workshop: Workshop, tell: Progress) -> Measured:
    gpt, config = workshop.gpt, workshop.gpt_config
    batch = workshop.options.batch_size

    def sample(frames: int) -> None:
        generate_window(gpt, *_asked(workshop), frames=frames)

    first = workshop.warmed(lambda: sample(1))
    # Later tokens cost more, so that the whole window is better, where there is time for two.
    window = config.grid[0]
    frames = window if 2 * window * first <= workshop.options.seconds else 1
    count = frames * config.frame_tokens
    work = sampling_work(
        config, batch, [Window(config.condition.tokens, count)], workshop.options.precision
    )
    which = f"the first {count} of {config.video_tokens}" if frames < window else count
    text = f"{counted(batch, 'sample')} of {which} tokens, {_size(config)}"
    seconds = workshop.timed(lambda: sample(frames), tell)
    return Measured(text, "tokens", batch * count, work, seconds)


def _sample_long(workshop: Workshop, tell: Progress) -> Measured:
    gpt, config = workshop.gpt, workshop.gpt_config
    batch, window = workshop.options.batch_size, config.grid[0]
    given = _codes(workshop, batch, config.grid).to(workshop.device)

    def sample(length: int) -> None:
        generate_long(gpt, *_asked(workshop), length=length, context=1, given=given)

    workshop.warmed(lambda: generate_window(gpt, *_asked(workshop), frames=1))
    # The given window makes room for one new frame, then each comes from the one before it.
    opened = [config.condition.tokens + known * config.frame_tokens for known in (window - 1, 1)]
    windows = [Window(count, config.frame_tokens) for count in opened]
    work = sampling_work(config, batch, windows, workshop.options.precision)
    text = (
        f"{counted(batch, 'sample')}, 2 latent frames of {config.frame_tokens} tokens beyond a "
        f"given window of {window} (context {window - 1}, then 1), {_size(config)}"
    )
    seconds = workshop.timed(lambda: sample(window + 2), tell)
    return Measured(text, "latent frames", 2 * batch, work, seconds)


def _i3d(workshop: Workshop, tell: Progress) -> Measured:
    clips, frames = workshop.shape.i3d
    protocol, precision = PROTOCOLS["fvd"], workshop.options.precision
    model = random_i3d(_SEED, protocol.eps)
    chance = np.random.default_rng(_SEED)
    videos = chance.integers(0, 256, (clips, frames, 128, 128, 3), np.uint8)
    found: list[Tensor] = []

    def features() -> None:
        found[:] = [video_features(model, protocol, videos, clips, workshop.device, precision)]

    operations = workshop.counted(features)
    # In float32, features allow no shortcuts.
    exact = operations if precision == "float32" else 0.0
    read = size_of([*_tensors(model), *found]) + videos.nbytes
    text = f"{clips} {'clip' if clips == 1 else 'clips'} of {frames}x128x128, resized to 224"
    return Measured(
        text,
        "clips",
        clips,
        Work(operations - exact, exact, read),
        workshop.timed(features, tell),
    )


_MEASURES: dict[StageName, Callable[[Workshop, Progress], Measured]] = {
    "read": _read,
    "vqgan-step": _vqgan_step,
    "encode": _encode,
    "decode": _decode,
    "tokens": _tokens,
    "gpt-step": _gpt_step,
    "sample-short": _sample_short,
    "sample-long": _sample_long,
    "i3d": _i3d,
}


def _asked(workshop: Workshop) -> tuple[Tensor, Chances, TokenFilter]:
    """Condition, randomness and cuts of samples that nothing is asked of."""
    batch = workshop.options.batch_size
    condition = condition_ids(workshop.gpt_config.condition, batch).to(workshop.device)
    return condition, Chances(_SEED, range(batch)), CHOSEN_BY


def _codes(workshop: Workshop, clips: int, grid: tuple[int, int, int]) -> Tensor:
    """Random codes, (clips, t, h, w)."""
    return torch.randint(workshop.shape.vqgan[0], (clips, *grid), generator=_generator())


def _videos(clips: int, frames: int, side: int) -> Tensor:
    """Random clips, (clips, C, T, H, W)."""
    return torch.rand(clips, VIDEO_CHANNELS, frames, side, side, generator=_generator()) - 0.5


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _tensors(*modules: torch.nn.Module) -> Iterator[Tensor]:
    """All that modules hold."""
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _times(grid: Iterable[int]) -> str:
    return "x".join(map(str, grid))


def _size(config: GPTConfig) -> str:
    return f"{config.layers} layers of {config.width}"
