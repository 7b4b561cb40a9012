"""Single steps of a GPT, recorded once and replayed as CUDA graphs.

Where a step is small, a GPU waits for the launches of its kernels, some 14 a layer. A CUDA graph
launches all of them at once, but repeats what was recorded: the same memory and the same sizes. So
the place of the position that is read is a number on the device, and attention covers a span of the
cache whose places behind that are masked; each of a few spans has a recording of its own.

Letters: B sequences, h heads, d width of a head, V joint vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.core.models.gpt import GPT, KVCache
from tatscli.errors import DeviceError

Recording = tuple[Callable[[], None], Tensor]
"""What replays some work, and where its result is then."""

Record = Callable[[Callable[[], Tensor]], Recording]
"""What records work whose inputs stay in place."""

FIRST_SPAN = 256
"""Positions of the first span; each further one has twice as many."""


class PlacedCache(KVCache):
    """A key/value cache to which one position is written at a place that the device knows.

    What is read at once with others goes behind the length, as always.

    Attributes:
        place: (1,) int64, where one position is written.
    """

    def __init__(self, model: GPT, batch: int) -> None:
        super().__init__(model, batch, segment=model.config.positions)
        self.attends = True
        self.place = torch.zeros(1, dtype=torch.long, device=model.pos_emb.device)
        self._bias = model.pos_emb.new_zeros(0)

    def cover(self, span: int) -> None:
        """Let the attention of one position reach over so many places, up to its own."""
        places = torch.arange(span, device=self.place.device)
        hidden = torch.zeros(span, dtype=self.dtype, device=self.place.device)
        self._bias = hidden.masked_fill(places > self.place, -torch.inf)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put (B, h, n, d) behind the filled part, or where n = 1 at the place."""
        if keys.shape[2] > 1:
            super().write(layer, keys, values)
            return
        for held, new in ((self._keys, keys), (self._values, values)):
            held[layer][0].index_copy_(2, self.place, new.to(self.dtype))

    def attend(self, layer: int, q: Tensor, filled: int) -> Tensor:
        """Attention of one position, (B, h, 1, d), over what was covered; ``filled`` is not it."""
        keys, values = self.read(layer, len(self._bias))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._bias[None])


class RecordedSteps:
    """``GPT.step`` on a cache of its own, single positions being replayed.

    Attributes:
        cache: What has been read.

    Args:
        gpt: The model, in eval mode; its weights stay where they are.
        batch: Sequences B.
        record: By default what records CUDA graphs.
    """

    def __init__(
        self,
        gpt: GPT,
        batch: int,
        record: Record | None = None,
    ) -> None:
        self.cache = PlacedCache(gpt, batch)
        self._gpt, self._record = gpt, record or _CUDAGraphs()
        device = gpt.pos_emb.device
        self._ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._recordings: dict[int, Recording] = {}

    def __call__(self, ids: Tensor) -> Tensor:
        """Read further ids (B, n); logits (B, V), which hold until the next call.

        Raises:
            ValueError: The positions do not fit.
            DeviceError: The work cannot be recorded.
        """
        cache = self.cache
        if ids.shape[1] > 1:
            return self._gpt.step(ids, cache)
        self._gpt.check_room(cache, 1)
        self._ids.copy_(ids)
        cache.place.fill_(cache.length)
        self._position.fill_(cache.position)
        span = self._span()
        if span not in self._recordings:
            self._recordings[span] = self._record(partial(self._step, span))
        replay, logits = self._recordings[span]
        replay()
        cache.length += 1
        cache.position += 1
        return logits

    def _span(self) -> int:
        """Positions to cover, from a few sizes."""
        span = FIRST_SPAN
        while span <= self.cache.length:
            span *= 2
        return min(span, self.cache.positions)

    def _step(self, span: int) -> Tensor:
        """What is recorded: it depends on numbers of the device alone."""
        self.cache.cover(span)
        embedding = self._gpt.pos_emb.index_select(1, self._position)
        logits: Tensor = self._gpt.head(self._gpt.read(self._ids, embedding, self.cache)[:, -1])
        return logits


class _CUDAGraphs:
    """Records CUDA graphs that share their memory (PyTorch, "CUDA semantics", "CUDA Graphs")."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Recording:
        # Once without recording, beside the current stream: libraries then allocate what they keep.
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise DeviceError(
                f"a step of the GPT cannot be recorded as a CUDA graph: {reason}",
                "leave out --cuda-graphs",
            ) from error
        return graph.replay, result
