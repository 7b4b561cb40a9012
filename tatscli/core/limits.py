"""What a machine can do at best, and what a piece of work asks of it at least.

A machine has two limits, both measured with torch itself:

- its **peak**: operations (multiplications and additions) a second, the best of a few large square
  matrix products and of a large 3-D convolution, which on some CPUs goes through another library
  than matrix products and is faster. On a GPU in float32, torch by itself takes TF32 for
  convolutions alone; what must not take it has a peak of its own, `Machine.float32_peak`;
- its **bandwidth**: bytes a second, the best of matrix-vector products over so many distinct
  matrices that no cache holds them: in float32, in the precision in use, and in the layout that a
  GPT gets for inference, since memory knows nothing of precision and a product may be slow for
  reasons of its own.

A piece of work has two figures. Its **operations** are counted by torch on the real call; those of
a GPT by hand, since torch does not see attention on a CPU. Its **bytes** are what must be read or
written however it is done, activations left out:

- a network that is used: its weights, its input and its output, once;
- a step of training: the weights read forward, read backward and written, and both moments of Adam
  read and written: seven times the float32 weights (`training_bytes`);
- sampling: at every step all weights that are multiplied by (not the tables of embeddings, of which
  a row a sample is read), and the keys and values of all positions read so far (`sampling_work`);
- reading videos: neither; its limit is the decoder of the file, see `DecodingCost`.

The limit of the work is the larger of the two times. It is a bound: "at least so long". Where a
measurement beats it, the machine was disturbed while its limits were measured.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from math import ceil, prod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tatscli.config.compute import Precision
from tatscli.config.gpt import GPTConfig
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.data.container import UNREADABLE, open_media, reason
from tatscli.core.data.video import VideoInfo
from tatscli.core.models.inference import DTYPES, PackedLinear
from tatscli.core.precision import strict_float32
from tatscli.errors import DataError

Progress = Callable[[int, int], None]
"""Called with what is done and with how much there will be."""

Binds = Literal["operations", "bytes", "codec"]
"""Which limit is the larger one."""

_Sizes = Sequence[int]
_Layer = Callable[[Tensor], Tensor]

_TRIAL_SECONDS = 0.5
_LONGEST_CALL = 5.0
"""Seconds that a trial may take, as the rate so far lets expect; bf16 can be very slow."""
_SQUARES = {"cpu": (1024, 2048)}
_LARGE_SQUARES = (4096, 8192)
_FRAMES = {"cpu": 8}
_MANY_FRAMES = 64
_OUT_OF_CACHE = {"cpu": 2**30}
_OUT_OF_LARGE_CACHE = 2**32
_MATRIX_SIDE = 8192
_DECODED_FRAMES = 500


@dataclass(frozen=True)
class Machine:
    """A machine and its limits.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        name: Of the processor.
        cores: CPU cores that this process may use.
        threads: Threads that torch computes with on the CPU.
        precision: Of the networks.
        peak: Operations a second in that precision, as torch is set by itself.
        float32_peak: Operations a second in float32 without shortcuts such as TF32.
        bandwidth: Bytes a second.
        torch: Version.
        python: Version.
        date: When it was measured, ISO 8601, UTC.
    """

    device: str
    name: str
    cores: int
    threads: int
    precision: Precision
    peak: float
    float32_peak: float
    bandwidth: float
    torch: str
    python: str
    date: str

    def limit(self, work: "Work") -> "Limit":
        """The least time that a piece of work takes here."""
        operations = work.operations / self.peak + work.float32_operations / self.float32_peak
        return Limit(work.codec, operations, work.bytes / self.bandwidth)


class Work(NamedTuple):
    """What a piece of work asks for at least.

    Attributes:
        operations: In the precision of the networks.
        float32_operations: Further ones, in float32 without shortcuts whatever the precision.
        bytes: Read or written.
        codec: Seconds in the decoder of a video file.
    """

    operations: float = 0.0
    float32_operations: float = 0.0
    bytes: float = 0.0
    codec: float = 0.0


class Limit(NamedTuple):
    """The least time of a piece of work on a machine, in seconds.

    Attributes:
        codec: By the decoder of a video file.
        operations: By the peak.
        bytes: By the bandwidth.
    """

    codec: float
    operations: float
    bytes: float

    @property
    def seconds(self) -> float:
        """The largest."""
        return max(self)

    @property
    def binds(self) -> Binds:
        """Which is the largest."""
        if self.codec == self.seconds:
            return "codec"
        return "operations" if self.operations >= self.bytes else "bytes"


def measure_machine(
    device: torch.device, precision: Precision, progress: Progress | None = None
) -> Machine:
    """Measure the limits of a machine, in some seconds."""
    tell = progress or _quiet
    trials = 2 if precision == "float32" and device.type == "cpu" else 3
    peak = measured_peak(device, precision, seconds=_TRIAL_SECONDS)
    tell(1, trials)
    # On a CPU float32 has no shortcuts by itself.
    exact = peak
    if trials == 3:
        exact = measured_peak(device, "float32", seconds=_TRIAL_SECONDS, strict=True)
    tell(trials - 1, trials)
    bandwidth = measured_bandwidth(device, precision)
    tell(trials, trials)
    return Machine(
        device=device.type,
        name=_processor(device),
        cores=_cores(),
        threads=torch.get_num_threads(),
        precision=precision,
        peak=peak,
        float32_peak=exact,
        bandwidth=bandwidth,
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@torch.inference_mode()
def measured_peak(
    device: torch.device,
    precision: Precision,
    *,
    seconds: float,
    strict: bool = False,
) -> float:
    """Operations a second, the best of a few large products and a large convolution.

    Args:
        device: Where.
        precision: Of the numbers.
        seconds: Least time of each of them.
        strict: Without shortcuts such as TF32.
    """
    best = 0.0
    with strict_float32(device) if strict else nullcontext():
        for operations, make in _products(device, DTYPES[precision]):
            if best and operations / best > _LONGEST_CALL:
                continue
            best = max(best, operations / _best(make(), device, seconds))
    return best


@cache
def peak_at_a_glance(device: torch.device, precision: Precision) -> float:
    """The peak as a second lets see it, once a process."""
    return measured_peak(device, precision, seconds=0.05)


@torch.inference_mode()
def measured_bandwidth(device: torch.device, precision: Precision) -> float:
    """Bytes a second of products of one row with matrices that come from memory, at best."""
    total = _OUT_OF_CACHE.get(device.type, _OUT_OF_LARGE_CACHE)
    if device.type == "cuda":
        total = min(total, torch.cuda.mem_get_info(device)[0] // 4)
    count = max(1, total // 4 // _MATRIX_SIDE**2)
    # Not zeros, which the system may hold in one page.
    memory = torch.full((count * _MATRIX_SIDE**2,), 0.5, device=device)
    best = 0.0
    for kind in {torch.float32, DTYPES[precision]}:
        matrices = list(memory.view(kind).view(-1, _MATRIX_SIDE, _MATRIX_SIDE))
        row = torch.ones(1, _MATRIX_SIDE, dtype=kind, device=device)
        for layers in _layouts(matrices):

            def over_all(layers: Sequence[_Layer] = layers, row: Tensor = row) -> None:
                for layer in layers:
                    layer(row)

            best = max(best, size_of(matrices) / _best(over_all, device, _TRIAL_SECONDS))
    return best


def _layouts(matrices: Sequence[Tensor]) -> Iterator[Sequence[_Layer]]:
    """Products with matrices: as torch holds them, and as a GPT on a CPU does."""
    yield [partial(F.linear, weight=matrix) for matrix in matrices]
    if matrices[0].device.type != "cpu":
        return
    packed: list[_Layer] = []
    try:
        for matrix in matrices:
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = nn.Parameter(matrix, requires_grad=False)
            packed.append(PackedLinear(layer))
    except (AttributeError, RuntimeError):  # this torch or this CPU has no such layout
        return
    yield packed


class Runs:
    """Seconds of runs: at least two of them, and so many that they take long enough together.

    Args:
        least: Seconds that all runs together take at least.
        progress: Told after each run.

    Attributes:
        seconds: Of each run so far.
    """

    def __init__(self, least: float, progress: Progress | None = None) -> None:
        self._least, self._progress = least, progress or _quiet
        self._spent = 0.0
        self.seconds: list[float] = []

    def add(self, took: float) -> None:
        """Count one more."""
        self.seconds.append(took)
        self._spent += took
        count = len(self.seconds)
        missing = max(2 - count, ceil((self._least - self._spent) / took), 0)
        self._progress(count, count + missing)

    @property
    def enough(self) -> bool:
        """Whether no more are needed."""
        return len(self.seconds) >= 2 and self._spent >= self._least


def timed(
    call: Callable[[], object],
    device: torch.device,
    least: float,
    progress: Progress | None = None,
) -> list[float]:
    """Seconds of each of several calls, see ``Runs``; the first one is not a warm-up.

    Args:
        call: What is timed.
        device: Waited for before each look at the clock.
        least: Seconds that all calls together take at least.
        progress: Told after each call.
    """
    runs = Runs(least, progress)
    while not runs.enough:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        runs.add(time.perf_counter() - start)
    return runs.seconds


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def counted_operations() -> Iterator[Callable[[], float]]:
    """Count the operations of matrix products and convolutions; attention is not counted.

    Of a convolution, those with zeros of its padding, or for outputs that it cuts off, need not be
    done and do not count, other than in torch's own formula.

    Yields:
        What gives their number, also afterwards.
    """
    aten = torch.ops.aten
    formulas = {
        aten.convolution: _convolution,
        aten.convolution_backward: _convolution_backward,
        aten.mkldnn_convolution: _onednn_convolution,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield lambda: float(counter.get_total_flops())


def codebook_operations(config: VQGANConfig, positions: int) -> float:
    """Operations of comparing latent positions with all codes, in float32 always."""
    return 2.0 * positions * config.codes * config.embedding_dim


def size_of(tensors: Iterable[Tensor]) -> float:
    """Bytes of tensors."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def training_bytes(parameters: Iterable[Tensor]) -> float:
    """Bytes of a step of Adam at least, see the top of this module."""
    return 7 * 4.0 * sum(parameter.numel() for parameter in parameters)


def gpt_operations(config: GPTConfig, read: int, held: int = 0, heads: int = 1) -> float:
    """Operations of reading positions of one sequence.

    Attention takes 4 operations a layer, a channel and a pair of positions of which one sees the
    other: 2 for its weight and 2 for what it adds up.

    Args:
        config: The model's.
        read: Positions read, each of which sees those before it and itself.
        held: Positions read before, which all of them see.
        heads: Positions of which logits are computed.
    """
    blocks = config.layers * 12 * config.width**2
    pairs = read * held + read * (read + 1) / 2
    attention = 4.0 * config.layers * config.width * pairs
    return 2.0 * read * blocks + attention + 2.0 * heads * config.vocabulary * config.width


def gpt_training_operations(config: GPTConfig, batch: int) -> float:
    """Operations of a training step: backward takes twice those of forward."""
    forward = gpt_operations(config, config.positions, heads=config.video_tokens)
    return 3 * batch * forward


def gpt_step_weights(config: GPTConfig) -> int:
    """Numbers that each step of sampling reads whole: all weights but the two embedding tables."""
    width = config.width
    # Products with their biases, and two layer norms.
    block = 12 * width**2 + 9 * width + 4 * width
    return config.layers * block + 2 * width + config.vocabulary * width


class Window(NamedTuple):
    """A window of a sample that is written.

    Attributes:
        opened: Positions read at once before the first token is drawn: condition and context.
        tokens: Tokens drawn; all but the last are read one by one.
    """

    opened: int
    tokens: int

    def reads(self) -> Iterator[tuple[int, int]]:
        """Of each step, positions read and positions held before."""
        yield self.opened, 0
        for number in range(self.tokens - 1):
            yield 1, self.opened + number


def sampling_work(
    config: GPTConfig, batch: int, windows: Sequence[Window], precision: Precision
) -> Work:
    """What writing windows one after the other asks for.

    Args:
        config: The GPT's.
        batch: Samples at once.
        windows: Of each sample.
        precision: Of weights, keys and values.
    """
    operations = numbers = 0.0
    weights = gpt_step_weights(config)
    for window in windows:
        for read, held in window.reads():
            operations += batch * gpt_operations(config, read, held)
            numbers += weights + batch * 2 * config.layers * config.width * (held + read)
    return Work(operations=operations, bytes=numbers * DTYPES[precision].itemsize)


class DecodingCost(NamedTuple):
    """Seconds a frame that decoding a video file takes in one thread, without conversion.

    Attributes:
        shown: Where every frame is decoded.
        passed: Where those that no other frame refers to are left out, as on the way from a key
            frame to the first frame that is wanted; counted for each frame of the file.
    """

    shown: float
    passed: float

    def seconds(self, info: VideoInfo, indices: Sequence[int]) -> float:
        """Seconds from the key frame before some frames to the last of them."""
        first, last = min(indices), max(indices)
        key = info.keys[np.searchsorted(info.keys, info.times[first], side="right") - 1]
        before = first - int(np.searchsorted(info.times, key))
        return before * self.passed + (last - first + 1) * self.shown


def decoding_cost(path: Path, info: VideoInfo) -> DecodingCost:
    """Measure what the frames of a file cost its decoder, over the first 500 of them.

    Raises:
        DataError: It cannot be decoded.
    """
    shown = min(_decode_straight(path, "DEFAULT") for _ in range(2))
    if info.ordered:  # the reader counts frames there, and leaves none out
        return DecodingCost(shown, shown)
    passed = min(_decode_straight(path, "NONREF") for _ in range(2))
    return DecodingCost(shown, min(passed, shown))


def _convolution(
    x: _Sizes,
    weight: _Sizes,
    bias: object,
    stride: _Sizes,
    padding: _Sizes,
    dilation: _Sizes,
    transposed: bool,
    *_: object,
    out_shape: _Sizes,
) -> int:
    """Operations of a convolution, from the sizes of its arguments and of its output."""
    # A transposed one adds to places of its output what an ordinary one reads from its input.
    moved, places = (x[2:], out_shape[2:]) if transposed else (out_shape[2:], x[2:])
    axes = zip(moved, places, weight[2:], stride, padding, dilation, strict=True)
    return 2 * x[0] * prod(weight[:2]) * prod(_meetings(*axis) for axis in axes)


def _onednn_convolution(
    x: _Sizes,
    weight: _Sizes,
    bias: object,
    padding: _Sizes,
    stride: _Sizes,
    dilation: _Sizes,
    *_: object,
    out_shape: _Sizes,
) -> int:
    return _convolution(x, weight, None, stride, padding, dilation, False, out_shape=out_shape)


def _convolution_backward(
    gradient: _Sizes,
    x: _Sizes,
    weight: _Sizes,
    bias: object,
    stride: _Sizes,
    padding: _Sizes,
    dilation: _Sizes,
    transposed: bool,
    output_padding: object,
    groups: object,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """The same of its gradients: those of input and weight cost what the convolution costs."""
    once = _convolution(x, weight, None, stride, padding, dilation, transposed, out_shape=gradient)
    return once * sum(wanted[:2])


def _meetings(
    moved: int, places: int, kernel: int, stride: int, padding: int, dilation: int
) -> int:
    """How often, on one axis, a tap of the kernel falls on a place that is there."""
    return sum(
        0 <= position * stride - padding + tap * dilation < places
        for position in range(moved)
        for tap in range(kernel)
    )


def _decode_straight(path: Path, skip: str) -> float:
    try:
        with open_media(path) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            stream.codec_context.skip_frame = skip
            packets = 0
            start = time.perf_counter()
            for packet in container.demux(stream):
                packet.decode()
                packets += packet.size > 0
                if packets == _DECODED_FRAMES:
                    break
            return (time.perf_counter() - start) / max(1, packets)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be decoded: {reason(error)}") from error


def _products(
    device: torch.device, kind: torch.dtype
) -> Iterator[tuple[float, Callable[[], Callable[[], Tensor]]]]:
    """Operations of each trial of the peak, and what makes it; the smallest first."""
    # Of their own, so that a run that is seeded draws what it would have drawn.
    chance = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=chance, device=device)

    def square(side: int) -> Callable[[], Tensor]:
        left, right = (random((side, side)).to(kind) for _ in range(2))
        return lambda: F.linear(left, right)

    def convolution(frames: int) -> Callable[[], Tensor]:
        layout = {"dtype": kind, "memory_format": torch.channels_last_3d}
        video = random((1, 128, frames, 64, 64)).to(**layout)  # type: ignore[call-overload]
        kernel = random((128, 128, 3, 3, 3)).to(**layout)  # type: ignore[call-overload]
        return lambda: F.conv3d(video, kernel, padding=1)

    for side in _SQUARES.get(device.type, _LARGE_SQUARES):
        yield 2.0 * side**3, lambda side=side: square(side)  # type: ignore[misc]
    frames = _FRAMES.get(device.type, _MANY_FRAMES)
    video, kernel, ones = (1, 128, frames, 64, 64), (128, 128, 3, 3, 3), (1, 1, 1)
    operations = _convolution(video, kernel, None, ones, ones, ones, False, out_shape=video)
    yield float(operations), lambda: convolution(frames)


def _best(call: Callable[[], object], device: torch.device, least: float) -> float:
    """Seconds of the fastest call, after one that warms up."""
    call()
    return min(timed(call, device, least))


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _quiet(done: int, total: int) -> None:
    pass
