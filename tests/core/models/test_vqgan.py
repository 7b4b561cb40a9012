import pytest
import torch

from tatscli.config.vqgan import VQGANConfig
from tatscli.core.models.vqgan import VQGAN
from tatscli.errors import DataError

TINY = VQGANConfig(embedding_dim=8, codes=32, hidden_channels=4, downsample=(2, 4, 4))
GROUPS = VQGANConfig(
    embedding_dim=8,
    codes=32,
    hidden_channels=16,
    downsample=(2, 2, 2),
    norm_type="group",
    padding_type="constant",
)


def clip(frames, side, batch=1):
    """A clip by formula, in [-0.5, 0.5]."""
    numbers = torch.arange(batch * 3 * frames * side * side, dtype=torch.float64)
    return (0.5 * torch.sin(numbers**1.1)).float().view(batch, 3, frames, side, side)


def sketch(config):
    """A model whose weights are exact in every arithmetic."""
    model = VQGAN(config)
    for tensor in model.state_dict().values():
        tensor.copy_(((torch.arange(tensor.numel()) % 7 - 3) / 8).view(tensor.shape))
    return model.eval()


@pytest.mark.parametrize(
    ("downsample", "grid"),
    [
        ((2, 4, 4), (4, 4, 4)),
        ((1, 4, 2), (8, 4, 8)),
        ((4, 1, 8), (2, 16, 2)),
        ((8, 2, 1), (1, 8, 16)),
    ],
)
def test_codes_have_the_latent_grid_and_decode_to_the_clip(downsample, grid):
    model = VQGAN(TINY.model_copy(update={"downsample": downsample})).eval()
    video = clip(8, 16, batch=2)
    codes = model.encode(video)
    assert codes.shape == (2, *grid)
    assert codes.dtype == torch.int64
    assert model.decode(codes).shape == video.shape


def test_sides_that_do_not_divide_are_named_with_both_numbers():
    with pytest.raises(DataError, match="height 18 cannot be downsampled by 4"):
        VQGAN(TINY).encode(torch.zeros(1, 3, 4, 18, 16))


def test_frames_with_a_value_that_is_no_number_are_refused():
    video = torch.zeros(1, 3, 4, 8, 8)
    video[0, 1, 2, 3, 4] = torch.nan
    with pytest.raises(DataError, match="no numbers"):
        VQGAN(TINY).encode(video)


@pytest.mark.parametrize("scale", [255, 1])
def test_frames_of_another_range_are_refused_with_theirs(scale):
    model, video = VQGAN(TINY).eval(), clip(4, 8)
    with pytest.raises(DataError, match=rf"values from .* to {scale}; they must lie in"):
        model.encode((video - video.min()) / (video.max() - video.min()) * scale)
    # A reconstruction is not clamped, and goes a bit beyond.
    assert model.encode(1.2 * video / (2 * video.abs().max())).shape == (1, 2, 2, 2)


def test_other_shapes_are_refused_with_both():
    model = VQGAN(TINY).eval()
    for shape in ((2, 4, 8, 8, 3), (3, 4, 8, 8), (2, 1, 4, 8, 8)):
        for use in (model, model.encode):
            with pytest.raises(ValueError, match=r"video of shape .* expected \(B, 3, T, H, W\)"):
                use(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"codes of shape \(8,\), expected \(B, t, h, w\)"):
        model.decode(torch.zeros(8, dtype=int))
    with pytest.raises(ValueError, match="codes of torch.float32, expected whole numbers"):
        model.decode(torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match="code 99 is outside 0 to "):
        model.decode(torch.full((1, 2, 2, 2), 99))


def test_bytes_are_refused_as_such():
    with pytest.raises(DataError, match="a video of torch.uint8; its values must be floats in"):
        VQGAN(TINY).eval().encode(torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8))


def test_reconstruction_is_the_decoding_of_its_codes(by_rule):
    model = by_rule(VQGAN(TINY))
    video = clip(4, 16)
    out = model(video)
    assert torch.equal(out.codes, model.encode(video))
    torch.testing.assert_close(out.video, model.decode(out.codes))


def test_gradient_of_the_reconstruction_reaches_all_weights():
    model = VQGAN(TINY).train()
    out = model(clip(4, 16))
    (out.video.square().mean() + out.commitment).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.conv_first.conv.weight.grad.any()


def test_codes_are_those_of_float32_whatever_precision_is_around():
    torch.manual_seed(0)
    model = VQGAN(TINY).eval()
    video = clip(8, 16, batch=4)
    latents = model.latents(video).detach()
    # Codes so near to each other that a rounded latent would be another one.
    spread = latents.std()
    model.codebook.embeddings.mul_(1e-3 * spread).add_(latents.mean())
    codes = model.encode(video)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.codebook.nearest(model.latents(video))
        assert torch.equal(model.encode(video), codes)
    assert not torch.equal(rounded, codes)


def test_encode_and_decode_build_no_graph():
    model = VQGAN(TINY).eval()
    graphs = []
    model.encoder.register_forward_hook(lambda _m, _i, out: graphs.append(out.requires_grad))
    model.decoder.register_forward_hook(lambda _m, _i, out: graphs.append(out.requires_grad))
    model.decode(model.encode(clip(4, 16)))
    assert graphs == [False, False]


def frames_that_reach(model, latent, frames=24):
    """Frames whose change moves a latent position."""
    video = clip(frames, 8).requires_grad_()
    model.latents(video)[:, :, latent].square().sum().backward()
    return video.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()


@pytest.mark.parametrize("norm_type", ["batch", "group"])
def test_a_latent_sees_its_receptive_field_only(by_rule, norm_type):
    config = GROUPS.model_copy(update={"norm_type": norm_type})
    # Latent j: two convolutions, j +- 2; the strided one, 2j - 1 to 2j + 2; the first, +- 1.
    model = by_rule(VQGAN(config))
    assert frames_that_reach(model, 6) == list(range(2 * 4 - 2, 2 * 8 + 3 + 1))


def test_group_norm_over_time_shows_every_latent_every_frame(by_rule):
    model = by_rule(VQGAN(GROUPS.model_copy(update={"group_norm_over_time": True})))
    assert frames_that_reach(model, 6) == list(range(24))


def test_only_the_encoders_own_convolutions_take_the_padding_type():
    model = VQGAN(GROUPS)
    kinds = {
        name: module.padding_type
        for name, module in model.named_modules()
        if hasattr(module, "padding_type")
    }
    own = {"encoder.conv_first", "encoder.conv_blocks.0.down", "pre_vq_conv"}
    assert {name for name, kind in kinds.items() if kind == "constant"} == own
    assert set(kinds.values()) == {"constant", "replicate"}


def test_fingerprint_is_stable():
    # Token datasets and GPT checkpoints record it.
    assert sketch(TINY).fingerprint() == "6e9650d6b17f76ea"


@pytest.mark.parametrize(
    "key", ["encoder.conv_first.conv.weight", "decoder.conv_last.conv.bias", "codebook.embeddings"]
)
def test_fingerprint_follows_what_decides_codes_and_decoding(key):
    model = sketch(TINY)
    model.state_dict()[key].view(-1)[0] += 1e-3
    assert model.fingerprint() != sketch(TINY).fingerprint()


def test_fingerprint_follows_the_architecture():
    padded = TINY.model_copy(update={"padding_type": "reflect"})
    assert sketch(padded).fingerprint() != sketch(TINY).fingerprint()


def test_fingerprint_ignores_statistics_and_settings_of_training():
    settings = {"codebook_decay": 0.5, "random_restart": True, "disc_channels": 8}
    model = sketch(TINY.model_copy(update=settings))
    model.codebook.N += 1
    model.codebook.z_avg += 1
    model.encoder.final_block[0].num_batches_tracked += 1
    assert model.fingerprint() == sketch(TINY).fingerprint()


@pytest.mark.parametrize(
    ("config", "latents", "codes", "video"),
    [
        (
            TINY,
            [-1.53661, -0.65186, -0.61608, -1.89653],
            [19, 16, 25, 26, 19, 16, 16, 2],
            [0.71232, 0.31235, -0.55234, 1.50082],
        ),
        (
            GROUPS,
            [-0.58033, -0.4477, 0.58534, -0.37503],
            [16, 5, 31, 20, 20, 14, 23, 0],
            [-1.03112, 2.23165, 3.43637, -1.16324],
        ),
    ],
)
def test_numbers_of_the_proven_model(by_rule, config, latents, codes, video):
    model = by_rule(VQGAN(config))
    inputs = clip(4, 16)
    with torch.no_grad():
        found = model.latents(inputs)
    assert found.flatten()[::61][:4].tolist() == pytest.approx(latents, abs=1e-4)
    found = model.encode(inputs)
    assert found.flatten()[::4][:8].tolist() == codes
    decoded = model.decode(found).flatten()[::901][:4].tolist()
    assert decoded == pytest.approx(video, abs=1e-4)
