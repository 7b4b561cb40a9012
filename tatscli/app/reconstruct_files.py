"""The files of an evaluation of reconstructions: figures, a table of clips, plots and pictures.

Letters: C channels, T frames, H W pixels.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tatscli.app.pictures import save_comparison, save_sounds
from tatscli.app.plots import grid_svg, ranked_svg
from tatscli.config.words import counted
from tatscli.core.files import write_whole
from tatscli.errors import DataError

if TYPE_CHECKING:
    from tatscli.app.reconstruct import VQGANEvalResult

RESULT = "reconstruction.json"
"""All figures, as --json prints them."""
CLIPS = "clips.csv"
"""One line for each clip, in the order of the dataset."""
CODES = "codes.csv"
"""How often each code occurs."""
USAGE, GRID, PICTURES = "codes.svg", "positions.svg", "clips"
"""Plots of the codes, and (PNG, and MP4 of videos) the worst, the median and the best clip."""


@dataclass(frozen=True)
class ClipScores:
    """The scores of one clip.

    Attributes:
        video: Path of its video below the root of the dataset.
        start: Presentation time of its first frame in seconds.
        values: By name of the measure.
        identical_frames: Frames that are reconstructed exactly.
    """

    video: str
    start: float
    values: dict[str, float]
    identical_frames: int


class Shown(NamedTuple):
    """A clip to be looked at.

    Attributes:
        name: What it is among the clips, such as worst.
        scores: Of it.
        video: (C, T, H, W) in [-0.5, 0.5].
        made: Its reconstruction.
    """

    name: str
    scores: ClipScores
    video: Tensor
    made: Tensor


def write_files(
    out: Path,
    result: "VQGANEvalResult",
    rows: Sequence[ClipScores],
    counts: Tensor | None,
    shown: Sequence[Shown],
    rate: float,
) -> None:
    """Write everything about an evaluation.

    Args:
        out: A folder, made where it is missing.
        result: Its figures.
        rows: Scores of each clip, in the order of the dataset; none without data.
        counts: How often each code occurs, (K,).
        shown: Clips to be looked at.
        rate: Frames per second of their video; 0 where it is not known.

    Raises:
        DataError: A file cannot be written.
    """
    found = result.reconstruction
    if found and counts is not None:
        _write_csv(
            out / CLIPS,
            ["video", "start_seconds", *rows[0].values, "identical_frames"],
            [
                [
                    row.video,
                    f"{row.start:.3f}",
                    *(f"{value:.6g}" for value in row.values.values()),
                    row.identical_frames,
                ]
                for row in rows
            ],
        )
        _write_csv(out / CODES, ["code", "count"], list(enumerate(counts.tolist())))
        usage = found.usage
        title = (
            f"{usage.used:,} of {usage.codes:,} codes used, perplexity {usage.perplexity:,.1f}, "
            f"in {usage.tokens:,} tokens of {counted(found.clips, 'clip')}"
        )
        _write_text(out / USAGE, ranked_svg(counts.tolist(), title))
        title = "Perplexity of codes by position in a clip"
        svg = grid_svg(title, usage.perplexity_by_time, usage.perplexity_by_place)
        _write_text(out / GRID, svg)
        _write_pictures(out / PICTURES, shown, rate)
    # Last, so that a folder with it is complete.
    _write_text(out / RESULT, json.dumps(asdict(result), indent=2, default=str) + "\n")


def _write_pictures(stem: Path, shown: Sequence[Shown], rate: float) -> None:
    video = torch.stack([clip.video for clip in shown])
    made = torch.stack([clip.made for clip in shown])
    if video.shape[1] == 1:
        save_sounds(video, made, stem)
        return
    titles = [
        f"{s.name}: {s.scores.values['psnr_db']:.2f} dB   "
        f"{'/'.join(Path(s.scores.video).parts[-2:])}, from {s.scores.start:.2f} s"
        for s in shown
    ]
    save_comparison(titles, video, made, stem, rate)


def _write_csv(file: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    _write_text(file, text.getvalue())


def _write_text(file: Path, text: str) -> None:
    write_whole(file, text.encode(), DataError)
