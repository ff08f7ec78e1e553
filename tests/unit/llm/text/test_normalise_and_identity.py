"""Normalisation settles after one pass; identity decides splits and ranges alone."""

import hashlib
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from llm.text.identity import content_id, hash_range, is_heldout
from llm.text.normalise import normalise

raw_text = st.text(st.characters(codec=None)) | st.text(
    alphabet="a\u0301é\r\n\t \0\x0c\x85\ufeff\ud800\u1e9b\u0323"
)


@given(raw_text)
def test_normalised_text_is_clean_and_settled(text):
    clean = normalise(text)
    assert normalise(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert not [c for c in clean if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t\x85"]
    clean.encode()


def test_examples():
    assert normalise("\ufeffa\r\nb\rc\n\te\u0301\0\x0c  ") == "a\nb\nc\n\té  "


def test_content_id_is_sha256():
    assert content_id("héllo") == hashlib.sha256("héllo".encode()).hexdigest()[:32]


def test_splits_have_their_size_and_grow_without_moving():
    keys = [content_id(str(i)) for i in range(20_000)]
    tenth = {k for k in keys if is_heldout(k, 0, 0.1)}
    assert 0.09 < len(tenth) / len(keys) < 0.11
    assert tenth < {k for k in keys if is_heldout(k, 0, 0.2)}
    assert tenth != {k for k in keys if is_heldout(k, 1, 0.1)}
    assert not any(is_heldout(k, 0, 0.0) for k in keys)
    assert all(is_heldout(k, 0, 1.0) for k in keys)


@given(st.integers(0, 2**128 - 1), st.integers(1, 1000))
def test_hash_ranges_are_in_order_and_cover(value, ranges):
    r = hash_range(f"{value:032x}", ranges)
    assert r * 2**128 <= value * ranges < (r + 1) * 2**128
