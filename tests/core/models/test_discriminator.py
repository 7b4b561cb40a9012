import pytest
import torch
from torch import nn

from tatscli.core.models.discriminator import PatchDiscriminator

SHAPES = {2: (2, 3, 32, 32), 3: (2, 3, 8, 32, 32)}


def image(dims):
    count = torch.tensor(SHAPES[dims]).prod().item()
    return (0.5 * torch.sin(torch.arange(count).double() ** 1.1)).float().view(SHAPES[dims])


@pytest.mark.parametrize(("dims", "patches"), [(2, (7, 7)), (3, (4, 7, 7))])
def test_one_logit_a_patch(dims, patches):
    judgement = PatchDiscriminator(dims, 3, channels=8)(image(dims))
    assert judgement.logits.shape == (2, 1, *patches)


@pytest.mark.parametrize("dims", [2, 3])
def test_features_are_all_layers_and_end_with_the_logits(dims):
    judgement = PatchDiscriminator(dims, 3, channels=8, layers=3)(image(dims))
    assert [f.shape[1] for f in judgement.features] == [8, 16, 32, 64, 1]
    assert judgement.features[-1] is judgement.logits


def test_channels_stop_at_512():
    model = PatchDiscriminator(2, 1, channels=256, layers=3)
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [256, 512, 512, 512, 1]


@pytest.mark.parametrize(("dims", "norm"), [(2, nn.BatchNorm2d), (3, nn.BatchNorm3d)])
def test_first_and_last_layer_are_not_normalised(dims, norm):
    model = PatchDiscriminator(dims, 3, channels=8, layers=3)
    assert [any(isinstance(m, norm) for m in layer) for layer in model.layers] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("dims", "logits", "means"),
    [
        (2, [0.41906, 0.19735, 0.35828], [0.16632, 0.30105, 0.317, 0.32949, -0.27065]),
        (3, [-0.29282, 0.27905, -0.5866], [0.14119, 0.29477, 0.31336, 0.32543, -0.093]),
    ],
)
def test_numbers_of_the_proven_model(by_rule, dims, logits, means):
    model = by_rule(PatchDiscriminator(dims, 3, channels=8)).train()
    with torch.no_grad():
        judgement = model(image(dims))
    assert judgement.logits.flatten()[:3].tolist() == pytest.approx(logits, abs=1e-4)
    found = [feature.mean().item() for feature in judgement.features]
    assert found == pytest.approx(means, abs=1e-4)


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_gradients_in_bf16_on_a_cpu_are_near_those_in_float32(frames):
    # oneDNN 3.12 by itself gets those of some layers wrong, up to infinity.
    torch.manual_seed(0)
    model = PatchDiscriminator(3, 3, channels=16)
    clip = torch.rand(2, 3, frames, 32, 32) - 0.5

    def gradients(enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = -model(clip).logits.float().mean()
        loss.backward()
        return [p.grad.flatten().clone() for p in model.parameters() if p.ndim > 1]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.cosine_similarity(found, expected, dim=0) > 0.98
