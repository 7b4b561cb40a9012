"""Whether a VQGAN is time-agnostic: neither codes nor frames tell where in the clip they are.

Ge et al. 2022, section 3.1. Only then may the window of a GPT slide, and a long video be decoded in
pieces. It is measured on a clip, not concluded from the settings.

Letters: C channels, T frames, H W pixels, t h w latent grid, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.receptive import Reach, decoder_reach, encoder_reach, pools_over_time
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.precision import strict_float32
from tatscli.core.sampling.decode import decode_stream

SPARE = 6
"""Latent frames that a clip must have beyond the longest receptive field."""
ROUNDING = 1e-4
"""Part of the largest value up to which a difference may be rounding."""


@dataclass(frozen=True)
class TimeAgnosticity:
    """What latents and frames depend on besides what is near them in time.

    Each difference is the largest of any element: of latents in their own units, of frames in
    those of a video in [-0.5, 0.5].

    Attributes:
        verdict: In words, with the reason.
        agnostic: Whether nothing speaks against it but rounding.
        frames: Frames of the clip measured on.
        receptive_field_frames: Receptive field of a latent, by the convolutions.
        receptive_field_latents: Receptive field of all frames of a latent together.
        latent_change_from_outside: Of a latent, when all frames outside of its field become noise.
        frame_change_from_outside: Of a frame, when all codes outside of its field become others.
        still_difference: Between latents of a still image at different times.
        shift_difference: Between latents of the same moment in two clips, of which one starts a
            latent frame later, where both hold the whole receptive field.
        shift_equal_codes: Share of the codes there that are equal.
        shift_equal_codes_with_ends: Share of equal codes also where the field reaches beyond an
            end of a clip; padding can imitate what is there, but not know it.
        decoded_in_pieces_difference: Between frames decoded in pieces and all at once; None for a
            model whose group norm pools over time, which is never decoded in pieces.
    """

    verdict: str
    agnostic: bool
    frames: int
    receptive_field_frames: int
    receptive_field_latents: int
    latent_change_from_outside: float
    frame_change_from_outside: float
    still_difference: float
    shift_difference: float
    shift_equal_codes: float
    shift_equal_codes_with_ends: float
    decoded_in_pieces_difference: float | None


def least_frames(vqgan: VQGAN) -> int:
    """Frames that a clip needs for a measurement: more than any receptive field."""
    before, after = _latents_seen(vqgan)
    longest = max(before + after, sum(decoder_reach(vqgan))) + 1
    return (longest + SPARE) * vqgan.config.downsample[0]


@torch.no_grad()
def time_agnosticity(vqgan: VQGAN, video: Tensor) -> TimeAgnosticity:
    """Measure a VQGAN in strict float32.

    Args:
        vqgan: The model, in eval mode.
        video: One clip (C, T, H, W) in [-0.5, 0.5], of ``least_frames`` or more.

    Raises:
        DataError: A side is not divisible by its downsampling.
    """
    if video.shape[1] < least_frames(vqgan):
        raise ValueError(f"{video.shape[1]} frames, {least_frames(vqgan)} are needed")
    factor, (before, after) = vqgan.config.downsample[0], _latents_seen(vqgan)
    with strict_float32(video.device):
        clip = video[None]
        latents = vqgan.latents(clip)
        codes = vqgan.codebook.nearest(latents)
        frames = vqgan.decode(codes)
        still = vqgan.latents(clip[:, :, :1].expand_as(clip))
        # Latents of the same moments, seen from two clips.
        ours = vqgan.latents(clip[:, :, :-factor])[:, :, 1:]
        theirs = vqgan.latents(clip[:, :, factor:])[:, :, :-1]
        equal = vqgan.codebook.nearest(ours) == vqgan.codebook.nearest(theirs)
        inside = slice(before, ours.shape[2] - after)
        pieces = list(decode_stream(vqgan, codes, piece=2))
        latent_change_from_outside = _latent_change(vqgan, clip, latents)
        frame_change_from_outside = _frame_change(vqgan, codes, frames)
    still_difference = _largest(still - still[:, :, still.shape[2] // 2, None])
    shift_difference = _largest((ours - theirs)[:, :, inside])
    decoded_in_pieces_difference = None
    if len(pieces) > 1:
        decoded_in_pieces_difference = _largest(torch.cat(pieces, 2) - frames.clamp(-0.5, 0.5))
    latent_rounding, frame_rounding = ROUNDING * _largest(latents), ROUNDING * _largest(frames)
    objections = _objections(
        vqgan.config,
        latents_see_more=max(latent_change_from_outside, shift_difference) > latent_rounding,
        frames_see_more=max(frame_change_from_outside, decoded_in_pieces_difference or 0)
        > frame_rounding,
        ends_show=still_difference > latent_rounding,
    )
    return TimeAgnosticity(
        verdict=("not time-agnostic: " + "; ".join(objections))
        if objections
        else "time-agnostic: nothing beyond the receptive field matters, and padding adds nothing",
        agnostic=not objections,
        frames=video.shape[1],
        receptive_field_frames=sum(encoder_reach(vqgan)) + factor,
        receptive_field_latents=sum(decoder_reach(vqgan)) + 1,
        latent_change_from_outside=latent_change_from_outside,
        frame_change_from_outside=frame_change_from_outside,
        still_difference=still_difference,
        shift_difference=shift_difference,
        shift_equal_codes=float(equal[:, inside].float().mean()),
        shift_equal_codes_with_ends=float(equal.float().mean()),
        decoded_in_pieces_difference=decoded_in_pieces_difference,
    )


def _latents_seen(vqgan: VQGAN) -> Reach:
    """Latent frames that hold the frames a latent depends on."""
    (before, after), factor = encoder_reach(vqgan), vqgan.config.downsample[0]
    return Reach(-(-before // factor), -(-after // factor))


def _latent_change(vqgan: VQGAN, clip: Tensor, latents: Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(clip.shape, generator=generator) - 0.5).to(clip)
    changes = []
    for at, field in _fields(latents.shape[2], encoder_reach(vqgan), vqgan.config.downsample[0]):
        changed = noise.clone()
        changed[:, :, field] = clip[:, :, field]
        changes.append(_largest((vqgan.latents(changed) - latents)[:, :, at]))
    return max(changes)


def _frame_change(vqgan: VQGAN, codes: Tensor, frames: Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    other = torch.randint(1, vqgan.config.codes, codes.shape, generator=generator).to(codes)
    factor = vqgan.config.downsample[0]
    changes = []
    for at, field in _fields(codes.shape[1], decoder_reach(vqgan), 1):
        changed = (codes + other) % vqgan.config.codes
        changed[:, field] = codes[:, field]
        own = slice(at * factor, (at + 1) * factor)
        changes.append(_largest((vqgan.decode(changed) - frames)[:, :, own]))
    return max(changes)


def _fields(latents: int, reach: Reach, factor: int) -> Iterator[tuple[int, slice]]:
    """The first, a middle and the last latent frame, and their fields in steps of 1 / factor."""
    for at in (0, latents // 2, latents - 1):
        yield at, slice(max(0, at * factor - reach.before), (at + 1) * factor + reach.after)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _objections(
    config: VQGANConfig, *, latents_see_more: bool, frames_see_more: bool, ends_show: bool
) -> list[str]:
    found = []
    if (latents_see_more or frames_see_more) and pools_over_time(config):
        found.append("group norm pools over time, so all latents depend on all frames")
    elif latents_see_more:
        found.append(
            "latents depend on frames outside of their receptive field "
            f"({config.padding_type} padding)"
        )
    elif frames_see_more:
        found.append("frames depend on codes outside of their receptive field")
    if ends_show:
        found.append(
            f"latents of a still image differ near the ends ({config.padding_type} padding)"
        )
    return found
