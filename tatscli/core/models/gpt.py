"""The transformer over condition and video tokens (Ge et al. 2022, section 3.2; minGPT blocks).

The sequence is [condition, video tokens in (t, h, w) order]; in the joint vocabulary the ids of the
condition come first and video codes are offset by their number.

Letters: B clips, c condition tokens, L video tokens, n positions, W width, V joint vocabulary,
h heads, d width of a head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tatscli.config.gpt import ConditionLayout, GPTConfig


class KVCache:
    """Keys and values of the positions read so far, preallocated.

    Attention sees views of the filled part only: on a CPU, attending to all positions behind a
    mask is slower than growing a list.

    Args:
        config: The model's.
        batch: Sequences B.
        device: Where the model is.
        dtype: What the model computes in.
        positions: Room; by default what a window needs.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        positions: int | None = None,
    ) -> None:
        self.length = 0
        self.positions = config.positions if positions is None else positions
        shape = (batch, config.heads, self.positions, config.width // config.heads)
        self._keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    def reset(self) -> None:
        """Forget all positions; the memory stays."""
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, h, n, d) behind the filled part; the filled part with them, (B, h, m, d).

        ``length`` moves only when all layers have written, by the model.
        """
        filled = self.length + keys.shape[2]
        self._keys[layer][:, :, self.length : filled] = keys
        self._values[layer][:, :, self.length : filled] = values
        return self._keys[layer][:, :, :filled], self._values[layer][:, :, :filled]


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """(B, n, W) to the same shape; with a cache, x continues what it holds."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        new, seen = q.shape[2], k.shape[2]
        # is_causal aligns the mask at the top left, right only where nothing was cached before.
        mask = None
        if 1 < new < seen:
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=1 < new == seen,
        )
        out: Tensor = self.drop(self.proj(rearrange(y, "b h n d -> b n (h d)")))
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

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """(B, n, W) to the same shape."""
        x = x + self.attn(self.ln1(x), cache, layer)
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class GPT(nn.Module):
    """Distribution of each video token, given the condition and the tokens before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocabulary, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(_initialize)

    def forward(self, condition: Tensor, tokens: Tensor) -> Tensor:
        """Logits of all video tokens at once, as in training.

        Args:
            condition: (B, c) joint ids, see ``condition_ids``.
            tokens: (B, L) codes in (t, h, w) order, without offset.

        Returns:
            (B, L, V): row i is the distribution of tokens[:, i] given the condition and
            tokens[:, :i].

        Raises:
            ValueError: An id is outside its range, or there are too many or too few positions.
        """
        expected = self.config.condition.tokens
        if condition.shape[1] != expected:
            raise ValueError(f"condition has {condition.shape[1]} tokens, the model {expected}")
        _check_range("condition id", condition, self.config.vocabulary)
        _check_range("video token", tokens, self.config.codes)
        ids = torch.cat([condition, tokens + self.config.condition.ids], dim=1)[:, :-1]
        x = self._hidden(ids, None)
        logits: Tensor = self.head(x[:, expected - 1 :])
        return logits

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Read further positions; logits (B, V) of what comes after the last.

        Args:
            ids: (B, n) joint ids that continue what the cache holds.
            cache: Extended by n positions.

        Raises:
            ValueError: An id is outside the vocabulary, or the positions do not fit.
        """
        _check_range("id", ids, self.config.vocabulary)
        x = self._hidden(ids, cache)
        cache.length += ids.shape[1]
        logits: Tensor = self.head(x[:, -1])
        return logits

    def _hidden(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """Normalised outputs (B, n, W) of the last block."""
        start = cache.length if cache else 0
        stop = start + ids.shape[1]
        room = min(self.config.block_size, cache.positions) if cache else self.config.block_size
        if stop > room:
            raise ValueError(f"{stop} positions, but there is room for {room}")
        x = self.drop(self.tok_emb(ids) + self.pos_emb[:, start:stop])
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        out: Tensor = self.ln_f(x)
        return out


def condition_ids(layout: ConditionLayout, batch: int, labels: Tensor | None) -> Tensor:
    """The condition as joint ids, (B, c) int64, on the device of the labels (else the CPU).

    Args:
        layout: Parts of the condition.
        batch: Clips B.
        labels: (B,) class labels; the null id of the part stands for no class. None where the
            layout has no labels.

    Raises:
        ValueError: Labels are missing, superfluous, of another number or out of range.
    """
    if (labels is not None) != (layout.part("label") is not None):
        raise ValueError("labels must be given exactly where the layout has a label part")
    columns = []
    for part in layout.parts:
        if part.kind == "start":
            device = labels.device if labels is not None else None
            columns.append(torch.zeros(batch, part.tokens, dtype=torch.long, device=device))
        elif labels is not None:
            if labels.shape != (batch,):
                raise ValueError(f"labels have shape {tuple(labels.shape)}, expected ({batch},)")
            _check_range("label", labels, part.ids)
            columns.append(labels.long()[:, None] + part.offset)
    return torch.cat(columns, dim=1)


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


def _check_range(name: str, ids: Tensor, limit: int) -> None:
    """A wrong id on a GPU would end the process without saying which."""
    if not ids.numel():
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} {wrong} is outside 0 to {limit - 1}")
