"""Vector quantiser whose codes follow the encoder by moving averages.

van den Oord et al. 2017, appendix A.1: the counts N and the sums m of the encoder outputs given to
each code are averaged over steps, and a code is m / N. The arithmetic is that of the published TATS
code, done once an optimiser step; see ``Codebook.update``. What the published code does with every
pass, and without the statistics of restarted codes, is there to repeat its results.

Letters: B clips, t h w latent positions, n all positions of a batch, K codes, D width.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tatscli.core.precision import strict_float32

_EPSILON = 1e-7
_CHUNK = 2**24
"""Distances held at once: 64 MiB."""


class Quantized(NamedTuple):
    """What the quantiser makes of encoder outputs.

    Attributes:
        latents: (B, D, t, h, w), the code vectors; the gradient passes straight through.
        codes: (B, t, h, w) int64.
        commitment: Scalar, mean squared distance of the input to its (constant) code vectors,
            without any weight; the published loss is a quarter of it.
        perplexity: Scalar, exp of the entropy of the codes used by this batch.
    """

    latents: Tensor
    codes: Tensor
    commitment: Tensor
    perplexity: Tensor


class Codebook(nn.Module):
    """Codes in float32, whatever the precision around them.

    The buffers are all the state: a codebook whose counts N are not all zero is initialised, also
    after loading. Under DDP, buffers must not be broadcast (``broadcast_buffers=False``): every
    process accumulates its own batch until ``update`` sums them.

    Attributes:
        each_pass: Whether the codes move with every batch that is quantised in training, after it
            was, rather than whenever ``update`` is called.
        used: Which codes training used since this was last cleared, bool (K,); the same in all
            processes. No part of the state, whoever clears it saves it.

    Args:
        codes: Entries K.
        width: Width D of an entry.
        decay: Decay of the moving averages.
        random_restart: Move codes that are hardly used onto recent encoder outputs.
        restart_threshold: Share of the mean count below which a code is moved.
        restart_statistics: Move the statistics too. Without them, as published, the code vector
            alone moves, at any count below 1, and flies back with the next update.
        each_pass: See above.
    """

    embeddings: Tensor
    N: Tensor
    z_avg: Tensor
    used: Tensor
    _counts: Tensor
    _sums: Tensor
    _recent: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        decay: float = 0.99,
        random_restart: bool = False,
        restart_threshold: float = 0.1,
        restart_statistics: bool = True,
        each_pass: bool = False,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.decay = decay
        self.random_restart = random_restart
        self.restart_threshold = restart_threshold
        self.restart_statistics = restart_statistics
        self.each_pass = each_pass
        self.register_buffer("embeddings", torch.randn(codes, width))
        self.register_buffer("N", torch.zeros(codes))
        self.register_buffer("z_avg", self.embeddings.clone())
        self.register_buffer("used", torch.zeros(codes, dtype=torch.bool), persistent=False)
        self.register_buffer("_counts", torch.zeros(codes), persistent=False)
        self.register_buffer("_sums", torch.zeros(codes, width), persistent=False)
        self.register_buffer("_recent", torch.zeros(0, width), persistent=False)
        self._seen_initialized = False
        self.register_load_state_dict_post_hook(_look_again)  # type: ignore[no-untyped-call]

    @property
    def initialized(self) -> bool:
        """Whether the codes come from data or from a checkpoint of such codes."""
        # Looked at until it is so: each look would hold up a GPU.
        if not self._seen_initialized:
            self._seen_initialized = bool(self.N.any())
        return self._seen_initialized

    @property
    def dead(self) -> Tensor:
        """Codes used less than the threshold of restarts by the moving averages, bool (K,)."""
        return self.N.lt(self.restart_threshold * self.N.mean())

    def forward(self, z: Tensor) -> Quantized:
        """Quantise; in training also remember what ``update`` needs.

        Args:
            z: Encoder outputs, (B, D, t, h, w).
        """
        with strict_float32(z.device):
            exact = z.float()
            flat = rearrange(exact.detach(), "b d t h w -> (b t h w) d")
            if self.training and not self.initialized:
                self._initialize(flat)
            codes = self._nearest(flat)
            # bincount would hold up a GPU, to learn how many there are.
            counts = exact.new_zeros(self.codes).index_add_(0, codes, exact.new_ones(len(codes)))
            if self.training:
                self._counts += counts
                self._sums.index_add_(0, codes, flat)
                if self.random_restart:
                    self._recent = flat
            codes = codes.view(len(z), *z.shape[2:])
            chosen = self.lookup(codes)
            commitment = F.mse_loss(exact, chosen)
            latents = exact + (chosen - exact).detach()
            usage = counts / counts.sum()
            perplexity = torch.exp(-(usage * torch.log(usage + 1e-10)).sum())
            if self.training and self.each_pass:
                self.update()
        return Quantized(latents.to(z.dtype), codes, commitment, perplexity)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, t, h, w) int64 of (B, D, t, h, w), leaving no trace in training."""
        with strict_float32(z.device):
            codes = self._nearest(rearrange(z.float(), "b d t h w -> (b t h w) d"))
        return codes.view(len(z), *z.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (B, D, t, h, w) float32 of codes (B, t, h, w)."""
        return rearrange(F.embedding(codes, self.embeddings.float()), "b t h w d -> b d t h w")

    @torch.no_grad()
    def update(self) -> None:
        """Move the codes by everything quantised in training since the last update.

        To be called once an optimiser step, in every process, unless the codes move by themselves
        with each pass.
        """
        if _distributed():
            both = torch.cat([self._counts[:, None], self._sums], dim=1)
            dist.all_reduce(both)
            self._counts.copy_(both[:, 0])
            self._sums.copy_(both[:, 1:])
        self.used |= self._counts > 0
        self.N.mul_(self.decay).add_(self._counts, alpha=1 - self.decay)
        self.z_avg.mul_(self.decay).add_(self._sums, alpha=1 - self.decay)
        total = self.N.sum()
        smoothed = (self.N + _EPSILON) / (total + self.codes * _EPSILON) * total
        self.embeddings.copy_(self.z_avg / smoothed[:, None])
        self._counts.zero_()
        self._sums.zero_()
        if self.random_restart and self.restart_statistics:
            self._restart()
        elif self.random_restart:
            self._restart_vectors()

    def _nearest(self, flat: Tensor) -> Tensor:
        """Index of the nearest code for each row of (n, D)."""
        embeddings = self.embeddings.float()
        # |z - e|^2 without |z|^2, which is the same for all codes.
        squares = embeddings.square().sum(dim=1)
        rows = torch.split(flat, max(1, _CHUNK // self.codes))
        return torch.cat(
            [torch.addmm(squares, part, embeddings.t(), alpha=-2).argmin(dim=1) for part in rows]
        )

    def _initialize(self, flat: Tensor) -> None:
        """Take the codes from the first batch, with noise where it has too few positions."""
        self.embeddings.copy_(self._draw(flat, self.codes))
        self.z_avg.copy_(self.embeddings)
        self.N.fill_(1)

    def _restart(self) -> None:
        """Move dead codes, with their statistics: else the next update would undo the move."""
        dead = self.dead.nonzero().squeeze(1)
        if not len(dead):
            return
        mean = self.N.mean()
        candidates = self._draw(self._recent, len(dead))
        self.embeddings[dead] = candidates
        # The mean count gives a moved code time to be found before it counts as dead again.
        self.N[dead] = mean
        self.z_avg[dead] = candidates * mean

    def _restart_vectors(self) -> None:
        """Move the vectors of rare codes alone, as published."""
        rare = self.N < 1
        if bool(rare.any()):
            self.embeddings[rare] = self._draw(self._recent, self.codes)[rare]

    def _draw(self, flat: Tensor, count: int) -> Tensor:
        """Random rows of (n, D), the same in every process; noisy copies where n < count."""
        positions, width = flat.shape
        if positions < count:
            flat = flat.repeat(-(-count // positions), 1)
            flat = flat + torch.randn_like(flat) * (0.01 / width**0.5)
        chosen = flat[torch.randperm(len(flat), device=flat.device)[:count]]
        if _distributed():
            dist.broadcast(chosen, 0)
        return chosen


def _look_again(codebook: Codebook, _incompatible_keys: object) -> None:
    codebook._seen_initialized = False


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
