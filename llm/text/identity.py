"""Identity of documents by content, and decisions that follow from it alone."""

import hashlib

ID_HEX_DIGITS = 32


def content_id(text: str) -> str:
    """The document's id: the first 128 bits of SHA-256 over its UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_HEX_DIGITS]


def is_heldout(key: str, seed: int, fraction: float) -> bool:
    """Whether `key` (an id, or a group's name) is among the held-out `fraction`.

    Depends on nothing else: more documents never move a document from one split to the other.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def hash_range(document_id: str, ranges: int) -> int:
    """Which of `ranges` equal ranges of the 128-bit id space holds the id: 0 … ranges - 1.

    Equal documents fall into one range, so that duplicates can be found range by range.
    """
    return int(document_id, 16) * ranges >> 128
