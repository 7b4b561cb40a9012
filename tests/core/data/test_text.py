import gzip
import pickle
import random
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tatscli.core.data.text import (
    END,
    MOST_TOKENS,
    PAD,
    TextTokenizer,
    read_tokenizer,
    train_tokenizer,
)
from tatscli.errors import DataError

CAPTIONS = [
    f"a {size} {colour} {shape} rolls {where}"
    for size, colour, shape, where in product(
        ("small", "large"), ("red", "blue", "green"), ("ball", "cube"), ("left", "right", "up")
    )
]
PADDING, MARK = 0, 1


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return train_tokenizer(CAPTIONS, 280)


def ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Those of a text up to the mark of its end."""
    found = tokenizer.encode(text).tolist()
    return found[: found.index(MARK)]


def test_the_same_captions_in_any_order_give_the_same_tokenizer(trained: TextTokenizer) -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert shuffled != CAPTIONS
    for captions in (CAPTIONS, shuffled):
        again = train_tokenizer(captions, 280)
        assert again == trained
        assert again.fingerprint == trained.fingerprint
    assert train_tokenizer(CAPTIONS, 290).fingerprint != trained.fingerprint
    assert train_tokenizer(CAPTIONS[:9], 280).fingerprint != trained.fingerprint


def test_ids_are_read_as_the_text_that_was_kept(trained: TextTokenizer) -> None:
    for text in (CAPTIONS[0], "a größer ball", "日本"):
        assert trained.decode(trained.encode(text)) == text
    assert trained.decode(trained.encode(" A  Red\nball ")) == "a red ball"
    assert trained.decode(trained.encode("")) == ""


def test_the_fingerprint_is_that_of_the_rules_whatever_the_length(trained: TextTokenizer) -> None:
    longer = train_tokenizer(CAPTIONS, 280, tokens=40)
    assert (longer.tokens, longer.fingerprint) == (40, trained.fingerprint)


def test_a_vocabulary_is_as_large_as_asked_and_has_all_bytes_and_marks(
    trained: TextTokenizer,
) -> None:
    assert trained.vocabulary == 280
    assert train_tokenizer(["x"], 4096).vocabulary == 256 + 2
    words = Tokenizer.from_str(trained.definition).get_vocab()
    assert (words[PAD], words[END]) == (PADDING, MARK)
    assert set(pre_tokenizers.ByteLevel.alphabet()) < set(words)
    assert trained.pad_id == PADDING


@pytest.mark.parametrize(
    "text",
    ["A Small RED ball", "a  small\n\tred   ball", "  a small red ball ", "A SMALL RED BALL"],
)
def test_case_and_space_make_no_difference(trained: TextTokenizer, text: str) -> None:
    assert torch.equal(trained.encode(text), trained.encode("a small red ball"))
    assert not torch.equal(trained.encode("a small redball"), trained.encode("a small red ball"))


def test_an_end_and_padding_follow_a_text(trained: TextTokenizer) -> None:
    found = trained.encode("a red ball")
    assert (found.dtype, found.shape) == (torch.int64, (trained.tokens,))
    length = trained.length("a red ball")
    assert 2 < length < trained.tokens
    assert found[length - 1] == MARK
    assert (found[: length - 1] > MARK).all()
    assert (found[length:] == PADDING).all()


def test_characters_that_no_caption_had_have_tokens(trained: TextTokenizer) -> None:
    longer = train_tokenizer(CAPTIONS, 280, tokens=40)
    texts = ["é", "ü", "日本", "🎈", "zq%"]
    found = [ids(longer, text) for text in texts]
    assert len(set(map(tuple, found))) == len(texts)
    for some in found:
        assert some
        assert MARK < min(some) <= max(some) < longer.vocabulary


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_no_text_is_nothing_but_padding(trained: TextTokenizer, text: str) -> None:
    assert trained.encode(text).tolist() == [PADDING] * trained.tokens
    assert trained.kept(text) == ""


@pytest.mark.parametrize("text", ["a small red ball rolls left", "A  SMALL red\n ball rolls left"])
def test_a_long_text_is_cut_and_keeps_its_end_mark(text: str) -> None:
    whole, cut = (train_tokenizer(CAPTIONS, 280, tokens=tokens) for tokens in (40, 6))
    found = cut.encode(text).tolist()
    assert found[-1] == MARK
    assert found[:-1] == ids(whole, text)[:5]
    assert len(ids(whole, text)) > 5
    kept = cut.kept(text)
    assert text.startswith(kept)
    assert 0 < len(kept) < len(text)
    assert cut.encode(kept).tolist() == found
    assert ids(whole, kept) == found[:-1]
    assert whole.kept(text) == text


def test_the_length_is_that_of_the_longest_caption_up_to_a_limit() -> None:
    made = train_tokenizer([*CAPTIONS, "a ball and a cube and " * 3], 280)
    assert made.tokens == made.length("a ball and a cube and " * 3)
    assert made.tokens > max(made.length(caption) for caption in CAPTIONS)
    assert train_tokenizer([*CAPTIONS, "q7 " * 200], 300).tokens == MOST_TOKENS == 128
    assert train_tokenizer([*CAPTIONS, "q7 " * 200], 300, tokens=500).tokens == 500
    assert train_tokenizer(["", ""], 300).tokens == 2


def test_only_what_defines_a_tokenizer_travels(trained: TextTokenizer) -> None:
    used = train_tokenizer(CAPTIONS, 280)
    assert used.encode("a red ball").any()
    assert used.fingerprint
    assert used.__dict__.keys() > {"definition", "tokens", "pad_id"}
    copy = pickle.loads(pickle.dumps(used))
    assert copy.__dict__.keys() == {"definition", "tokens", "pad_id"}
    assert copy == used == trained
    assert copy.fingerprint == used.fingerprint
    assert torch.equal(copy.encode("a red ball"), used.encode("a red ball"))


def words_file(path: Path, *words: str, prepare: Callable[[Any], None] = lambda _: None) -> Path:
    """A tokenizer of whole words in the format of the library."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    prepare(tokenizer)
    tokenizer.save(str(path))
    return path


def test_a_json_file_brings_its_own_padding(tmp_path: Path) -> None:
    def prepare(tokenizer: Any) -> None:
        tokenizer.enable_padding(pad_id=2, pad_token="none", length=9)
        tokenizer.enable_truncation(2)

    path = words_file(tmp_path / "t.json", "?", "<pad>", "none", "red", "ball", prepare=prepare)
    found = read_tokenizer(path, ["red ball", "red red red ball"])
    assert (found.tokens, found.pad_id, found.vocabulary) == (4, 2, 5)
    assert found.encode("red cube ball").tolist() == [3, 0, 4, 2]
    assert found.encode("red red red red ball").tolist() == [3] * 4
    assert found.encode("").tolist() == [2] * 4
    assert found.length("red") == 1
    assert read_tokenizer(path, ["red"], tokens=7).encode("ball").tolist() == [4] + [2] * 6


@pytest.mark.parametrize(
    ("words", "pad_id"),
    [
        (("?", "red", "<pad>", "[PAD]"), 2),
        (("?", "red", "[PAD]"), 2),
        (("<pad>", "[PAD]", "red"), 0),
        (("?", "red"), 0),
    ],
)
def test_a_json_file_without_padding_is_padded_by_its_pad_token_or_id_0(
    tmp_path: Path, words: tuple[str, ...], pad_id: int
) -> None:
    found = read_tokenizer(words_file(tmp_path / "t.json", *words), ["red red"])
    assert found.pad_id == pad_id
    assert found.encode("red").tolist() == [words.index("red"), pad_id]


def test_a_tokenizer_that_was_trained_is_read_from_its_definition(
    tmp_path: Path, trained: TextTokenizer
) -> None:
    (tmp_path / "t.json").write_text(trained.definition)
    assert read_tokenizer(tmp_path / "t.json", CAPTIONS) == trained


MERGES = 48894


def merges(count: int = MERGES) -> str:
    """A file like CLIP's: its symbols in its order, joined to pairs by rule."""
    plain = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = plain + [chr(256 + number) for number in range(256 - len(plain))]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters)]
    lines = (f"{first} {second}" for first, second in product(letters, symbols))
    return "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *islice(lines, count)]) + "\n"


def of(letter: str) -> int:
    """The number of a printable letter; each is followed by 512 merges, in this order."""
    return ord(letter) - 33


@pytest.fixture(scope="module", params=["plain", "gzipped"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("clip") / "merges"
    content = merges(MERGES + 100).encode()
    path.write_bytes(gzip.compress(content, 1) if request.param == "gzipped" else content)
    return read_tokenizer(path, ["a cat", "hi"], tokens=6)


def test_merges_of_clip_give_the_published_ids(clip: TextTokenizer) -> None:
    assert (clip.vocabulary, clip.pad_id) == (49408, 0)
    joined = 512 + 512 * of("h") + 256 + of("i")  # h and i</w>
    assert clip.encode("hi").tolist() == [49406, joined, 49407, 0, 0, 0]
    last = 512 + 512 * of("a") + 256 + of("t")  # a and t</w>, which come before c and a
    single = 256 + of("a")
    assert clip.encode(" A\nCAT").tolist() == [49406, single, of("c"), last, 49407, 0]
    assert clip.encode("").tolist() == [0] * 6
    assert clip.length("hi") == 3


def test_a_long_text_keeps_both_marks_of_clip(clip: TextTokenizer) -> None:
    found = clip.encode("hi hi hi hi hi hi").tolist()
    assert (found[0], found[-1]) == (49406, 49407)
    assert len(set(found[1:-1])) == 1
    assert clip.kept("hi hi hi hi hi hi") == "hi hi hi hi"


def test_the_length_with_merges_of_clip_counts_both_marks(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text(merges())
    found = read_tokenizer(tmp_path / "merges.txt", ["hi hi hi", "hi"])
    assert found.tokens == 1 + 3 + 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "decode"),
        (gzip.compress(b"heading\na b\n" * 50)[:-20], "ended"),
        (b'{"a": 1}', "is no tokenizer"),
        (b'{"version": ', "is no tokenizer"),
        (b"", f"0 merges, CLIP has {MERGES}"),
        (merges(MERGES - 1).encode(), "is no tokenizer"),
        (b"a photo of a cat\nmany words in a line\n", "is no tokenizer"),
    ],
    ids=["absent", "bytes", "cut", "json", "half", "empty", "few", "prose"],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        read_tokenizer(path, ["hi"])
    assert str(path) in caught.value.message
    assert "--tokenizer" in caught.value.hint


def test_a_mark_that_somebody_writes_is_text_and_a_text_has_room_for_more_than_marks(tmp_path):
    tokenizer = train_tokenizer(["a red circle"] * 2, 300)
    assert tokenizer.pad_id not in tokenizer.encode("<pad>")[:5].tolist()
    with pytest.raises(DataError, match="--text-tokens 1, but the marks .* take 1"):
        train_tokenizer(["a red circle"] * 2, 300, tokens=1)


def test_ids_with_gaps_between_them_count_up_to_the_largest(tmp_path):
    words = {"?": 0, "red": 5, "ball": 9}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    file = tmp_path / "gaps.json"
    file.write_text(tokenizer.to_str())
    found = read_tokenizer(file, ["red ball"])
    assert (found.vocabulary, found.encode("red ball").tolist()) == (10, [5, 9])
    lacking = Tokenizer(models.WordLevel({"red": 0}, unk_token="?"))
    file.write_text(lacking.to_str())
    with pytest.raises(DataError, match=r"gaps\.json is no tokenizer of these captions"):
        read_tokenizer(file, ["blue"], tokens=3)
