"""Training of the VQGAN (Ge et al. 2022, section 3.1).

Letters: B clips, C channels, T frames, H W pixels.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from tatscli.config.train import VQGANTrainConfig
from tatscli.core.checkpoint import HEADER, TrainedVQGAN, vqgan_header
from tatscli.core.data.clips import Clip
from tatscli.core.metrics.reconstruction import psnr
from tatscli.core.models.discriminator import PatchDiscriminator
from tatscli.core.models.perceptual import LPIPS
from tatscli.core.models.vqgan import VQGAN
from tatscli.core.original import JUDGES, part_of
from tatscli.core.training.losses import (
    DISCRIMINATOR_LOSSES,
    draw_frames,
    feature_matching,
    pick_frames,
    ramp,
)
from tatscli.core.training.stage import Stage

ADAM_BETAS = (0.5, 0.9)
"""As published, for generator and discriminators."""

MONITOR = "val/loss"
FIGURES = {"l1": "train/l1", "psnr": "val/psnr", "codes used": "val/codes_used"}


class Seen(NamedTuple):
    """What the discriminators compare: a clip and one frame of each."""

    video: Tensor
    frames: Tensor

    @classmethod
    def of(cls, video: Tensor, shown: Tensor) -> "Seen":
        """Clips (B, C, T, H, W), and of each the frame of a number, (B,)."""
        return cls(video, pick_frames(video, shown))


class VQGANTraining(Stage):
    """Generator and discriminators, one pass of the autoencoder for both.

    Where the codebook moves with each pass, the discriminators have a pass of their own, as
    published: it moves the codebook and the statistics of batch norm a second time, from the first
    step on.

    Args:
        config: The whole run.
        learning_rate: Rate in use, after any published rule.
        rate: Frames per second of the clips, to be recorded.
        perceptual: LPIPS where its weight is not zero. Kept out of the module tree: it is frozen
            and belongs neither into checkpoints nor under distributed wrapping.
    """

    def __init__(
        self,
        config: VQGANTrainConfig,
        learning_rate: float,
        rate: float,
        perceptual: LPIPS | None = None,
    ) -> None:
        super().__init__(config.optim, config.train, learning_rate)
        self.config, self._rate = config, rate
        # The layout that convolutions are fastest in; numbers stay the same.
        self.vqgan = VQGAN(config.model).to(memory_format=torch.channels_last_3d)
        for part in (self.vqgan.encoder, self.vqgan.decoder):
            part.recompute = config.compute.recompute
        model, loss = config.model, config.loss
        shape = (model.image_channels, model.disc_channels, model.disc_layers)
        self.image_discriminator = PatchDiscriminator(2, *shape) if loss.image_gan_weight else None
        self.video_discriminator = PatchDiscriminator(3, *shape) if loss.video_gan_weight else None
        self.has_several_optimizers = loss.has_discriminators
        self._perceptual = (perceptual,)
        self._disc_loss = DISCRIMINATOR_LOSSES[loss.disc_loss]
        self._used_codes = torch.zeros(model.codes, dtype=torch.bool)

    def start_from(self, trained: TrainedVQGAN) -> list[str]:
        """Take over weights, codebook with its statistics, and discriminators where there are any.

        Returns:
            The discriminators of this run that the checkpoint lacks; they start anew.
        """
        self.vqgan.load_state_dict(trained.model.state_dict())
        lacking = []
        for name in JUDGES:
            judge: PatchDiscriminator | None = getattr(self, name)
            state = part_of(trained.judges, f"{name}.")
            if judge is not None and state:
                judge.load_state_dict(state)
            elif judge is not None:
                lacking.append(name.replace("_", " "))
        return lacking

    def configure_optimizers(self) -> Any:
        """Adam for the generator and, where one has weight, for the discriminators."""
        rate = self.learning_rate
        adam = partial(torch.optim.Adam, lr=rate, betas=ADAM_BETAS, fused=True)
        optimizers = [adam(self.vqgan.parameters())]
        schedules = [self.schedule(optimizers[0])]
        judges = [p for d in self._discriminators() for p in d.parameters()]
        if judges:
            optimizers.append(adam(judges))
            schedules.append(self.schedule(optimizers[1], offset=self._disc_learns_from))
        return optimizers, schedules

    def held(self) -> Iterator[Tensor]:
        """See ``Stage``; the perceptual network, which is no part of the module tree, too."""
        yield from super().held()
        if self._perceptual[0] is not None:
            yield from self._perceptual[0].parameters()
            yield from self._perceptual[0].buffers()

    def on_fit_start(self) -> None:
        """Bring the perceptual network to the device."""
        if self._perceptual[0] is not None:
            self._perceptual[0].to(self.device)

    def training_step(self, batch: Clip, batch_index: int) -> None:
        """One step of the generator and, from its start on, one of the discriminators."""
        step, loss, is_logged = self.global_step, self.config.loss, self.is_logged
        optimizers, schedules = self.optimizer_list(), self.scheduler_list()
        self._count_only(optimizers)
        gan_weight = ramp(step, loss.disc_start, loss.disc_ramp) if loss.has_discriminators else 0.0
        parts = self.parts(batch.video.contiguous(memory_format=torch.channels_last_3d))
        numbers = self.parts(self._frame_numbers(batch.video))
        two_passes = loss.has_discriminators and self.vqgan.codebook.each_pass
        made: list[tuple[Seen, Seen]] = []
        figures, pulls = [], []
        for i, (video, shown) in enumerate(zip(parts, numbers, strict=True)):
            is_last = i == len(parts) - 1
            with optimizers[0].toggle_model(sync_grad=is_last):
                real, fake, losses, perplexity = self._generator_losses(video, shown, gan_weight)
                self.watch(losses)
                weighted = self._weighted(losses, gan_weight)
                if is_logged and gan_weight:
                    pulls.append(_pulls(weighted, fake.video))
                total = torch.stack(list(weighted.values())).sum()
                self.manual_backward(total / len(parts))
            if is_last:
                optimizers[0].step()
                optimizers[0].zero_grad()
                schedules[0].step()
            if two_passes:
                with torch.no_grad():
                    fake = Seen.of(self.vqgan(video).video, shown)
            made.append((real, Seen(fake.video.detach(), fake.frames.detach())))
            figures.append(losses | {"perplexity": perplexity})
        if not self.vqgan.codebook.each_pass:
            self.vqgan.codebook.update()
        self.log_mean(figures)
        self.log("train/learning_rate", schedules[0].get_last_lr()[0])
        if loss.has_discriminators:
            self.log("train/gan_weight", gan_weight)
        if is_logged:
            self._log_usage()
        if pulls:
            error, gan = torch.stack(pulls).sum(0).sqrt()
            self.log("train/gan_share", gan / (error + gan))
        if loss.has_discriminators and step >= self._disc_learns_from:
            self._train_discriminators(optimizers[1], made, is_logged)
            schedules[1].step()

    def validation_step(self, batch: Clip, batch_index: int) -> None:
        """Errors on fixed clips, and how much of the codebook they use."""
        video, loss = batch.video, self.config.loss
        found = self.vqgan(video)
        l1 = F.l1_loss(found.video, video)
        figures = {"l1": l1, "psnr": psnr(video, found.video).mean()}
        total = loss.l1_weight * l1
        if loss.perceptual_weight:
            middle = torch.full((len(video),), video.shape[2] // 2, device=video.device)
            distance = self._perceived(pick_frames(video, middle), pick_frames(found.video, middle))
            total = total + loss.perceptual_weight * distance
            figures["perceptual"] = distance
        self._used_codes[found.codes.flatten().cpu()] = True
        self.add_validated(figures | {"loss": total}, self.counted(len(video), batch_index))

    def on_validation_epoch_end(self) -> None:
        """Log the figures, and how many codes the validation clips used in all processes."""
        super().on_validation_epoch_end()
        used = self.trainer.strategy.reduce(
            self._used_codes.float().to(self.device), reduce_op="sum"
        )
        self.log("val/codes_used", used.count_nonzero().float(), sync_dist=True)
        self._used_codes.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the file is, and which codes were used since that was last logged."""
        checkpoint[HEADER] = vqgan_header(
            self.config.model, self.config.data, self._rate, self.global_step
        )
        checkpoint["used_codes"] = self.vqgan.codebook.used

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the codes that are used; older runs did not."""
        if "used_codes" in checkpoint:
            self.vqgan.codebook.used.copy_(checkpoint["used_codes"])

    @property
    def _disc_learns_from(self) -> int:
        return max(0, self.config.loss.disc_start - self.config.loss.disc_warmup)

    def _discriminators(self) -> list[PatchDiscriminator]:
        both = (self.image_discriminator, self.video_discriminator)
        return [judge for judge in both if judge is not None]

    def _frame_numbers(self, video: Tensor) -> Tensor:
        """Which frame is shown of each clip of this process's batch, (B,)."""
        config, trainer = self.config.train, self.trainer
        clips, frames = len(video), video.shape[2]
        drawn = draw_frames(
            config.seed, self.global_step, frames, clips, trainer.global_rank, trainer.world_size
        )
        return drawn.to(video.device)

    def _generator_losses(
        self, video: Tensor, shown: Tensor, gan_weight: float
    ) -> tuple[Seen, Seen, dict[str, Tensor], Tensor]:
        """What the discriminators will be shown, losses before weights, perplexity of the codes."""
        loss = self.config.loss
        found = self.vqgan(video)
        real, fake = Seen.of(video, shown), Seen.of(found.video, shown)
        losses = {
            "l1": F.l1_loss(fake.video, real.video),
            "commitment": found.commitment,
        }
        if loss.perceptual_weight:
            losses["perceptual"] = self._perceived(real.frames, fake.frames)
        if gan_weight:
            for name, judge, seen_real, seen_fake in self._judged(real, fake):
                judged = judge(seen_fake)
                losses[f"gan_{name}"] = -judged.logits.mean()
                if loss.gan_feat_weight:
                    with torch.no_grad():
                        target = judge(seen_real).features
                    losses[f"features_{name}"] = feature_matching(target, judged.features)
        return real, fake, losses, found.perplexity

    def _weighted(self, losses: Mapping[str, Tensor], gan_weight: float) -> dict[str, Tensor]:
        """The losses of the generator as they add up."""
        loss = self.config.loss
        weights = {
            "l1": loss.l1_weight,
            "commitment": loss.commitment_weight,
            "perceptual": loss.perceptual_weight,
            "gan_image": gan_weight * loss.image_gan_weight,
            "gan_video": gan_weight * loss.video_gan_weight,
            "features_image": gan_weight * loss.gan_feat_weight,
            "features_video": gan_weight * loss.gan_feat_weight,
        }
        return {name: weights[name] * value for name, value in losses.items()}

    def _log_usage(self) -> None:
        """Log how many codes were used since the last time, and what part hardly is of late."""
        codebook = self.vqgan.codebook
        self.log("train/codes_used", codebook.used.sum().float())
        self.log("train/codes_dead", codebook.dead.float().mean())
        codebook.used.zero_()

    def _train_discriminators(
        self, optimizer: LightningOptimizer, made: list[tuple[Seen, Seen]], is_logged: bool
    ) -> None:
        figures = []
        for i, (real, fake) in enumerate(made):
            with optimizer.toggle_model(sync_grad=i == len(made) - 1):
                losses, rights = {}, {}
                weights = {
                    "disc_image": self.config.loss.image_gan_weight,
                    "disc_video": self.config.loss.video_gan_weight,
                }
                for name, judge, seen_real, seen_fake in self._judged(real, fake):
                    logits_real, logits_fake = judge(seen_real).logits, judge(seen_fake).logits
                    losses[f"disc_{name}"] = self._disc_loss(logits_real, logits_fake)
                    on_real = (logits_real > 0).float().mean()
                    on_fake = (logits_fake < 0).float().mean()
                    rights[f"disc_{name}_right"] = 0.5 * (on_real + on_fake)
                    if is_logged:
                        rights[f"disc_{name}_right_real"] = on_real
                        rights[f"disc_{name}_right_fake"] = on_fake
                self.watch(losses)
                weighted = [weights[name] * value for name, value in losses.items()]
                self.manual_backward(torch.stack(weighted).sum() / len(made))
            figures.append(losses | rights)
        optimizer.step()
        optimizer.zero_grad()
        self.log_mean(figures)

    def _judged(
        self, real: Seen, fake: Seen
    ) -> Iterator[tuple[str, PatchDiscriminator, Tensor, Tensor]]:
        """Each discriminator with its name and what it sees."""
        if self.image_discriminator is not None:
            yield "image", self.image_discriminator, real.frames, fake.frames
        if self.video_discriminator is not None:
            yield "video", self.video_discriminator, real.video, fake.video

    def _perceived(self, real: Tensor, fake: Tensor) -> Tensor:
        [network] = self._perceptual
        assert network is not None, "a perceptual weight needs the perceptual network"
        scale = self.config.loss.perceptual_range
        distance: Tensor = network(scale * fake, scale * real)
        return distance.mean()

    def _count_only(self, optimizers: list[LightningOptimizer]) -> None:
        """Let ``global_step`` count the generator alone.

        Lightning adds up the steps of all optimisers, and sets these hooks anew for every batch.
        """
        for optimizer in optimizers[1:]:
            optimizer._on_before_step = optimizer._on_after_step = lambda: None


def _pulls(losses: Mapping[str, Tensor], video: Tensor) -> Tensor:
    """Squared norms of the gradient of a reconstruction: by its own error, and by the GAN, (2,).

    At the frames themselves, where both meet: this takes no pass through the autoencoder, and does
    not touch the gradients of the step.

    Args:
        losses: Weighted.
        video: The reconstruction, (B, C, T, H, W).
    """
    of_error = [loss for name, loss in losses.items() if name in ("l1", "perceptual")]
    of_gan = [loss for name, loss in losses.items() if name.startswith(("gan_", "features_"))]
    totals = [torch.stack(terms).sum() for terms in (of_error, of_gan)]
    gradients = [torch.autograd.grad(total, video, retain_graph=True)[0] for total in totals]
    return torch.stack([gradient.float().square().sum() for gradient in gradients])
