"""Decoding and encoding in pieces equals doing the whole, in constant memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.data.video import probe
from tatscli.core.models.receptive import decoder_reach, encoder_reach
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.sampling.decode import decode_stream, encode_windows
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


@pytest.mark.parametrize("downsample", DOWNSAMPLES)
def test_pieces_together_are_the_whole(downsample: tuple[int, int, int]) -> None:
    model = vqgan(downsample)
    length = sum(decoder_reach(model)) + 12
    tokens = codes(length)
    pieces = list(decode_stream(model, tokens, piece=5))
    frames = [piece.shape[2] for piece in pieces]
    assert frames[:-1] == [5 * downsample[0]] * (len(frames) - 1)
    whole = model.decode(tokens).clamp(-0.5, 0.5)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.01


def test_pieces_of_frame_wise_group_norm_are_the_whole() -> None:
    model = vqgan((2, 2, 2), hidden_channels=16, norm_type="group")
    tokens = codes(sum(decoder_reach(model)) + 10, side=4)
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


def test_no_piece_needs_more_than_its_surroundings() -> None:
    model = vqgan((4, 8, 8))
    seen: list[int] = []
    model.decoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[2]))
    before, after = decoder_reach(model)
    window = 16 + before + after
    for length, pieces in [(16, 1), (window, 1), (window + 1, 2), (100, 7)]:
        frames = [piece.shape[2] for piece in decode_stream(model, codes(length))]
        assert (sum(frames), len(frames)) == (4 * length, pieces)
    assert max(seen) == window
    assert len(seen) == 1 + 1 + 2 + 7


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
    length = (sum(encoder_reach(model)) // downsample[0] + 14) * downsample[0]
    video = torch.rand(1, 3, length, 4, 4) - 0.5
    latents = rearrange(model.latents(video).detach(), "b d t h w -> (b t h w) d")
    model.codebook.embeddings.copy_(latents[:16])  # many codes are in use then
    whole = model.encode(video)
    seen: list[int] = []
    model.encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[2]))
    assert torch.equal(encode_windows(model, video, piece=3), whole)
    assert len(seen) == -(-whole.shape[1] // 3)
    assert max(seen) < length
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
    assert torch.equal(encode_windows(model, video, piece=3), model.encode(video))


@pytest.mark.parametrize("frames", [3, 61])
def test_frames_that_do_not_divide_are_an_error_also_in_pieces(frames: int) -> None:
    model = vqgan((2, 2, 2))
    with pytest.raises(DataError, match="cannot be downsampled by 2"):
        encode_windows(model, torch.zeros(1, 3, frames, 2, 2), piece=4)


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

found = [peak(), decode(96), decode(1024)]
with torch.no_grad():
    model.decode(torch.randint(16, (1, 384 // 4, 16, 16)))
print(json.dumps([*found, peak()]))
"""


def test_a_long_video_is_decoded_and_written_in_the_memory_of_a_short_one(tmp_path: Path) -> None:
    # A shell in between: a process starts with the peak of the one that starts it.
    script = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", DECODE, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    before, short, long, whole = json.loads(done.stdout)
    assert len(probe(tmp_path / "1024.mp4").times) == 1024
    assert short - before > 50  # megabytes
    assert long - before < 1.5 * (short - before)
    assert whole - before > 1.5 * (long - before)  # of less than half of the frames
