"""The GPT: what a user sets, and the architecture that a checkpoint stores."""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tatscli.config.base import FILE_ONLY, Config, Obsolete, Published


class ConditionPart(Config):
    """One part of the condition that stands before the video tokens."""

    kind: Literal["start", "label", "text", "sound"]
    """What the tokens of this part mean."""
    tokens: int = Field(ge=1)
    """Positions the part takes in the sequence."""
    ids: int = Field(ge=0)
    """Ids of its own in the joint vocabulary; the start token borrows id 0 and has none."""
    offset: int = Field(ge=0)
    """First of its ids in the joint vocabulary."""
    null_id: int = -1
    """Id, counted from the offset, that fills the part where nothing is asked; -1 for none."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of training clips for which the null id stood here; at 0 it was never learnt."""

    @classmethod
    def label(cls, classes: int) -> "ConditionPart":
        """One class label, with a null id after the classes."""
        return cls(kind="label", tokens=1, ids=classes + 1, offset=0, null_id=classes)

    @classmethod
    def text(cls, tokens: int, vocabulary: int, pad_id: int) -> "ConditionPart":
        """So many text tokens; no text is nothing but padding."""
        return cls(kind="text", tokens=tokens, ids=vocabulary, offset=0, null_id=pad_id)

    @classmethod
    def sound(cls, tokens: int, codes: int) -> "ConditionPart":
        """The codes of a clip's sound, with a null id after them."""
        return cls(kind="sound", tokens=tokens, ids=codes + 1, offset=0, null_id=codes)


class ConditionLayout(Config):
    """The condition: parts in the order of the sequence; its ids come before the video's."""

    parts: tuple[ConditionPart, ...] = Field(min_length=1)
    """The parts, in the order of the sequence."""

    @property
    def tokens(self) -> int:
        """Positions of the whole condition."""
        return sum(part.tokens for part in self.parts)

    @property
    def ids(self) -> int:
        """Ids of the whole condition; video ids are offset by it."""
        return sum(part.ids for part in self.parts)

    @property
    def name(self) -> str:
        """What a training is asked for to have these parts: label+text, or none."""
        return "+".join(part.kind for part in self.parts if part.kind != "start") or "none"

    def part(self, kind: str) -> ConditionPart | None:
        """The part of a kind, if the layout has one."""
        return next((part for part in self.parts if part.kind == kind), None)

    @classmethod
    def unconditional(cls) -> "ConditionLayout":
        """One start token, id 0, which is also the first video id, as published."""
        return cls(parts=(ConditionPart(kind="start", tokens=1, ids=0, offset=0),))

    @classmethod
    def in_order(cls, parts: Iterable[ConditionPart], dropout: float = 0.0) -> "ConditionLayout":
        """Parts one after the other, their ids too; the start token where there are none.

        Args:
            parts: Their offsets are set here.
            dropout: Share of training clips for which parts that have a null id are dropped.
        """
        placed: list[ConditionPart] = []
        for part in parts:
            own = {"offset": sum(before.ids for before in placed)}
            share = {"dropout": dropout if part.null_id >= 0 else 0.0}
            placed.append(part.model_copy(update=own | share))
        return cls(parts=tuple(placed)) if placed else cls.unconditional()

    @classmethod
    def labels(cls, classes: int) -> "ConditionLayout":
        """One class label, with a null id after the classes."""
        return cls.in_order([ConditionPart.label(classes)])


class GPTConfig(Config):
    """GPT architecture, complete: what a checkpoint stores and a model is built from."""

    layers: int = Field(ge=1)
    """Transformer blocks."""
    heads: int = Field(ge=1)
    """Attention heads."""
    width: int = Field(ge=1)
    """Width of the residual stream."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in embeddings, attention and blocks."""
    codes: int = Field(ge=2)
    """Codes of the VQGAN, which are the video ids."""
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of one window."""
    condition: ConditionLayout
    """Layout of the condition."""
    block_size: int = Field(ge=1)
    """Positions the model has embeddings for."""
    latent_stride: int = Field(1, ge=1)
    """Latent frames from one of the window to the next in the video; above 1, key frames."""
    infill: bool = False
    """Whether the first and the last latent frame are given, and those between are written."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[1] * self.grid[2]

    @property
    def video_tokens(self) -> int:
        """Tokens of one window."""
        return prod(self.grid)

    @property
    def vocabulary(self) -> int:
        """Joint vocabulary: condition ids, then video ids."""
        return self.condition.ids + self.codes

    @property
    def positions(self) -> int:
        """Positions a whole window needs: the last token is never an input."""
        return self.condition.tokens + self.video_tokens - 1

    @model_validator(mode="after")
    def _fits(self) -> "GPTConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.block_size < self.positions:
            raise ValueError(
                f"block size {self.block_size} is too small: {self.condition.tokens} condition "
                f"tokens + {self.video_tokens} video tokens "
                f"({' x '.join(map(str, self.grid))}) - 1 = {self.positions}"
            )
        if self.infill and self.latent_stride > 1:
            raise ValueError("a model writes key frames or fills in between them, not both")
        if self.latent_stride > 1 and self.grid[0] < 2:
            raise ValueError(
                f"key frames {self.latent_stride} latent frames apart need clips of at least "
                f"{self.latent_stride + 1} latent frames, so that one can follow another"
            )
        if self.infill and self.frame_tokens == 1:
            raise ValueError(
                "infilling needs latent frames of 2 tokens or more: the last token of a window is "
                "never seen"
            )
        if self.infill and self.grid[0] < 3:
            raise ValueError(
                f"infilling needs clips of at least 3 latent frames, got {self.grid[0]}: the "
                "first and the last are given"
            )
        return self


class GPTOptions(Config):
    """GPT architecture."""

    OBSOLETE: ClassVar[dict[str, Obsolete]] = {
        "spatial_length": Obsolete("the latent side follows from the resolution", is_flag=False),
        "text_cond": Obsolete("captions always become BPE tokens; --condition text asks for them"),
        "stft_data": Obsolete("videos bring their sound along; --condition sound asks for it"),
        "vtokens": Obsolete("datasets of tokens are recognised by themselves"),
        "first_stage_key": Obsolete("video was its only value", is_flag=False),
        "first_stage_vocab_size": Obsolete("it follows from the VQGAN", is_flag=False),
        "image_channels": Obsolete("they follow from the VQGAN", is_flag=False),
    }

    layers: Annotated[int, Published("n_layer")] = Field(24, ge=1)
    """Transformer blocks."""
    heads: Annotated[int, Published("n_head")] = Field(16, ge=1)
    """Attention heads."""
    width: Annotated[int, Published("n_embd")] = Field(1024, ge=1)
    """Width of the residual stream."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in embeddings, attention and blocks."""
    vocab_size: int = Field(0, ge=0)
    """Codes of the VQGAN, as a check; 0 takes what the VQGAN has."""
    block_size: int = Field(0, ge=0)
    """Positions of the model; 0 takes what condition and latent grid need."""
    condition: Annotated[
        Literal[
            "none",
            "label",
            "text",
            "sound",
            "label+text",
            "label+sound",
            "text+sound",
            "label+text+sound",
        ],
        Published("cond_stage_key", choices={"label": "label", "text": "text", "stft": "sound"}),
        Published("unconditional", value="none"),
    ] = "none"
    """What generation is conditioned on: class (folder of a video), caption, sound, or several."""
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of clips for which each condition is dropped in training, which guidance needs."""
    tokenizer: Path | None = None
    """Tokenizer of the captions: a tokenizers JSON file or CLIP's list of merges."""
    text_vocabulary: int = Field(4096, ge=300)
    """Largest vocabulary that is learnt from the captions where no tokenizer is given."""
    text_tokens: int = Field(0, ge=0)
    """Tokens of a text; longer ones are cut, and 0 takes the longest caption, up to 128."""
    latent_stride: Annotated[int, Published("sample_every_n_latent_frames")] = Field(1, ge=0)
    """Keep every n-th latent frame, key frames, between which an infilling GPT writes; 1 = all."""
    infill: bool = False
    """Learn to fill in between the first and the last latent frame of a clip."""
    n_unmasked: int = Field(0, ge=0)
    """Published form of infill: tokens of one latent frame, as a check; 0 = not used."""

    @field_validator("latent_stride")
    @classmethod
    def _published_off(cls, stride: int) -> int:
        return max(1, stride)

    @property
    def conditions(self) -> frozenset[str]:
        """Kinds of the parts that the condition has."""
        return frozenset(self.condition.split("+")) - {"none"}

    @property
    def infills(self) -> bool:
        """Whether the model fills in, by either option."""
        return self.infill or self.n_unmasked > 0

    @model_validator(mode="after")
    def _heads_divide(self) -> "GPTOptions":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        return self

    @model_validator(mode="after")
    def _one_purpose(self) -> "GPTOptions":
        if self.infills and self.latent_stride > 1:
            raise ValueError(
                "a GPT writes key frames (latent stride) or fills in between them "
                "(infill), not both; train one of each"
            )
        return self


class GPTLossConfig(Config):
    """Losses."""

    condition_ids: Annotated[bool, FILE_ONLY] = False
    """Whether ids of the condition take part in the softmax of the loss, as published."""
    given_frames: Annotated[bool, FILE_ONLY] = False
    """Whether infilling also learns the frames it is given, which see themselves, as published."""
