"""What is time-agnostic is found so, and what is not, with the reason."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.data.synth import shape_clip
from tatscli.core.data.video import to_float
from tatscli.core.metrics.agnosticity import TimeAgnosticity, least_frames, time_agnosticity
from tatscli.core.models.vqgan import VQGAN

GROUPS = {"norm_type": "group", "hidden_channels": 16}


def moving(frames: int) -> Tensor:
    return to_float(shape_clip("star", 16, frames, np.random.default_rng(1)))


def vqgan(**settings: object) -> VQGAN:
    torch.manual_seed(0)
    config = {"embedding_dim": 8, "codes": 32, "hidden_channels": 2, "downsample": (2, 4, 4)}
    model = VQGAN(VQGANConfig.model_validate(config | settings)).eval()
    latents = model.latents(moving(64)[None]).detach().movedim(1, -1).flatten(0, -2)
    model.codebook.embeddings.copy_(latents[torch.randperm(len(latents))[:32]])
    return model


def measured(model: VQGAN) -> TimeAgnosticity:
    return time_agnosticity(model, moving(least_frames(model)))


@pytest.mark.parametrize(
    "settings",
    [{}, GROUPS, {"downsample": (1, 4, 4)}, {"downsample": (4, 4, 4)}, {"downsample": (4, 8, 8)}],
)
def test_norms_that_leave_time_alone_and_replicated_ends_are_time_agnostic(
    settings: dict[str, object],
) -> None:
    found = measured(vqgan(**settings))
    assert found.agnostic
    assert found.verdict.startswith("time-agnostic")
    assert found.latent_change_from_outside == found.frame_change_from_outside == 0
    assert found.shift_equal_codes == 1
    assert found.shift_equal_codes_with_ends < 1
    assert found.still_difference < 1e-5
    assert found.shift_difference < 1e-5
    assert found.decoded_in_pieces_difference is not None
    assert found.decoded_in_pieces_difference < 1e-5


def test_the_receptive_fields_are_told() -> None:
    found = measured(vqgan(downsample=(4, 8, 8)))
    assert (found.receptive_field_frames, found.receptive_field_latents) == (64, 13)
    assert found.frames == 4 * (8 + 1 + 7 + 6)


def test_group_norm_over_time_is_not() -> None:
    found = measured(vqgan(**GROUPS, group_norm_over_time=True))
    assert not found.agnostic
    assert found.verdict.startswith("not time-agnostic: group norm pools over time")
    assert found.latent_change_from_outside > 0.05
    assert found.frame_change_from_outside > 0.05
    assert found.shift_difference > 1e-3
    assert found.decoded_in_pieces_difference is None


def test_zeros_beyond_the_ends_show_where_they_are_and_change_nothing_else() -> None:
    found = measured(vqgan(padding_type="constant"))
    assert not found.agnostic
    assert found.verdict == (
        "not time-agnostic: latents of a still image differ near the ends (constant padding)"
    )
    assert found.still_difference > 1e-3
    assert found.latent_change_from_outside == found.frame_change_from_outside == 0
    assert found.shift_equal_codes == 1


def test_a_clip_in_a_circle_is_not() -> None:
    found = measured(vqgan(padding_type="circular"))
    assert not found.agnostic
    assert "frames outside of their receptive field (circular padding)" in found.verdict
    assert found.latent_change_from_outside > 1e-3


def test_it_measures_and_does_not_ask_the_settings() -> None:
    model = vqgan()
    model.encoder.conv_blocks[0].res.norm1.train()  # statistics of the clip, over time
    found = measured(model)
    assert not found.agnostic
    assert "frames outside of their receptive field" in found.verdict
    model = vqgan()
    model.decoder.conv_blocks[0].res1.norm1.train()
    found = measured(model)
    assert found.verdict.endswith("frames depend on codes outside of their receptive field")
    assert found.latent_change_from_outside == 0 < found.frame_change_from_outside


def test_a_clip_shorter_than_a_receptive_field_shows_nothing() -> None:
    model = vqgan()
    with pytest.raises(ValueError, match="38 frames, 40 are needed"):
        time_agnosticity(model, moving(38))
