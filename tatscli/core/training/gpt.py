"""Training of the GPT on the codes of a frozen VQGAN (Ge et al. 2022, section 3.2).

Letters: B clips, C channels, T frames, H W pixels, t h w latent grid.
"""

from typing import Any, cast

import torch
from torch import Tensor

from tatscli.config.gpt import GPTConfig
from tatscli.config.train import GPTTrainConfig
from tatscli.core.checkpoint import HEADER, TrainedVQGAN, gpt_header
from tatscli.core.data.clips import Clip
from tatscli.core.data.tokens import TokenClip
from tatscli.core.models.gpt import GPT, condition_ids, decay_groups
from tatscli.core.training.losses import token_loss
from tatscli.core.training.stage import Stage

ADAM_BETAS = (0.9, 0.95)
"""As published."""

MONITOR = "val/loss"
FIGURES = {"loss": "train/loss", "val loss": "val/loss"}


class GPTTraining(Stage):
    """The GPT; clips are encoded on the way unless they come as codes.

    Args:
        config: The whole run.
        architecture: Of the GPT.
        vqgan: Whose codes it writes; saved in every checkpoint.
        classes: Names of the classes, in the order of their ids.
        learning_rate: Rate in use, after any published rule.
    """

    def __init__(
        self,
        config: GPTTrainConfig,
        architecture: GPTConfig,
        vqgan: TrainedVQGAN,
        classes: tuple[str, ...],
        learning_rate: float,
    ) -> None:
        super().__init__(config.optim, config.train, learning_rate)
        self.config = config
        self.gpt = GPT(architecture)
        self.classes = classes
        self.trained_vqgan = vqgan
        self.vqgan = vqgan.model.requires_grad_(False)

    def train(self, mode: bool = True) -> "GPTTraining":
        """Switch the GPT; the VQGAN always stays in eval mode."""
        super().train(mode)
        self.vqgan.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on the linear layers only."""
        groups = decay_groups(self.gpt, self.config.optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=ADAM_BETAS)
        return [optimizer], [self.schedule(optimizer)]

    def on_train_start(self) -> None:
        """Let a changed weight decay take effect on a run that goes on, as the learning rate."""
        super().on_train_start()
        [optimizer] = self.optimizer_list()
        decayed, _ = optimizer.param_groups
        decayed["weight_decay"] = self.config.optim.weight_decay

    def training_step(self, batch: Clip | TokenClip, batch_index: int) -> None:
        """One step, over the parts of the batch."""
        [optimizer], [schedule] = self.optimizer_list(), self.scheduler_list()
        clips, labels = cast(tuple[Tensor, Tensor], batch)
        parts = list(zip(self.parts(clips), self.parts(labels), strict=True))
        losses = []
        for i, (some_clips, some_labels) in enumerate(parts):
            with optimizer.toggle_model(sync_grad=i == len(parts) - 1):
                loss = self._loss(some_clips, some_labels)
                self.must_be_finite({"loss": loss})
                self.manual_backward(loss / len(parts))
            losses.append({"loss": loss})
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.log_mean(losses)
        self.log("train/learning_rate", schedule.get_last_lr()[0])

    def validation_step(self, batch: Clip | TokenClip, batch_index: int) -> None:
        """Loss on fixed clips."""
        clips, labels = cast(tuple[Tensor, Tensor], batch)
        self.add_validated({"loss": self._loss(clips, labels)}, len(clips))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the file is."""
        checkpoint[HEADER] = gpt_header(
            self.gpt.config, self.classes, self.trained_vqgan, self.global_step
        )

    def _loss(self, clips: Tensor, labels: Tensor) -> Tensor:
        # Tokens come as integers (B, t, h, w), videos as floats (B, C, T, H, W).
        codes = self.vqgan.encode(clips) if clips.is_floating_point() else clips.long()
        config = self.gpt.config
        codes = codes[:, :: config.latent_stride].flatten(1)
        layout = config.condition
        condition = condition_ids(layout, len(codes), labels if layout.part("label") else None)
        logits = self.gpt(condition.to(codes.device), codes)
        return token_loss(logits, codes, config, self.config.loss)
