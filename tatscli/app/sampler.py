"""What samples: the models of a command, checked against each other and against what is asked.

Letters: B samples, C channels, T frames, H W pixels; t h w latent grid.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from tatscli.app.ahead import newest_gpt_for
from tatscli.app.asked import Asked, window_condition
from tatscli.app.pictures import DEFAULT_RATE
from tatscli.app.reporting import Reporter, Task
from tatscli.config.compute import SamplingMachineConfig
from tatscli.config.sample import (
    FilterConfig,
    LongFilterConfig,
    SampleConfig,
    SampleLongConfig,
    SampleShortConfig,
)
from tatscli.core.checkpoint import TrainedGPT, TrainedVQGAN, read_gpt
from tatscli.core.failures import explained
from tatscli.core.memory import free_memory
from tatscli.core.models.gpt import GPT, sequence_bytes
from tatscli.core.models.inference import gpt_for_inference, vqgan_for_inference
from tatscli.core.paths import find_checkpoint
from tatscli.core.sampling.decode import encode_stream
from tatscli.core.sampling.filters import TokenFilter
from tatscli.core.sampling.generate import (
    Chances,
    generate_hierarchical,
    generate_long,
    hierarchical_frames,
)
from tatscli.errors import CheckpointError, ConfigError

LARGEST_BATCH = 256
"""Samples at once at most."""
UNKNOWN_BATCH = 16
"""Samples at once where nobody says how much memory is free."""


@dataclass(frozen=True)
class Cuts:
    """How tokens are chosen.

    Attributes:
        chosen_by: Of all latent frames.
        first_by: Of the first ones, which decide the scene.
    """

    chosen_by: TokenFilter
    first_by: TokenFilter

    @classmethod
    def of(cls, config: FilterConfig) -> "Cuts":
        """The cuts that settings ask for."""
        everywhere = TokenFilter(
            config.temperature, config.top_k, config.top_p, config.condition_ids == "sampled"
        )
        first = everywhere
        if isinstance(config, LongFilterConfig):
            if config.top_k_init is not None:
                first = first._replace(top_k=config.top_k_init)
            if config.top_p_init is not None:
                first = first._replace(top_p=config.top_p_init)
        return cls(everywhere, first)


@dataclass(frozen=True)
class Sampler:
    """Models, and how long the samples are to be.

    Attributes:
        source: Where the GPT is.
        trained: The GPT: of all latent frames, or of key frames.
        infill: The GPT that writes the latent frames between key frames.
        length: Latent frames of a sample.
        context: Latent frames (key frames) that each new one is generated from.
    """

    source: Path
    trained: TrainedGPT
    infill: TrainedGPT | None
    length: int
    context: int

    @property
    def vqgan(self) -> TrainedVQGAN:
        """What turns codes into frames."""
        return self.trained.vqgan

    @property
    def factor(self) -> int:
        """Frames of a latent frame."""
        return self.vqgan.model.config.downsample[0]

    @property
    def tokens(self) -> int:
        """Tokens written for one sample, given ones included."""
        config, frames = self.trained.model.config, self.length
        if self.infill:
            frames = hierarchical_frames(self.length, config.latent_stride)
        return frames * config.frame_tokens

    @property
    def gpts(self) -> list[TrainedGPT]:
        """The GPTs that write."""
        return [self.trained, *filter(None, [self.infill])]

    @property
    def rate(self) -> float:
        """Frames per second of the samples; a guess where the checkpoint does not know."""
        return self.vqgan.rate or DEFAULT_RATE

    def to(self, device: torch.device, compute: SamplingMachineConfig, reporter: Reporter) -> None:
        """Bring the models to a device, for use; they are not to be saved any more."""
        precision, graphs = compute.precision, compute.cuda_graphs
        if graphs and device.type != "cuda":
            reporter.note(f"--cuda-graphs has no effect: the device is {device.type}")
        vqgan_for_inference(self.vqgan.model, device, precision)
        for gpt in self.gpts:
            gpt_for_inference(gpt.model, device, precision, graphs=graphs)
            if gpt.sound:
                vqgan_for_inference(gpt.sound.model, device, precision)

    def encode(self, videos: Iterable[Tensor]) -> Tensor:
        """Codes (k, t, h, w) of k given videos (C, T, H, W), each encoded by itself."""
        device = self.trained.model.pos_emb.device
        codes = [encode_stream(self.vqgan.model, video[None].to(device)) for video in videos]
        return torch.cat(codes)

    def batches(
        self,
        config: SampleConfig,
        cuts: Cuts,
        task: Task,
        asked: Callable[[int], Asked],
        guidance: float = 1.0,
        given: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Code grids, (B, t, h, w) a batch; tells the tokens done.

        Args:
            config: Number, seed and batches of the samples.
            cuts: How tokens are chosen.
            task: Told about progress.
            asked: What the sample of a number is to show.
            guidance: How far to go beyond that.
            given: (k, t, h, w) codes of the first frames, which samples take in turn.
        """
        sequences = self.sequences(config, guidance)
        size = min(config.samples, sequences)
        for first in range(0, config.samples, size):
            numbers = range(first, min(first + size, config.samples))

            def tell(done: int, first: int = first, count: int = len(numbers)) -> None:
                task.update(first * self.tokens + done * count, config.samples * self.tokens)

            start = None if given is None else given[[n % len(given) for n in numbers]]
            wishes = [asked(number) for number in numbers]
            chances = Chances(config.seed, numbers)
            at_once = sequences if self.infill else size
            with explained(_less_memory(at_once), bounded=True):
                codes = self._generate(wishes, chances, cuts, guidance, start, sequences, tell)
            yield codes

    def largest_batch(self, guidance: float = 1.0) -> int:
        """Samples at once, as many as half of the free memory holds."""
        free = free_memory(self.trained.model.pos_emb.device)
        if free is None:
            return UNKNOWN_BATCH
        read_twice = 1 if guidance == 1 else 2
        # One GPT writes after the other.
        each = read_twice * max(sequence_bytes(gpt.model) for gpt in self.gpts)
        return max(1, min(LARGEST_BATCH, free // 2 // each))

    def sequences(self, config: SampleConfig, guidance: float) -> int:
        """Sequences written at once: what is asked for, else as many as fit.

        Where there are fewer samples, several gaps between key frames of each are.
        """
        return self.largest_batch(guidance) if config.batch_size == "auto" else config.batch_size

    def _generate(
        self,
        asked: Sequence[Asked],
        chances: Chances,
        cuts: Cuts,
        guidance: float,
        given: Tensor | None,
        sequences: int,
        tell: Callable[[int], None],
    ) -> Tensor:
        condition = window_condition(self.trained, asked, self.rate)
        if self.infill is None:
            return generate_long(
                self.trained.model,
                condition,
                chances,
                cuts.chosen_by,
                length=self.length,
                context=self.context,
                given=given,
                first_by=cuts.first_by,
                guidance=guidance,
                progress=tell,
            )
        return generate_hierarchical(
            self.trained.model,
            self.infill.model,
            condition,
            window_condition(self.infill, asked, self.rate),
            chances,
            cuts.chosen_by,
            length=self.length,
            context=self.context,
            given=given,
            first_by=cuts.first_by,
            guidance=guidance,
            sequences=sequences,
            progress=tell,
        )


def short_sampler(config: SampleShortConfig, reporter: Reporter) -> Sampler:
    """What samples clips of the length of training.

    Raises:
        CheckpointError: There is no GPT.
        ConfigError: It cannot do what is asked.
    """
    trained, path = _open(config, reporter)
    if trained.model.config.latent_stride > 1:
        raise _key_frames_alone(trained.model, path)
    return Sampler(path, trained, None, trained.model.config.grid[0], 1)


def long_sampler(config: SampleLongConfig, reporter: Reporter) -> Sampler:
    """What samples videos of any length.

    Raises:
        CheckpointError: There is no GPT, or the two are of different VQGANs.
        ConfigError: Length, context, latent side or the second GPT do not fit the model.
    """
    (trained, path), window = _open(config, reporter), config.window
    side = trained.model.config.grid[1]
    if window.sample_resolution not in (0, side):
        raise ConfigError(
            f"--sample-resolution {window.sample_resolution}, but the model was trained on a "
            f"latent side of {side}",
            "leave the option out",
        )
    length = window.length
    if window.frames:
        length = -(-window.frames // trained.vqgan.model.config.downsample[0])
    infill = _open_infill(trained, path, window.infill_gpt, config.sample.vqgan)
    sampler = Sampler(path, trained, infill, length, window.temporal_sample_pos)
    _check_context(sampler)
    return sampler


def _open(
    config: SampleShortConfig | SampleLongConfig, reporter: Reporter
) -> tuple[TrainedGPT, Path]:
    """The GPT that is asked for, fit to begin samples, and where it is."""
    path = config.sample.gpt
    if path is None:
        path = newest_gpt_for(config, reporter)
        reporter.note(f"sampling from {path}, the newest GPT run that can do this")
    trained = read_gpt(path, config.sample.vqgan)
    model, file = trained.model.config, find_checkpoint(path)
    if model.infill:
        raise ConfigError(
            f"{file} fills in between latent frames that are given; it cannot begin a video",
            "give it as the second one: tats sample long --gpt KEY_FRAMES --infill-gpt INFILL",
        )
    return trained, path


def _open_infill(
    trained: TrainedGPT, path: Path, given: Path | None, vqgan: Path | None
) -> TrainedGPT | None:
    """The GPT that fills in between the key frames of another, checked against it."""
    stride = trained.model.config.latent_stride
    if given is None:
        if stride > 1:
            raise _key_frames_alone(trained.model, path)
        return None
    if stride == 1:
        raise ConfigError(
            f"--infill-gpt is given, but {find_checkpoint(path)} writes every latent frame: there "
            "is nothing to fill in",
            "leave the option out, or give --gpt a GPT that was trained with --latent-stride",
        )
    infill = read_gpt(given, vqgan)
    file, grid = find_checkpoint(given), infill.model.config.grid
    if not infill.model.config.infill:
        raise ConfigError(
            f"--infill-gpt: {file} does not fill in",
            "give a GPT that was trained with --infill",
        )
    wanted = (stride + 1, *trained.model.config.grid[1:])
    if grid != wanted:
        raise ConfigError(
            f"--infill-gpt: {file} has windows of {_grid(grid)}, between key frames {stride} "
            f"latent frames apart {_grid(wanted)} are needed",
            f"train one: {_infill_training(trained, path, wanted[0])}",
        )
    ours, other = trained.vqgan.model.fingerprint(), infill.vqgan.model.fingerprint()
    if ours != other:
        raise CheckpointError(
            f"--infill-gpt: {file} writes codes of VQGAN {other}, {find_checkpoint(path)} those "
            f"of VQGAN {ours}",
            "train both on the same VQGAN",
        )
    kinds = {part.kind for part in infill.model.config.condition.parts} - {"start"}
    if kinds - {part.kind for part in trained.model.config.condition.parts}:
        raise ConfigError(
            f"--infill-gpt: {file} is conditioned on {', '.join(sorted(kinds))}, and "
            f"{find_checkpoint(path)} is not",
            "train both with the same --condition",
        )
    if "label" in kinds and (unknown := sorted(set(trained.classes) - set(infill.classes))):
        raise ConfigError(
            f"--infill-gpt: {file} has no classes {', '.join(unknown)}",
            "train both on the same classes",
        )
    return infill


def _infill_training(trained: TrainedGPT, path: Path, length: int) -> str:
    """The command that trains a GPT to fill in between so many latent frames of another."""
    clip, condition = trained.vqgan.clip, trained.model.config.condition.name
    span = length * trained.vqgan.model.config.downsample[0] * clip.sample_every_n_frames
    # The VQGAN inside brings resolution and rates along.
    command = f"tats gpt train --data VIDEOS --vqgan {quote(str(path))} --infill"
    sound = " --sound-vqgan RUN" if "sound" in condition else ""
    return f"{command} --sequence-length {span} --condition {condition}{sound}"


def _check_context(sampler: Sampler) -> None:
    """The context of a sliding window leaves room for a new latent frame."""
    config, length = sampler.trained.model.config, sampler.length
    window, unit = config.grid[0], "latent frames"
    if sampler.infill:
        length = -(-(length - 1) // config.latent_stride) + 1
        unit = "key frames"
    if length > window and not 1 <= sampler.context < window:
        raise ConfigError(
            f"--temporal-sample-pos {sampler.context} must be less than the window of {window} "
            f"{unit} that the model was trained on",
            f"give a value from 1 to {window - 1}" if window > 1 else "train on longer clips",
        )


def _key_frames_alone(model: GPT, path: Path) -> ConfigError:
    return ConfigError(
        f"{find_checkpoint(path)} writes key frames only, every {model.config.latent_stride} "
        "latent frames",
        "add the GPT that fills in between: tats sample long --gpt KEY_FRAMES --infill-gpt INFILL",
    )


def _less_memory(batch: int) -> str:
    """The options with which sampling so many videos at once would need less."""
    if batch == 1:
        return "--precision bf16 needs half"
    return (
        f"--batch-size {batch // 2} needs about half, and gives the same samples; --batch-size "
        "auto takes what fits"
    )


def _grid(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
