"""Texts as tokens of a fixed number: byte-pair encoding (Sennrich et al. 2016) by `tokenizers`.

A tokenizer is kept as its JSON definition, so that a checkpoint holds all that reads a text as in
training: normalisation, vocabulary, marks at the ends, length and padding.
"""

import gzip
import os
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from tatscli.errors import DataError

PAD, END = "<pad>", "<end>"
"""Marks of tokenizers trained here."""
MOST_TOKENS = 128
"""Tokens of a text at most, where its length follows from the captions."""

_CLIP_MERGES = 49152 - 256 - 2
_CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

# The library warns where a process forks after it has used its threads, as loaders of clips do;
# texts are short, and one thread reads them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class TextTokenizer(BaseModel):
    """Turns a text into so many tokens.

    Attributes:
        definition: The tokenizer as JSON of the `tokenizers` library.
        tokens: Tokens of each text.
        pad_id: Id behind the end of shorter ones; alone, it stands for no text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    definition: str
    tokens: int
    pad_id: int

    @cached_property
    def fingerprint(self) -> str:
        """Identifies vocabulary and rules, whatever the length."""
        return sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]

    @property
    def vocabulary(self) -> int:
        """Ids from 0 to the largest, whether or not all of them mean something."""
        ids: dict[str, int] = self._tokenizer.get_vocab()
        return max(self.pad_id, *ids.values()) + 1

    def encode(self, text: str) -> Tensor:
        """Ids of a text, int64 (tokens,); of an empty one, nothing but padding.

        What is too long is cut, and keeps the mark of its end.
        """
        ids = torch.full((self.tokens,), self.pad_id, dtype=torch.long)
        if text.strip():
            found = self._cutting.encode(text).ids
            ids[: len(found)] = torch.tensor(found, dtype=torch.long)
        return ids

    def decode(self, ids: Tensor) -> str:
        """The text that ids stand for, as far as they tell."""
        tokenizer = _defined(self.definition)
        if tokenizer.decoder is None:  # those that are trained here
            tokenizer.decoder = decoders.ByteLevel()
        text: str = tokenizer.decode([n for n in ids.tolist() if n != self.pad_id])
        return text.strip()

    def length(self, text: str) -> int:
        """Tokens that a text has by itself, marks included."""
        return self.lengths([text])[0]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The same for many texts."""
        return [len(found.ids) for found in self._tokenizer.encode_batch(texts)]

    def kept(self, text: str) -> str:
        """The part of a text that its tokens stand for."""
        return text[: max((stop for _, stop in self._cutting.encode(text).offsets), default=0)]

    @cached_property
    def _tokenizer(self) -> Any:
        return _defined(self.definition)

    @cached_property
    def _cutting(self) -> Any:
        tokenizer = _defined(self.definition)
        tokenizer.enable_truncation(self.tokens)
        return tokenizer

    def __getstate__(self) -> dict[Any, Any]:
        # What is derived does not travel to worker processes.
        state = super().__getstate__()
        return state | {"__dict__": {n: state["__dict__"][n] for n in type(self).model_fields}}


def train_tokenizer(captions: Iterable[str], vocabulary: int, tokens: int = 0) -> TextTokenizer:
    """Learn a byte-level vocabulary from captions; upper and lower case are one.

    Args:
        captions: All texts of training.
        vocabulary: Ids at most; the 256 bytes and two marks are among them.
        tokens: Tokens of each text; 0 takes the longest caption, at most 128.
    """
    texts = list(captions)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    return _sized(tokenizer, int(tokenizer.token_to_id(PAD) or 0), texts, tokens)


def read_tokenizer(path: Path, captions: Iterable[str], tokens: int = 0) -> TextTokenizer:
    """Read a tokenizer: JSON of the `tokenizers` library, or CLIP's list of merges.

    The latter (``bpe_simple_vocab_16e6.txt``, plain or gzipped) gives the published layout of
    49,408 ids: marks at both ends, padding by id 0. A JSON file without padding of its own is
    padded by its token ``<pad>`` or ``[PAD]``, else by id 0.

    Args:
        path: The file.
        captions: All texts of training.
        tokens: Tokens of each text; 0 takes the longest caption, at most 128.

    Raises:
        DataError: The file cannot be read or is neither.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: {reason}", "give a tokenizer file with --tokenizer") from error
    is_json = text.lstrip().startswith("{")
    try:
        tokenizer = Tokenizer.from_str(text) if is_json else _clip_tokenizer(text)
        padding, pad_id = tokenizer.padding, None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if padding:
            pad_id = padding["pad_id"]
        for mark in (PAD, "[PAD]"):
            pad_id = tokenizer.token_to_id(mark) if pad_id is None else pad_id
        return _sized(tokenizer, pad_id or 0, list(captions), tokens)
    except DataError:
        raise
    except Exception as error:  # the library raises no other kind
        raise DataError(
            f"{path} is no tokenizer of these captions: {error}",
            "--tokenizer takes JSON of the tokenizers library, or CLIP's bpe_simple_vocab_16e6.txt",
        ) from error


def _sized(tokenizer: Any, pad_id: int, captions: list[str], tokens: int) -> TextTokenizer:
    """A tokenizer with its length, once it has read all captions.

    Raises:
        DataError: So many tokens hold marks alone.
    """
    definition, marks = tokenizer.to_str(), tokenizer.num_special_tokens_to_add(False)
    reader = _defined(definition)
    longest = max((len(found.ids) for found in reader.encode_batch(captions)), default=0)
    if 0 < tokens <= marks:
        raise DataError(
            f"--text-tokens {tokens}, but the marks at the ends of a text take {marks}",
            "give more, or leave the option out",
        )
    tokens = tokens or min(max(longest, marks + 1), MOST_TOKENS)
    return TextTokenizer(definition=definition, tokens=tokens, pad_id=pad_id)


def _defined(definition: str) -> Any:
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.encode_special_tokens = True  # a mark that somebody writes is text
    return tokenizer


def _clip_tokenizer(text: str) -> Any:
    """The tokenizer of CLIP (Radford et al. 2021) from its merges, one a line below a heading."""
    lines = text.split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    if len(merges) != _CLIP_MERGES:
        raise ValueError(f"{len(merges)} merges, CLIP has {_CLIP_MERGES}")
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [first + second for first, second in merges] + list(_CLIP_MARKS)
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = _CLIP_MARKS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return tokenizer


def _byte_letters() -> list[str]:
    """The letter for each byte, printable ones by themselves and first, in the order of CLIP."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(others))]
