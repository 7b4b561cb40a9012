"""Decoding and encoding in pieces equals doing the whole, in constant memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.data.video import probe
from tatscli.core.models.receptive import decoder_reach
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream, encode_stream
from tatscli.errors import DataError

DOWNSAMPLES = [(4, 8, 8), (1, 4, 2), (2, 4, 4), (8, 2, 2), (2, 16, 16)]


def vqgan(downsample: tuple[int, int, int], **settings: object) -> VQGAN:
    config = VQGANConfig.model_validate(
        {"embedding_dim": 4, "codes": 16, "hidden_channels": 2, "downsample": downsample} | settings
    )
    model = VQGAN(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def codes(length: int, side: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(16, (1, length, side, side), generator=generator)


@pytest.mark.parametrize("piece", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_pieces_together_are_the_whole(
    downsample: tuple[int, int, int], length: int, piece: int
) -> None:
    model, tokens = vqgan(downsample), codes(length)
    pieces = list(decode_stream(model, tokens, piece=piece))
    whole = model.decode(tokens).clamp(-0.5, 0.5)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.01
    assert all(video.shape[2] for video in pieces)
    # What comes last waits for the end only as long as it depends on it.
    assert len(pieces) >= -(-length // piece) - sum(decoder_reach(model))


def test_pieces_of_frame_wise_group_norm_are_the_whole() -> None:
    model = vqgan((2, 2, 2), hidden_channels=16, norm_type="group")
    tokens = codes(22, side=4)
    pieces = list(decode_stream(model, tokens, piece=4))
    assert len(pieces) > 2
    whole = model.decode(tokens).clamp(-0.5, 0.5)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)


def test_group_norm_over_time_is_decoded_whole() -> None:
    model = vqgan((2, 2, 2), hidden_channels=16, norm_type="group", group_norm_over_time=True)
    tokens = codes(60)
    [video] = decode_stream(model, tokens, piece=4)
    assert torch.equal(video, model.decode(tokens).clamp(-0.5, 0.5))


def test_frames_are_clamped() -> None:
    model = vqgan((2, 2, 2))
    with torch.no_grad():
        model.decoder.conv_last.conv.bias.fill_(9.0)
    [video] = decode_stream(model, codes(2))
    assert torch.equal(video, torch.full_like(video, 0.5))


def test_every_frame_is_computed_once_and_few_are_held() -> None:
    model = vqgan((4, 8, 8))
    computed: list[int] = []
    model.decoder.conv_last.conv.register_forward_hook(
        lambda _module, _inputs, out: computed.append(out.shape[2])
    )
    held = {}
    for length in (40, 80):
        computed.clear()
        for piece in decode_stream(model, codes(length)):
            assert piece.shape[2] <= 16 + 4 * sum(decoder_reach(model))
        assert sum(computed) == 4 * length
        held[length] = max(computed)
    assert held[40] == held[80] <= 4 + 4 * sum(decoder_reach(model))


def test_short_videos_are_done_whole() -> None:
    model = vqgan((4, 8, 8))
    [video] = decode_stream(model, codes(8))
    assert torch.equal(video, model.decode(codes(8)).clamp(-0.5, 0.5))


SETTINGS = {
    "batch norm": {},
    "zeros": {"padding_type": "constant"},
    "group norm": {"norm_type": "group", "hidden_channels": 16},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("downsample", [(4, 4, 2), (2, 4, 4), (1, 4, 4)])
def test_codes_of_pieces_together_are_those_of_the_whole(
    downsample: tuple[int, int, int], settings: dict[str, object]
) -> None:
    model = vqgan(downsample, **settings)
    video = torch.rand(1, 3, 24 * downsample[0], 4, 4) - 0.5
    latents = rearrange(model.latents(video).detach(), "b d t h w -> (b t h w) d")
    model.codebook.embeddings.copy_(latents[:16])  # many codes are in use then
    whole = model.encode(video)
    computed: list[int] = []
    model.encoder.conv_first.conv.register_forward_hook(
        lambda _module, _inputs, out: computed.append(out.shape[2])
    )
    for piece in (1, 3, 2 * downsample[0]):
        computed.clear()
        assert torch.equal(encode_stream(model, video, piece=piece), whole)
        assert sum(computed) == video.shape[2]
        assert max(computed) <= piece + 1
    assert len(whole.unique()) > 4


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_type": "circular"},
        {"norm_type": "group", "hidden_channels": 16, "group_norm_over_time": True},
    ],
)
def test_where_all_frames_count_all_are_encoded_at_once(settings: dict[str, object]) -> None:
    model = vqgan((2, 2, 2), **settings)
    video = torch.rand(1, 3, 60, 2, 2) - 0.5
    assert torch.equal(encode_stream(model, video, piece=3), model.encode(video))


@pytest.mark.parametrize("frames", [3, 61])
def test_frames_that_do_not_divide_are_an_error_also_in_pieces(frames: int) -> None:
    model = vqgan((2, 2, 2))
    with pytest.raises(DataError, match="cannot be downsampled by 2"):
        encode_stream(model, torch.zeros(1, 3, frames, 2, 2), piece=4)


def test_bytes_are_an_error_also_in_pieces() -> None:
    with pytest.raises(DataError, match="a video of torch.uint8"):
        encode_stream(vqgan((2, 2, 2)), torch.zeros(1, 3, 60, 2, 2, dtype=torch.uint8), piece=4)


DECODE = """
import json, resource, sys
from pathlib import Path
import torch
from tatscli.config.vqgan import VQGANConfig
from tatscli.core.data.video import to_uint8, video_writer
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream

torch.set_num_threads(1)
config = VQGANConfig(embedding_dim=4, codes=16, hidden_channels=4, downsample=(4, 4, 4))
model = VQGAN(config).eval()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def decode(frames):
    pieces = decode_stream(model, torch.randint(16, (1, frames // 4, 16, 16)))
    with video_writer(Path(sys.argv[1]) / f"{frames}.mp4", 8) as write:
        for piece in pieces:
            write(to_uint8(piece[0]))
    return peak()

found = [peak(), decode(64), decode(1024)]
with torch.no_grad():
    model.decode(torch.randint(16, (1, 384 // 4, 16, 16)))
print(json.dumps([*found, peak()]))
"""


def test_a_long_video_is_decoded_and_written_in_the_memory_of_a_short_one(tmp_path: Path) -> None:
    # A shell in between: a process starts with the peak of the one that starts it.
    script = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", DECODE, str(tmp_path)]
    # Freed blocks go back at once, so that what is measured is what is held, not how it lies.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=environment)
    before, short, long, whole = json.loads(done.stdout)
    assert len(probe(tmp_path / "1024.mp4").times) == 1024
    assert short - before > 50  # megabytes
    assert long - before < 1.5 * (short - before)
    assert whole - before > 1.5 * (long - before)  # of less than half of the frames
