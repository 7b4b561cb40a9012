"""Token datasets as streams, for sets that are larger than a local disk."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import Subset

from tatscli.app.reporting import Reporter, Silent
from tatscli.app.tokens import local_tokens, open_tokens
from tatscli.config.stream import ConvertConfig
from tatscli.config.train import LoopConfig
from tatscli.core.data.clips import Wanted
from tatscli.core.data.index import cache_folder
from tatscli.core.data.stream import (
    SHARE,
    Store,
    StreamDataset,
    StreamManifest,
    can_stream,
    write_stream,
)
from tatscli.core.paths import remote_url

if TYPE_CHECKING:
    from tatscli.core.training.engine import Clips

MEGABYTE = 2**20


@dataclass(frozen=True)
class ConvertResult:
    """A stream.

    Attributes:
        folder: Where it is.
        training_clips: Clips of the training split.
        validation_clips: Clips of the validation split.
        chunks: Files of clips, of both splits.
        bytes: Their size.
    """

    folder: Path
    training_clips: int
    validation_clips: int
    chunks: int
    bytes: int


class Stream(NamedTuple):
    """A stream that a GPT is trained on.

    Attributes:
        store: Its files.
        manifest: What they hold.
    """

    store: Store
    manifest: StreamManifest

    @property
    def folder(self) -> Path:
        """Where its VQGANs are."""
        return self.store.folder

    def clips(self, wanted: Wanted, loop: LoopConfig) -> "tuple[Clips, int]":
        """Clips for training and validation, and how many of all have no class.

        Raises:
            DataError: A split is empty, or there is no sound where that is wanted.
        """
        from tatscli.core.training.engine import Clips  # with Lightning, which takes seconds

        train, held = (
            StreamDataset(self.store, self.manifest, split, wanted, loop.seed)
            for split in ("train", "val")
        )
        # Clips lie in a drawn order, so the first ones stand for all, in the fewest chunks.
        first = range(min(len(held), loop.val_clips))
        clips = Clips(train, len(train), Subset(held, first), train.order)
        return clips, sum(self.manifest.unlabelled.values())


def convert(tokens: Path, config: ConvertConfig, reporter: Reporter | None = None) -> ConvertResult:
    """Write a token dataset as a stream; goes on where the same conversion was interrupted.

    Args:
        tokens: The token dataset.
        config: Settings.
        reporter: Told about progress.

    Raises:
        DataError: There are no tokens, they are damaged, the folder holds something else or cannot
            be written, or litdata is missing.
    """
    reporter, options = reporter or Silent(), config.convert
    tokens = local_tokens(tokens, reporter)
    held = open_tokens(tokens, reporter)
    total = sum(shard.n for records in held.shards.values() for shard in records)
    with reporter.task("converting", "clips", total) as task:
        manifest = write_stream(tokens, held, options.out, options.chunk_mb * MEGABYTE, task.update)
    counts = {split: sum(c.n for c in chunks) for split, chunks in manifest.shards.items()}
    chunks = [chunk for some in manifest.shards.values() for chunk in some]
    return ConvertResult(
        options.out,
        counts.get("train", 0),
        counts.get("val", 0),
        len(chunks),
        sum(chunk.bytes for chunk in chunks),
    )


def find_stream(data: Path, reporter: Reporter) -> Stream | None:
    """The stream that a path or address is, with its VQGANs on this machine; None if it is none.

    Raises:
        DataError: It is incomplete or damaged, or cannot be fetched.
    """
    store, url = Store(str(data)), remote_url(data)
    if url:
        if not can_stream(url):
            return None
        name = f"{data.name}-{blake2b(url.encode(), digest_size=8).hexdigest()}"
        store = Store(url, cache_folder() / "streams" / name)
    manifest = store.manifest()
    if manifest is None:
        return None
    if url:
        reporter.note(
            f"chunks of {url} are kept in {store.folder}, in up to {SHARE:.0%} of what is free"
        )
    for file, expected in manifest.files.items():
        store.open(file, expected).close()
    return Stream(store, manifest)
