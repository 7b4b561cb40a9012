"""Losses of both stages (Ge et al. 2022, section 3; Esser et al. 2021 for the adversarial part).

Letters: B clips, C channels, T frames, H W pixels, L video tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tatscli.config.gpt import GPTConfig, GPTLossConfig

MOST_LOGITS = 2**24
"""Logits of the GPT that are held at once in training: 64 MiB in float32."""


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator loss that stops pushing logits beyond one."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator loss as binary cross-entropy."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge, "vanilla": vanilla}


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute distance of the discriminator's hidden features, summed over layers.

    Args:
        real: Feature maps of the real input, last layer (the logits) included; no gradient.
        fake: Feature maps of the reconstruction.
    """
    # The published weight per layer, 4 / (3 + 1), is one for its three-layer discriminator.
    pairs = zip(fake[:-1], real[:-1], strict=True)
    return torch.stack([F.l1_loss(f, r.detach()) for f, r in pairs]).sum()


def draw_frames(
    seed: int, step: int, frames: int, clips: int, rank: int = 0, world: int = 1
) -> Tensor:
    """Number of a random frame for each clip of a process in a step, int64 (clips,).

    Drawn for the clips of all processes, whose order is that of ``ConsumedBatchSampler``: so a clip
    shows the same frame however many processes share the step.

    Args:
        seed: Of the run.
        step: Of the run.
        frames: Frames of a clip.
        clips: Clips of each process.
        rank: The number of this process.
        world: The number of processes.
    """
    drawn = np.random.default_rng([seed, step]).integers(frames, size=(world, clips))
    return torch.from_numpy(drawn[rank])


def draw_dropped(
    seed: int, step: int, parts: int, share: float, clips: int, rank: int = 0, world: int = 1
) -> Tensor:
    """Which parts of the condition are dropped, for each clip of a process in a step.

    Each part is dropped for a share of the clips; half of that together with all the others, which
    is what guidance compares with, the rest by itself. Drawn as by ``draw_frames``.

    Args:
        seed: Of the run.
        step: Of the run.
        parts: Parts of the condition.
        share: Of the clips that a part is dropped for, in [0, 1).
        clips: Clips of each process.
        rank: The number of this process.
        world: The number of processes.

    Returns:
        bool (clips, parts).
    """
    drawn = np.random.default_rng([seed, step]).random((world, clips, 1 + parts))[rank]
    together = share / 2
    alone = (share - together) / (1 - together)
    return torch.from_numpy((drawn[:, :1] < together) | (drawn[:, 1:] < alone))


def pick_frames(video: Tensor, index: Tensor) -> Tensor:
    """One frame of each clip: (B, C, T, H, W) and (B,) to (B, C, H, W)."""
    return video[torch.arange(len(video), device=video.device), :, index]


def ramp(step: int, start: int, length: int) -> float:
    """Weight that is 0 before ``start`` and reaches 1 after ``length`` steps."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / (length + 1))


def token_loss(
    hidden: Tensor,
    head: Tensor,
    codes: Tensor,
    config: GPTConfig,
    loss: GPTLossConfig | None = None,
    most_logits: int = MOST_LOGITS,
) -> Tensor:
    """Cross-entropy of the codes that are to be learnt, in nats a token.

    Those are all, except for the latent frames that infilling is given. Ids of the condition are
    never expected. The logits would be the largest tensor of a training by far: where there are
    many, they are computed a part of the rows at a time, and again for the gradient.

    Args:
        hidden: (B, L, W), what the model's last layer turns into logits.
        head: (vocabulary, W), the weights of that layer.
        codes: (B, L) without offset.
        config: Of the model.
        loss: What the published code expects as well, where that is wanted.
        most_logits: Held at once.
    """
    loss, offset = loss or GPTLossConfig(), config.condition.ids
    if config.infill and not loss.given_frames:
        between = slice(config.frame_tokens, -config.frame_tokens)
        hidden, codes = hidden[:, between], codes[:, between]
    if loss.condition_ids:
        codes = codes + offset
    else:
        head = head[offset:]
    rows, expected = hidden.flatten(0, 1), codes.flatten()
    if len(rows) * len(head) <= most_logits:
        return _summed_loss(rows, head, expected) / len(rows)
    size = max(1, most_logits // len(head))
    parts = [
        checkpoint(_summed_loss, some, head, wanted, use_reentrant=False, preserve_rng_state=False)
        for some, wanted in zip(torch.split(rows, size), torch.split(expected, size), strict=True)
    ]
    return torch.stack(parts).sum() / len(rows)


def _summed_loss(rows: Tensor, head: Tensor, expected: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, head).float(), expected, reduction="sum")
