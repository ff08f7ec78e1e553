"""UTF-8, for valid text."""

import numpy as np

from llm.tokenizer.encoder.compiled import compiled


@compiled
def character_bytes(lead: int) -> int:
    """Length of the character that begins with this byte."""
    if lead < 0x80:
        return 1
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4


@compiled
def code_point(text: np.ndarray, at: int) -> int:
    """The character of a uint8 text that begins at `at`."""
    lead = np.int64(text[at])
    if lead < 0x80:
        return lead
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | _six_bits(text, at + 1)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | _six_bits(text, at + 1) << 6 | _six_bits(text, at + 2)
    high = (lead & 0x07) << 18 | _six_bits(text, at + 1) << 12
    return high | _six_bits(text, at + 2) << 6 | _six_bits(text, at + 3)


@compiled
def _six_bits(text: np.ndarray, at: int) -> int:
    return np.int64(text[at]) & 0x3F
