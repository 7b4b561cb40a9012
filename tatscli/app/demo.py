"""The whole pipeline on synthetic videos, small enough for a laptop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.utils.data import DataLoader

from tatscli.app.data import VideoClips, open_videos, synthesise
from tatscli.app.devices import choose_device
from tatscli.app.encode import EncodeResult, encode
from tatscli.app.evaluate import FVDResult, evaluate_fvd
from tatscli.app.pictures import save_reconstructions
from tatscli.app.report import page
from tatscli.app.report.curves import charts
from tatscli.app.reporting import Reporter, Silent
from tatscli.app.run import read_figures, write_atomically
from tatscli.app.sample import SampleResult, long, read_samples, short
from tatscli.app.train import TrainResult, train_gpt, train_vqgan
from tatscli.config.demo import DemoConfig
from tatscli.config.encode import EncodeConfig
from tatscli.config.evaluate import FVDConfig
from tatscli.config.files import Layer, read_preset, resolve
from tatscli.config.sample import SampleLongConfig, SampleShortConfig
from tatscli.config.synth import SynthConfig
from tatscli.config.train import GPTTrainConfig, VQGANTrainConfig
from tatscli.core.checkpoint import TrainedVQGAN, read_vqgan
from tatscli.core.data.tokens import TokenDataset
from tatscli.core.files import claim_empty
from tatscli.core.metrics.baselines import best_constant_image, bigram_loss
from tatscli.core.metrics.probe import ShapeProbe, train_probe
from tatscli.core.metrics.reconstruction import psnr

SYNTH = SynthConfig(size=32, train_videos=64, test_videos=8, video_frames=32, rate=8)
SAMPLES = 16
GPT_FRAMES = 8
"""Frames of the clips that the GPT is trained on; the VQGAN sees twice as many."""
LONG = 32
"""Latent frames of the long samples: four times the longest training clip."""
CONTEXT = 3
"""Latent frames that each new one is generated from."""
UNCUT = {"top_k": 0, "top_p": 1.0}
"""The likeliest tokens are those of slow shapes; all are drawn from, so that they move."""
ENCODE_STRIDE = 2
"""Frames between encoded clips: overlapping clips are more data for the GPT."""
QUICK = 20
"""Part of the training steps that the quick demo takes."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made, and how good it is.

    Attributes:
        page: Everything on one page.
        folder: Everything as files.
        reconstruction_db: PSNR of reconstructions of held-out clips.
        constant_image_db: PSNR of the best constant image on the same clips.
        probe_real: Share of real held-out frames whose shape a small probe reads.
        probe_reconstructions: The same for reconstructions.
        probe_long_samples: The same for the frames of long samples, against the class asked for.
        gpt_loss: Validation loss of the GPT, nats a token.
        bigram_loss: Loss of predicting each code from the one before it in time.
        random_feature_distance: Distance of long samples to real videos in random features.
        seconds: Time of each stage.
    """

    page: Path
    folder: Path
    reconstruction_db: float
    constant_image_db: float
    probe_real: float
    probe_reconstructions: float
    probe_long_samples: float
    gpt_loss: float
    bigram_loss: float
    random_feature_distance: float
    seconds: dict[str, float]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


def demo(folder: Path, config: DemoConfig, reporter: Reporter | None = None) -> DemoResult:
    """Run the demo.

    Raises:
        DataError: The folder is not empty.
    """
    reporter = reporter or Silent()
    claim_empty(folder, "give another folder: tats demo DIR")
    clock = _Clock()
    # One device for all stages: training would take every GPU there is.
    chosen = choose_device(config.device).type
    config = config.model_copy(update={"device": chosen})
    device = {"device": chosen}
    with clock.stage("data"):
        synthesise(folder / "data", SYNTH.model_copy(update={"seed": config.seed}), reporter)
    with clock.stage("vqgan"):
        stage_one = train_vqgan(
            _trained(VQGANTrainConfig, "vqgan", config, folder / "data", folder / "vqgan"),
            reporter=reporter,
        )
        _stop_where_told(stage_one)
    with clock.stage("encode"):
        tokens = encode(
            EncodeConfig.model_validate(
                {
                    "data": {"data": folder / "data", "sequence_length": GPT_FRAMES},
                    "encode": {
                        "vqgan": stage_one.run,
                        "out": folder / "tokens",
                        "stride": ENCODE_STRIDE,
                    },
                    "compute": device,
                }
            ),
            reporter,
        )
    with clock.stage("gpt"):
        stage_two = train_gpt(
            _trained(GPTTrainConfig, "gpt", config, folder / "tokens", folder / "gpt"),
            reporter=reporter,
        )
        _stop_where_told(stage_two)
    common = {
        "gpt": stage_two.run,
        "out": folder / "samples",
        "samples": SAMPLES,
        "seed": config.seed,
    }
    with clock.stage("sample short"):
        brief = short(
            SampleShortConfig.model_validate(
                {"sample": common | {"name": "short"}, "filter": UNCUT, "compute": device}
            ),
            reporter,
        )
    with clock.stage("sample long"):
        lengthy = long(
            SampleLongConfig.model_validate(
                {
                    "sample": common | {"name": "long"},
                    "window": {"length": LONG, "temporal_sample_pos": CONTEXT},
                    "filter": UNCUT,
                    "compute": device,
                }
            ),
            reporter,
        )
    with clock.stage("evaluate"):
        distance = evaluate_fvd(
            folder / "data" / "test",
            lengthy.folder,
            FVDConfig.model_validate({"fvd": {"features": "random"}, "compute": device}),
            reporter,
        )
        result = _judge(folder, config, stage_one, tokens, stage_two, lengthy, distance, clock)
    _write_page(folder, result, stage_one, stage_two, brief, lengthy)
    return result


def _stop_where_told(stage: TrainResult) -> None:
    """A stage that a signal ended has saved; the demo ends with it."""
    if stage.signal:
        raise KeyboardInterrupt


def _trained(model: type[Any], kind: str, config: DemoConfig, data: Path, out: Path) -> Any:
    """Settings of a training run: the demo preset with its own data and folder."""
    preset = read_preset(kind, "demo")
    steps = preset.values["train"]["max_steps"]
    if config.quick:
        steps = max(1, steps // QUICK)
    own = {
        "data": {"data": str(data)},
        "train": {"out": str(out), "seed": config.seed, "max_steps": steps},
        "compute": {"device": config.device},
    }
    return resolve(model, [preset, Layer(place="demo", values=own)])


def _judge(
    folder: Path,
    config: DemoConfig,
    stage_one: TrainResult,
    tokens: EncodeResult,
    stage_two: TrainResult,
    lengthy: SampleResult,
    distance: FVDResult,
    clock: _Clock,
) -> DemoResult:
    vqgan = read_vqgan(stage_one.run)
    clip = vqgan.clip
    videos = open_videos(folder / "data", clip, Silent())
    train, train_labels = _clips(videos, "train", 512)
    held, held_labels = _clips(videos, "val", 128)
    classes = len(videos.index.classes)
    probe = train_probe(_frames(train), _each_frame(train_labels, train), classes, config.seed)
    made = _reconstructed(vqgan, held)
    some = slice(None, None, max(1, len(held) // 4))
    save_reconstructions(held[some], made[some], folder / "reconstructions", videos.rate)
    constant = best_constant_image(held)[None, :, None].expand_as(held)
    samples, names = read_samples(lengthy.folder)
    labels = torch.tensor([videos.index.classes.index(name) for name in names])
    counted, predicted = (
        torch.stack([dataset[i].tokens for i in range(len(dataset))])
        for dataset in (TokenDataset(tokens.folder, "train"), TokenDataset(tokens.folder, "val"))
    )
    return DemoResult(
        page=folder / "index.html",
        folder=folder,
        reconstruction_db=float(psnr(held, made).mean()),
        constant_image_db=float(psnr(held, constant).mean()),
        probe_real=_share_right(probe, held, held_labels),
        probe_reconstructions=_share_right(probe, made, held_labels),
        probe_long_samples=_share_right(probe, samples, labels),
        gpt_loss=stage_two.figures["val/loss"],
        bigram_loss=bigram_loss(counted, predicted, tokens.codes),
        random_feature_distance=distance.value,
        seconds=clock.seconds,
    )


def _clips(videos: VideoClips, split: Any, count: int) -> tuple[Tensor, Tensor]:
    clips = next(iter(DataLoader(videos.spread(split, count), batch_size=count)))
    return clips.video, clips.label


@torch.no_grad()
def _reconstructed(vqgan: TrainedVQGAN, clips: Tensor) -> Tensor:
    made = [vqgan.model.decode(vqgan.model.encode(some)) for some in torch.split(clips, 16)]
    return torch.cat(made).clamp(-0.5, 0.5)


def _frames(clips: Tensor) -> Tensor:
    return rearrange(clips, "b c t h w -> (b t) c h w")


def _each_frame(labels: Tensor, clips: Tensor) -> Tensor:
    return repeat(labels, "b -> (b t)", t=clips.shape[2])


def _share_right(probe: ShapeProbe, clips: Tensor, labels: Tensor) -> float:
    return probe.share_right(_frames(clips), _each_frame(labels, clips))


def _write_page(
    folder: Path,
    result: DemoResult,
    stage_one: TrainResult,
    stage_two: TrainResult,
    brief: SampleResult,
    lengthy: SampleResult,
) -> None:
    gain = result.reconstruction_db - result.constant_image_db
    sections = [
        page.Section(
            "Long samples",
            f"{lengthy.frames} frames each, {lengthy.frames // brief.frames} times the length the "
            "GPT was trained on: a window slides over latent frames. Every video is new; its class "
            "was asked for.",
            page.row(
                page.media(lengthy.grid, f"{lengthy.samples} samples"),
                page.media(lengthy.picture, "Eight frames of each, from first to last"),
            ),
        ),
        page.Section(
            "Short samples",
            f"{brief.frames} frames, the length of the GPT's training.",
            page.row(
                page.media(brief.grid, f"{brief.samples} samples"),
                page.media(brief.picture, "The frames of each"),
            ),
        ),
        page.Section(
            "Reconstructions of held-out clips",
            "Originals above, what is left after 64 codes for every two frames below.",
            page.row(
                page.media(folder / "reconstructions.png", "Originals and reconstructions"),
                page.media(folder / "reconstructions.mp4", "Original left, reconstruction right"),
            ),
        ),
        page.Section(
            "Figures",
            "Shares are of frames whose shape a small classifier reads; it sees grey frames of "
            "equal contrast, so colour does not help it.",
            page.figures_table(
                {
                    "Reconstruction, held-out clips": f"{result.reconstruction_db:.1f} dB",
                    "Best constant image, same clips": f"{result.constant_image_db:.1f} dB",
                    "Gain over it": f"{gain:.1f} dB",
                    "Shapes read in real held-out frames": f"{result.probe_real:.1%}",
                    "Shapes read in reconstructions": f"{result.probe_reconstructions:.1%}",
                    "Shapes read in long samples": f"{result.probe_long_samples:.1%}",
                    "GPT, validation loss": f"{result.gpt_loss:.3f} nats a token",
                    "Copying the latent frame before": f"{result.bigram_loss:.3f} nats a token",
                    "Time in all": f"{sum(result.seconds.values()) / 60:.1f} minutes",
                }
            ),
        ),
        page.Section(
            "Training",
            "",
            "\n".join(
                page.part(title, page.curves([title], charts([read_figures(run / "metrics.csv")])))
                for title, run in (
                    ("Stage one: VQGAN", stage_one.run),
                    ("Stage two: GPT", stage_two.run),
                )
            ),
        ),
        page.Section(
            "On your own videos",
            "The same steps; leave out --preset tiny for the published recipe on a GPU.",
            page.commands(next_commands()),
        ),
    ]
    text = "Everything below was made by this machine just now, from nothing: tats demo."
    write_atomically(folder / "index.html", page.page("tats demo", text, sections))


def next_commands() -> list[str]:
    """The pipeline on a folder of one's own."""
    return [
        "tats data check VIDEOS",
        "tats vqgan train --data VIDEOS --preset tiny --out runs/vqgan",
        "tats encode --data VIDEOS --vqgan runs/vqgan --out tokens",
        "tats gpt train --data tokens --preset tiny --out runs/gpt",
        "tats sample long --gpt runs/gpt --length 16",
    ]
