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
from tatscli.core.data.text import TextTokenizer
from tatscli.core.data.tokens import TokenClip
from tatscli.core.limits import gpt_training_operations
from tatscli.core.models.gpt import GPT, condition_ids, decay_groups, drop_parts
from tatscli.core.models.inference import vqgan_for_inference
from tatscli.core.training.losses import draw_dropped, token_loss
from tatscli.core.training.sharding import DATA_PARALLEL, shard
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
        text: The tokenizer of the captions, where they are a condition; saved as well.
        sound: The VQGAN of the sound, where it is a condition; saved as well.
    """

    def __init__(
        self,
        config: GPTTrainConfig,
        architecture: GPTConfig,
        vqgan: TrainedVQGAN,
        classes: tuple[str, ...],
        learning_rate: float,
        text: TextTokenizer | None = None,
        sound: TrainedVQGAN | None = None,
    ) -> None:
        super().__init__(config.optim, config.train, learning_rate)
        self.config = config
        self.gpt = GPT(architecture)
        self.gpt.recompute = config.compute.recompute
        clips = config.train.batch_size * config.train.accumulate
        self.step_operations = gpt_training_operations(architecture, clips)
        self.classes, self.text = classes, text
        self.trained_vqgan, self.trained_sound = vqgan, sound
        self.vqgan = vqgan.model.requires_grad_(False)
        self.sound = sound.model.requires_grad_(False) if sound else None

    def train(self, mode: bool = True) -> "GPTTraining":
        """Switch the GPT; the VQGANs always stay in eval mode."""
        super().train(mode)
        for frozen in filter(None, (self.vqgan, self.sound)):
            frozen.eval()
        return self

    def on_fit_start(self) -> None:
        """Lay the frozen VQGANs out as they are read fastest."""
        for frozen in filter(None, (self.vqgan, self.sound)):
            vqgan_for_inference(frozen, self.device)

    def configure_model(self) -> None:
        """Leave this process its part of the GPT, where it is shared; the VQGANs are not."""
        if self.device_mesh is None:
            return
        is_bf16 = self.trainer.precision == "bf16-mixed"
        shard(self.gpt, self.device_mesh[DATA_PARALLEL], torch.bfloat16 if is_bf16 else None)

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on the linear layers only."""
        groups = decay_groups(self.gpt, self.config.optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=ADAM_BETAS, fused=True)
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
        fields = (*batch, self._dropped(len(batch[0])))
        parts = list(zip(*(self.parts(cast(Tensor, field)) for field in fields), strict=True))
        losses: list[dict[str, Tensor]] = []
        for i, (*part, dropped) in enumerate(parts):
            some = batch._replace(**dict(zip(batch._fields, part, strict=True)))
            with optimizer.toggle_model(sync_grad=i == len(parts) - 1):
                loss = self._loss(some, dropped)
                self.watch({"loss": loss})
                self.manual_backward(loss / len(parts))
            losses.append({"loss": loss})
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.log_mean(losses)
        self.log("train/learning_rate", schedule.get_last_lr()[0])

    def validation_step(self, batch: Clip | TokenClip, batch_index: int) -> None:
        """Loss on fixed clips."""
        clips = self.counted(len(batch[0]), batch_index)
        self.add_validated({"loss": self._loss(batch)}, clips)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the file is."""
        checkpoint[HEADER] = gpt_header(
            self.gpt.config,
            self.classes,
            self.trained_vqgan,
            self.global_step,
            self.trained_sound,
            self.text,
        )

    def codes(self, batch: Clip | TokenClip) -> Tensor:
        """Codes (B, t, h, w) of a batch, which holds them or the videos."""
        clips = batch[0]
        return self.vqgan.encode(clips) if clips.is_floating_point() else clips.long()

    def condition(self, batch: Clip | TokenClip) -> Tensor:
        """The whole condition (B, c) of a batch, as joint ids; what a clip lacks is null."""
        layout, labels, sound = self.gpt.config.condition, None, None
        if part := layout.part("label"):
            labels = cast(Tensor, batch.label)
            labels = labels.where(labels >= 0, part.null_id)
        if layout.part("sound"):
            sound = batch.sound
            if sound.is_floating_point():
                assert self.trained_sound is not None, "a layout with sound has its VQGAN"
                sound = self.trained_sound.sound_codes(sound)
            sound = sound.flatten(1)
        text = batch.text if layout.part("text") else None
        return condition_ids(layout, len(batch[0]), labels, sound, text).to(self.device)

    def _loss(self, batch: Clip | TokenClip, dropped: Tensor | None = None) -> Tensor:
        config, condition = self.gpt.config, self.condition(batch)
        if dropped is not None:
            condition = drop_parts(config.condition, condition, dropped)
        codes = self.codes(batch)[:, :: config.latent_stride].flatten(1)
        hidden = self.gpt.hidden(condition, codes)
        return token_loss(hidden, self.gpt.head.weight, codes, config, self.config.loss)

    def _dropped(self, clips: int) -> Tensor:
        """Which parts of the condition this step drops, bool (clips, parts)."""
        parts = self.gpt.config.condition.parts
        dropped = draw_dropped(
            self.config.train.seed,
            self.global_step,
            len(parts),
            max(part.dropout for part in parts),
            clips,
            self.global_rank,
            self.trainer.world_size,
        )
        return dropped & torch.tensor([part.dropout > 0 for part in parts])
