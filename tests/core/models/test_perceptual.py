"""LPIPS: the numbers of torchmetrics, gradients for the frames alone, honest about bad files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from tatscli.config.train import VQGANTrainConfig
from tatscli.core.data.clips import Clip
from tatscli.core.models.perceptual import LPIPS
from tatscli.core.training.vqgan import VQGANTraining
from tatscli.errors import CheckpointError

CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256),
    14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512),
    26: (512, 512), 28: (512, 512),
}  # fmt: skip


ALEXNET = {
    0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3),
}  # fmt: skip


def vgg16_weights() -> dict[str, Tensor]:
    return drawn({place: (*widths, 3) for place, widths in CONVOLUTIONS.items()})


def drawn(convolutions: Mapping[int, tuple[int, int, int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for place, (incoming, outgoing, size) in convolutions.items():
        noise = torch.randn(outgoing, incoming, size, size, generator=generator)
        scale = (2 / (size * size * incoming)) ** 0.5
        weights[f"features.{place}.weight"] = noise * scale
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(outgoing, generator=generator)
    return weights


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    # The published file holds the classifier too, which is not used.
    torch.save(vgg16_weights() | {"classifier.0.bias": torch.zeros(3)}, path)
    return path


@pytest.fixture(scope="module")
def network(vgg16_file: Path) -> LPIPS:
    return LPIPS(vgg16_file)


def frames(seed: int, channels: int = 3, height: int = 40, width: int = 33) -> Tensor:
    noise = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return noise - 0.5


def torchmetrics_distance(
    weights: dict[str, Tensor], a: Tensor, b: Tensor, net: Literal["vgg", "alex"] = "vgg"
) -> Tensor:
    """Computes it with torchmetrics, whose frames are in [-1, 1]."""
    with torch.device("meta"):
        # Its own VGG16 would draw 138 million random weights first.
        oracle = _LPIPS(net=net, pnet_rand=True, pretrained=False)
    oracle = oracle.to_empty(device="cpu")
    heads = Path(torchmetrics_file()).parent / "lpips_models" / f"{net}.pth"
    state = torch.load(heads, map_location="cpu", weights_only=True)
    places, borders = (CONVOLUTIONS, (5, 10, 17, 24)) if net == "vgg" else (ALEXNET, (2, 5, 8, 10))
    for place in places:
        depth = 1 + sum(place >= first for first in borders)
        for part in ("weight", "bias"):
            state[f"net.slice{depth}.{place}.{part}"] = weights[f"features.{place}.{part}"]
    missing = oracle.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith("lins.") for name in missing)  # the same modules by another name
    oracle.scaling_layer.shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    oracle.scaling_layer.scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    return oracle.eval()(2 * a, 2 * b).flatten()


def torchmetrics_file() -> str:
    import torchmetrics.functional.image.lpips as module

    assert module.__file__ is not None
    return module.__file__


def test_distance_is_that_of_torchmetrics(network: LPIPS) -> None:
    a, b = frames(1), frames(2)
    expected = torchmetrics_distance(vgg16_weights(), a, b)
    found = network(a, b)
    assert found.shape == (2,)
    assert found.min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_distance_of_alexnet_is_that_of_torchmetrics(tmp_path: Path) -> None:
    torch.save(drawn(ALEXNET) | {"classifier.1.bias": torch.zeros(3)}, tmp_path / "a.pth")
    network = LPIPS(tmp_path / "a.pth", "alex")
    for sides in ((40, 33), (31, 31)):  # 31: one feature at the last depths
        a, b = (frames(seed, 3, *sides) for seed in (1, 2))
        expected = torchmetrics_distance(drawn(ALEXNET), a, b, "alex")
        assert expected.min() > 0.01
        torch.testing.assert_close(network(a, b), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="sides of at least 31 needed"):
        network(frames(1, 3, 40, 30), frames(2, 3, 40, 30))


def test_distance_is_symmetric_and_zero_on_itself(network: LPIPS) -> None:
    a, b = frames(1), frames(2)
    assert torch.equal(network(a, a), torch.zeros(2))
    torch.testing.assert_close(network(a, b), network(b, a))


def test_grey_frames_count_as_three_equal_channels(network: LPIPS) -> None:
    a, b = frames(1, channels=1), frames(2, channels=1)
    grey, coloured = network(a, b), network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey, coloured)


def test_gradient_reaches_the_frames_and_no_weight(network: LPIPS) -> None:
    target = network.features(frames(1))
    assert not any(at_depth.requires_grad for at_depth in target)
    fake = torch.zeros(2, 3, 40, 33, requires_grad=True)
    network.distance(network.features(fake), target).sum().backward()
    assert fake.grad is not None
    assert fake.grad.isfinite().all()
    assert fake.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_network_in_a_tuple_is_outside_of_the_module_tree(network: LPIPS) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = (network,)

    assert not Holder().state_dict()


@pytest.mark.parametrize("shown", [1.0, 0.5])
def test_training_shows_it_frames_of_the_range_in_the_settings(
    network: LPIPS, shown: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    hook = network.depths[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    config = VQGANTrainConfig.model_validate(
        {
            "data": {"data": "x", "resolution": 16, "sequence_length": 2},
            "model": {
                "codes": 8,
                "embedding_dim": 4,
                "hidden_channels": 2,
                "downsample": (2, 2, 2),
            },
            "loss": {"perceptual_range": shown, "image_gan_weight": 0, "video_gan_weight": 0},
        }
    )
    module = VQGANTraining(config, 1e-3, 8.0, network).eval()
    monkeypatch.setattr(module, "counted", lambda clips, _: clips)  # which asks a trainer
    video = torch.rand(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(5)) - 0.5
    with torch.no_grad():
        made = module.vqgan(video).video[:, :, 1]
        module.validation_step(Clip(video, torch.zeros(2)), 0)
    hook.remove()
    # Published, the frames of [-0.5, 0.5] go in as they are; ours are stretched to [-1, 1].
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    for found, frames in zip(seen, (made, video[:, :, 1]), strict=True):
        assert torch.equal(found, ((1 if shown == 0.5 else 2) * frames - shift) / scale)
    with torch.no_grad():
        half = network(shown * made, shown * video[:, :, 1]).mean()
    assert torch.equal(module._perceived(video[:, :, 1], made), half)


def test_frames_without_a_pixel_left_are_refused(network: LPIPS) -> None:
    assert network(frames(1, height=16, width=16), frames(2, height=16, width=16)).isfinite().all()
    with pytest.raises(ValueError, match=r"at least 16 needed, got \(15, 16\)"):
        network.features(frames(1, height=15, width=16))


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    weights = vgg16_weights()
    weights["features.28.weight"] = weights["features.28.weight"][:10]
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"features\.28\.weight: \(10, 512, 3, 3\)"):
        LPIPS(tmp_path / "other.pth")
