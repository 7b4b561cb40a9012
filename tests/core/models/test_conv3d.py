import pytest
import torch

from tatscli.core.models.conv3d import (
    Conv3d,
    FrameGroupNorm,
    ResBlock,
    SamePadConv3d,
    SamePadConvTranspose3d,
    Size,
    normalization,
)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_convolution_divides_the_size_by_the_stride(stride):
    conv = SamePadConv3d(2, 3, 4, stride)
    t, h, w = stride
    assert conv(torch.zeros(1, 2, 4, 8, 6)).shape == (1, 3, 4 // t, 8 // h, 6 // w)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_transposed_convolution_multiplies_the_size_by_the_stride(stride):
    conv = SamePadConvTranspose3d(2, 3, 4, stride)
    t, h, w = stride
    assert conv(torch.zeros(1, 2, 4, 8, 6)).shape == (1, 3, 4 * t, 8 * h, 6 * w)


def test_odd_padding_goes_before():
    conv = SamePadConv3d(1, 1, 4)
    with torch.no_grad():
        conv.conv.weight.zero_()
        conv.conv.bias.zero_()
        conv.conv.weight[0, 0, 0, 2, 2] = 1  # the first tap on time sees two frames back
    frames = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert conv(frames).flatten().tolist() == [0, 0, 0, 1, 2]


def test_replicated_borders_do_not_show_in_a_constant_clip():
    constant = torch.ones(1, 2, 4, 6, 6)
    out = SamePadConv3d(2, 3, 4, (2, 2, 2))(constant)
    torch.testing.assert_close(out, out[:, :, :1, :1, :1].expand_as(out))
    zeros = SamePadConv3d(2, 3, 4, (2, 2, 2), padding_type="constant")(constant)
    assert not torch.allclose(zeros, zeros[:, :, 1:2, 1:2, 1:2].expand_as(zeros))


def test_borders_of_a_transposed_convolution_equal_its_middle():
    out = SamePadConvTranspose3d(2, 3, 4, (2, 2, 2))(torch.ones(1, 2, 3, 3, 3))
    cell = out[:, :, 2:4, 2:4, 2:4]  # the two phases of each axis
    torch.testing.assert_close(out, cell.repeat(1, 1, 3, 3, 3))


def test_group_norm_keeps_frames_apart():
    norm = normalization(32, "group")
    clip = torch.randn(2, 32, 4, 3, 3)
    changed = clip.clone()
    changed[:, :, 2] += 5 * torch.randn(2, 32, 3, 3)
    same = (norm(clip) == norm(changed)).flatten(3).all(-1).all(1).all(0)
    assert same.tolist() == [True, True, False, True]


def test_group_norm_over_time_mixes_frames_as_published():
    norm = normalization(32, "group", over_time=True)
    assert not isinstance(norm, FrameGroupNorm)
    clip = torch.randn(1, 32, 4, 3, 3)
    changed = clip.clone()
    changed[:, :, 2] += 1 + torch.randn(32, 3, 3)
    assert not torch.allclose(norm(clip)[:, :, 0], norm(changed)[:, :, 0])


def test_one_frame_is_normalised_alike_with_and_without_time():
    clip = torch.randn(2, 64, 1, 5, 5)
    torch.testing.assert_close(
        normalization(64, "group")(clip), normalization(64, "group", over_time=True)(clip)
    )


def test_residual_block_without_its_last_convolution_is_the_identity():
    block = ResBlock(32, "group", over_time=False)
    torch.nn.init.zeros_(block.conv2.conv.weight)
    torch.nn.init.zeros_(block.conv2.conv.bias)
    x = torch.randn(1, 32, 2, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
def test_a_small_clip_goes_through_onednn_where_no_gradient_is_wanted(stride: Size) -> None:
    layer, clip = Conv3d(3, 32, 3, stride), torch.rand(1, 3, 6, 18, 18)
    with torch.profiler.profile() as profile, torch.no_grad():
        found = layer(clip)
    assert "aten::mkldnn_convolution" in {event.name for event in profile.events()}
    expected = torch.nn.functional.conv3d(clip.double(), layer.weight.double(), None, stride)
    expected += layer.bias.detach().double().view(-1, 1, 1, 1)
    torch.testing.assert_close(found.double(), expected.detach(), atol=1e-6, rtol=0)
    layer(clip).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()
