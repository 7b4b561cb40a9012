"""The transformer over condition and video tokens (Ge et al. 2022, section 3.2; minGPT blocks).

The sequence is [condition, video tokens in (t, h, w) order]; in the joint vocabulary the ids of the
condition come first and video codes are offset by their number. Attention is causal; a model that
infills also shows the first and the last latent frame to every position (section 3.3).

Letters: B clips, c condition tokens, L video tokens, n positions, f tokens of a latent frame,
W width, V joint vocabulary, h heads, d width of a head.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tatscli.config.gpt import ConditionLayout, GPTConfig
from tatscli.core.models.recompute import recomputed
from tatscli.core.models.shapes import as_ids, check_range

SEGMENT = 64
"""Positions of a segment of the cache on a CPU."""


class KVCache:
    """Keys and values of the positions read so far, preallocated.

    On a CPU they lie in segments, each a matrix without gaps for every sequence and head: those of
    bf16 that are views into a longer one would be copied before each product. What is behind the
    last position counts for nothing, but is read, so that it must be finite. Elsewhere there is one
    segment.

    Attributes:
        length: Positions held.
        position: Position in the sequence of what is read next. It is the length, unless positions
            further on were read before.
        attends: Whether one position is to be read by ``attend``, instead of by torch's attention.

    Args:
        model: Whose keys and values they are.
        batch: Sequences B.
        positions: Room; by default what a window needs.
        segment: Positions of a segment; by default chosen for the device.
    """

    def __init__(
        self,
        model: "GPT",
        batch: int,
        positions: int | None = None,
        segment: int | None = None,
    ) -> None:
        config, like = model.config, model.pos_emb
        self.length = self.position = 0
        self.positions = config.positions if positions is None else positions
        self.attends = like.device.type == "cpu"
        self._segment = segment or (SEGMENT if self.attends else self.positions)
        shape = (
            -(-self.positions // self._segment),
            batch,
            config.heads,
            self._segment,
            config.width // config.heads,
        )
        empty = partial(torch.zeros, shape, device=like.device, dtype=like.dtype)
        self._keys = [empty() for _ in range(config.layers)]
        self._values = [empty() for _ in range(config.layers)]

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values."""
        return self._keys[0].dtype

    def reset(self) -> None:
        """Forget all positions; the memory stays."""
        self.length = self.position = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put (B, h, n, d) behind the filled part.

        ``length`` moves only when all layers have written, by the model.
        """
        first, size = self.length, self._segment
        filled = first + keys.shape[2]
        for segment in range(first // size, -(-filled // size)):
            start, stop = max(first, segment * size), min(filled, (segment + 1) * size)
            place = slice(start - segment * size, stop - segment * size)
            new = slice(start - first, stop - first)
            self._keys[layer][segment, :, :, place] = keys[:, :, new]
            self._values[layer][segment, :, :, place] = values[:, :, new]

    def read(self, layer: int, filled: int) -> tuple[Tensor, Tensor]:
        """The first so many keys and values, (B, h, filled, d) each."""
        keys, values = (
            held[layer][0]
            if len(held[layer]) == 1
            else rearrange(held[layer], "s b h n d -> b h (s n) d")
            for held in (self._keys, self._values)
        )
        return keys[:, :, :filled], values[:, :, :filled]

    def attend(self, layer: int, q: Tensor, filled: int) -> Tensor:
        """Attention of one position, (B, h, 1, d), to so many on a CPU, where torch's is slower."""
        # Views rather than einops: of the glue between products, here for each token and layer.
        segments, (batch, heads, _, width) = -(-filled // self._segment), q.shape
        rows, size = batch * heads, self._segment
        keys, values = (
            held[layer][:segments].view(segments * rows, size, width)
            for held in (self._keys, self._values)
        )
        asked = (q * width**-0.5).view(rows, 1, width).expand(segments, rows, 1, width)
        scores = torch.bmm(asked.reshape(segments * rows, 1, width), keys.transpose(1, 2))
        scores = scores.view(segments, rows, size).transpose(0, 1).reshape(rows, segments * size)
        scores[:, filled:] = -torch.inf
        weights = scores.softmax(-1).view(rows, segments, size).transpose(0, 1)
        out = torch.bmm(weights.reshape(segments * rows, 1, size), values)
        return out.view(segments, batch, heads, 1, width).sum(0)


def sequence_bytes(model: "GPT") -> int:
    """Memory that a model takes for each sequence it writes, at most: cache and activations."""
    config = model.config
    room = -(-config.positions // SEGMENT) * SEGMENT
    cached = 2 * config.layers * room * config.width
    # A block holds its input, the normalised one, and two of four times the width; the logits
    # are sorted with their ids.
    read = 10 * config.positions * config.width + 8 * config.vocabulary
    return 4 * (cached + read)


class Attention(nn.Module):
    """Self-attention, causal unless told what each position sees."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cache: KVCache | None, layer: int, visible: Tensor | None
    ) -> Tensor:
        """(B, n, W) to the same shape; with a cache, x continues what it holds.

        Args:
            x: Inputs.
            cache: Positions read before, all of which x sees.
            layer: Number of the block.
            visible: (n, n) bool, which positions of x each of them sees; causal without.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        new = seen = q.shape[2]
        if cache is not None:
            cache.write(layer, k, v)
            seen += cache.length
        mask = visible
        # is_causal aligns the mask at the top left, right only where nothing was cached before.
        if mask is None and 1 < new < seen:
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
        if cache is not None and cache.attends and new == 1:
            y = cache.attend(layer, q.to(cache.dtype), seen)
        else:
            if cache is not None and new < seen:
                k, v = cache.read(layer, seen)
            y = F.scaled_dot_product_attention(
                q.to(k.dtype),
                k,
                v,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=mask is None and 1 < new == seen,
            )
        if cache is not None:
            y = y.to(x.dtype)
        out: Tensor = self.drop(self.proj(y.transpose(1, 2).flatten(2)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.attn = Attention(config)
        self.ln2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, cache: KVCache | None, layer: int, visible: Tensor | None
    ) -> Tensor:
        """(B, n, W) to the same shape; see ``Attention``."""
        x = x + self.attn(self.ln1(x), cache, layer, visible)
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class GPT(nn.Module):
    """Distribution of each video token, given the condition and the tokens before it.

    A model that infills is also given all but the last token of the last latent frame, and the
    first latent frame with it; only its tokens between the two are to be learnt and drawn.

    Attributes:
        recompute: Whether training keeps no activations inside of its blocks, see ``recomputed``.
        replays: Whether sampling replays single steps as CUDA graphs, see ``RecordedSteps``.
    """

    visible: Tensor | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = self.replays = False
        self.tok_emb = nn.Embedding(config.vocabulary, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        mask = infill_mask(config) if config.infill else None
        self.register_buffer("visible", mask, persistent=False)
        self.apply(_initialize)

    def forward(self, condition: Tensor, tokens: Tensor) -> Tensor:
        """Logits of all video tokens at once.

        Args:
            condition: (B, c) joint ids, see ``condition_ids``.
            tokens: (B, L) codes in (t, h, w) order, without offset.

        Returns:
            (B, L, V): row i is the distribution of tokens[:, i] given the condition,
            tokens[:, :i] and, where the model infills, what it is given; the rows of the latent
            frames that are given have then seen their own token.

        Raises:
            ValueError: See ``hidden``.
        """
        logits: Tensor = self.head(self.hidden(condition, tokens))
        return logits

    def hidden(self, condition: Tensor, tokens: Tensor) -> Tensor:
        """What the last layer turns into the logits of ``forward``, (B, L, W).

        Args:
            condition: (B, c) joint ids.
            tokens: (B, L) codes.

        Raises:
            ValueError: An id is outside its range, or a shape is another; the message has both.
        """
        config = self.config
        before = config.condition.tokens
        condition = as_ids("condition", condition, "B", before)
        room = config.block_size - before + 1  # the last token is never an input
        fits = self.visible is None and tokens.ndim == 2 and tokens.shape[1] <= room
        tokens = as_ids("tokens", tokens, len(condition), "L" if fits else config.video_tokens)
        check_range("condition id", condition, config.vocabulary)
        check_range("video token", tokens, config.codes)
        ids = torch.cat([condition, tokens + config.condition.ids], dim=1)[:, :-1]
        x = self.read(ids, self.pos_emb[:, : ids.shape[1]], None, self.visible)
        return x[:, before - 1 :]

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Read further positions; logits (B, V) of what comes after the last.

        The ids are not checked: on a GPU that would hold up each token.

        Args:
            ids: (B, n) joint ids that continue what the cache holds.
            cache: Extended by n positions.

        Raises:
            ValueError: The positions do not fit.
        """
        start, stop = cache.position, cache.position + ids.shape[1]
        self.check_room(cache, ids.shape[1])
        x = self.read(ids, self.pos_emb[:, start:stop], cache)
        cache.length += ids.shape[1]
        cache.position = stop
        logits: Tensor = self.head(x[:, -1])
        return logits

    def check_room(self, cache: KVCache, count: int) -> None:
        """So many further positions must fit.

        Raises:
            ValueError: They do not.
        """
        positions = cache.position + count
        if positions > (room := min(self.config.block_size, cache.positions)):
            raise ValueError(f"{positions} positions, but there is room for {room}")

    def step_ends(self, condition: Tensor, first: Tensor, last: Tensor, cache: KVCache) -> Tensor:
        """Read what infilling is given; logits (B, V) of the first token between.

        Positions and visibility are those of the training forward. The last token of the last
        latent frame is never an input there, and so not here.

        Args:
            condition: (B, c) joint ids.
            first: (B, f) codes of the first latent frame.
            last: (B, f) codes of the last latent frame.
            cache: Empty; ``step`` continues it between the two.

        Raises:
            ValueError: The model does not infill.
        """
        if self.visible is None:
            raise ValueError("this model does not infill")
        offset = self.config.condition.ids
        ids = torch.cat([condition, first + offset, last[:, :-1] + offset], dim=1)
        check_range("id", ids, self.config.vocabulary)
        before = condition.shape[1] + first.shape[1]
        after = self.config.positions - last.shape[1] + 1
        places = torch.arange(self.config.positions, device=ids.device)
        places = torch.cat([places[:before], places[after:]])
        x = self.read(ids, self.pos_emb[:, places], cache, self.visible[places][:, places])
        cache.length = ids.shape[1]
        cache.position = before
        logits: Tensor = self.head(x[:, before - 1])
        return logits

    def read(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: KVCache | None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Normalised outputs (B, n, W) of the last block.

        Args:
            ids: (B, n) joint ids.
            positions: (1, n, W) embeddings of their positions.
            cache: Written to behind its length, which is the caller's to move.
            visible: See ``Attention``.
        """
        x = self.drop(self.tok_emb(ids) + positions)
        for layer, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = recomputed(block, x, cache, layer, visible)
            else:
                x = block(x, cache, layer, visible)
        out: Tensor = self.ln_f(x)
        return out


def infill_mask(config: GPTConfig) -> Tensor:
    """Which position (row) sees which (column) in a model that infills, (n, n) bool.

    All see the condition, the first latent frame and the last one but for its last token, which
    is never an input; between them attention is causal, and the last frame does not look there.
    """
    positions, frame = config.positions, config.frame_tokens
    first, last = config.condition.tokens + frame, positions - (frame - 1)
    visible = torch.ones(positions, positions, dtype=torch.bool).tril()
    visible[:, :first] = True
    visible[:, last:] = True
    visible[last:, first:last] = False
    return visible


def condition_ids(
    layout: ConditionLayout,
    batch: int,
    labels: Tensor | None = None,
    sound: Tensor | None = None,
    text: Tensor | None = None,
) -> Tensor:
    """The condition as joint ids, (B, c) int64, on the device of what is given (else the CPU).

    Each part is given exactly where the layout has it; its null id stands for nothing asked.

    Args:
        layout: Parts of the condition.
        batch: Clips B.
        labels: (B,) class labels.
        sound: (B, tokens of the part) codes of the sound's VQGAN.
        text: (B, tokens of the part) ids of the tokenizer.

    Raises:
        ValueError: A part is missing, superfluous, of another shape or out of range.
    """
    given = {"label": labels, "sound": sound, "text": text}
    for kind, ids in given.items():
        if (ids is not None) != (layout.part(kind) is not None):
            state = "missing" if ids is None else "given"
            raise ValueError(f"{kind} ids are {state}, and the condition is {layout.name}")
    device = next((ids.device for ids in given.values() if ids is not None), None)
    placed = []
    for part in layout.parts:
        ids = given.get(part.kind)
        if ids is None:  # the start token
            ids = torch.zeros(batch, part.tokens, dtype=torch.long, device=device)
        else:
            shape = (batch,) if part.kind == "label" else (batch, part.tokens)
            ids = as_ids(f"{part.kind} ids", ids, *shape).view(batch, part.tokens)
            check_range(part.kind, ids, part.ids)
        placed.append(ids + part.offset)
    return torch.cat(placed, dim=1)


def drop_parts(layout: ConditionLayout, condition: Tensor, dropped: Tensor) -> Tensor:
    """The condition with some parts replaced by their null ids.

    Args:
        layout: Parts of the condition.
        condition: (B, c) joint ids.
        dropped: (B, parts) bool, which to replace; the start token stays what it is.

    Raises:
        ValueError: A part that is dropped has no null id.
    """
    columns = torch.split(condition, [part.tokens for part in layout.parts], dim=1)
    kept = []
    for part, ids, gone in zip(layout.parts, columns, dropped.T.to(condition.device), strict=True):
        if part.kind != "start" and part.null_id < 0 and bool(gone.any()):
            raise ValueError(f"the {part.kind} has no null id that could stand in its place")
        null = part.offset + max(0, part.null_id)
        kept.append(ids.masked_fill(gone[:, None], null))
    return torch.cat(kept, dim=1)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups for AdamW: weights of linear layers decay, nothing else does."""
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _initialize(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
