"""CRC-32C, the checksum that TensorFlow keeps of each stored tensor.

The polynomial of Castagnoli, reflected, as in RFC 3720, appendix B.4. A register that starts at
zero is a linear function of the bytes over the field of two elements. So a long message is cut into
lanes that advance side by side, one byte of each at a time, and the lanes' registers are joined
pair by pair by the linear map "and then so many zero bytes".
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_ALL = 0xFFFFFFFF
_BITS = np.arange(32, dtype=np.uint32)


def crc32c(data: bytes) -> int:
    """Returns the checksum of some bytes, as a 32-bit number."""
    size = len(data)
    # Zeros in front leave a register of zero as it is.
    lanes = 1 << ((size.bit_length() + 1) // 2 + 1)
    length = -(-size // lanes)
    padded = np.zeros(lanes * length, np.uint8)
    padded[lanes * length - size :] = np.frombuffer(data, np.uint8)
    registers = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(lanes, length).T):
        registers = _step(registers ^ column)
    zeros = _after_zeros(length)
    while len(registers) > 1:
        registers = _apply(zeros, registers[::2]) ^ registers[1::2]
        zeros = _apply(zeros, zeros)
    start = _apply(_after_zeros(size), np.array([_ALL], np.uint32))
    return int(registers[0] ^ start[0]) ^ _ALL


def masked(checksum: int) -> int:
    """Returns a checksum in the form in which TensorFlow stores it."""
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & _ALL


def _table() -> Words:
    """The register after each possible byte."""
    registers: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        registers = np.where(registers & 1, (registers >> 1) ^ _POLYNOMIAL, registers >> 1)
    return registers


_TABLE = _table()


def _step(registers: Words) -> Words:
    """Advances registers over one byte, which was added to their lowest eight bits."""
    advanced: Words = _TABLE[registers & 0xFF] ^ (registers >> 8)
    return advanced


def _after_zeros(count: int) -> Words:
    """The map that advances a register over zero bytes, as its values at the 32 single bits."""
    result = power = np.uint32(1) << _BITS
    power = _step(power)
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def _apply(linear: Words, registers: Words) -> Words:
    """Applies a linear map to registers."""
    bits = (registers[:, None] >> _BITS) & 1
    images: Words = np.bitwise_xor.reduce(bits * linear, axis=1)
    return images
