"""The checksum of TensorFlow: published vectors, plain definition, and what TensorFlow wrote."""

import random
import struct

import pytest

from tatscli.core.crc32c import crc32c, masked


def plain(data: bytes) -> int:
    """The definition: a register shifted bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 255, 256, 257, 4095, 10_000])
def test_every_length_follows_the_definition(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == plain(data)


@pytest.mark.parametrize(
    ("value", "stored"), [(0.5, 0x1F273806), (2.0, 0x4F78FD10), (3.0, 0xC382D6EF)]
)
def test_masked_checksum_is_what_tensorflow_wrote_beside_a_float(value: float, stored: int) -> None:
    # From the index of TensorFlow Serving's test model "half plus two".
    assert masked(crc32c(struct.pack("<f", value))) == stored
