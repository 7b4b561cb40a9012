"""A small classifier of frames, which tells whether generated shapes can be recognised.

It sees grey frames brought to equal contrast, so that it must read the shape and cannot read the
colour. Letters: N frames or clips, C channels, T frames of a clip, H W pixels, K classes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

WIDTH = 32
STEPS = 400
BATCH = 64
RATE = 2e-3


class ShapeProbe(nn.Module):
    """Three convolutions and a linear layer on what the frame shows anywhere.

    Args:
        classes: How many.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, WIDTH, 5, stride=2, padding=2),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * WIDTH),
            nn.ReLU(),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
            nn.BatchNorm2d(2 * WIDTH),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * WIDTH, classes),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (N, classes) of frames (N, C, H, W)."""
        grey = frames.mean(dim=1, keepdim=True)
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        logits: Tensor = self.layers((grey - low) / (high - low).clamp(min=1e-3))
        return logits

    @torch.no_grad()
    def classes_of(self, clips: Tensor) -> Tensor:
        """The class that the frames of each clip (N, C, T, H, W) make likeliest, int64 (N,)."""
        frames = rearrange(clips, "n c t h w -> (n t) c h w")
        found = torch.cat([self(some).log_softmax(1) for some in torch.split(frames, 256)])
        return rearrange(found, "(n t) k -> n t k", n=len(clips)).mean(1).argmax(1)

    @torch.no_grad()
    def share_right(self, frames: Tensor, labels: Tensor) -> float:
        """Share of frames (N, C, H, W) that are read as their label (N,)."""
        found = [self(some).argmax(1) for some in torch.split(frames, 256)]
        return float((torch.cat(found) == labels).float().mean())


def train_probe(frames: Tensor, labels: Tensor, classes: int, seed: int) -> ShapeProbe:
    """Train a probe on real frames.

    Args:
        frames: (N, C, H, W).
        labels: (N,) int64.
        classes: How many.
        seed: Of weights and order; the global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = ShapeProbe(classes)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(len(frames), (BATCH,))
            loss = F.cross_entropy(probe(frames[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return probe.eval()
