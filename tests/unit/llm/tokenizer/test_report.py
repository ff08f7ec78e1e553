"""The report's counts are those of a plain loop over documents, and parts add up to the whole."""

import inspect
import json
import random
from functools import cache

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer.indentation import SPACE_SYMBOL
from llm.tokenizer.report import COUNTED, measure, piece_facts, ratios
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.train import train_tokenizer

KINDS = [(m, preset) for m in ("bpe", "unigram", "word", "char") for preset in ("lossless", "nmt_nfkc")]
HOSTILE = [
    "日本語",
    "🎉",
    SPACE_SYMBOL,
    "  \n\n\t",
    "ﬁne",
    "e\u0301\u00a0",
    "\0\ufdd0",
    "<0x41>",
    "    return x",
]
texts = st.lists(st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE))).map("".join), max_size=6)


@cache
def tokenizer(model: str, preset: str) -> SentencePieceTokenizer:
    sources = [inspect.getsource(module) for module in (inspect, json, random)]
    return SentencePieceTokenizer(
        train_tokenizer(sources, vocab_size=700, model_type=model, normalization=preset)
    )


@pytest.mark.parametrize(("model", "preset"), KINDS)
@given(texts=texts)
@settings(max_examples=50, deadline=None)
def test_counts_are_those_of_a_plain_loop(model: str, preset: str, texts: list[str]) -> None:
    made = tokenizer(model, preset)
    peer = sentencepiece.SentencePieceProcessor(model_proto=made.model)
    counts, uses = measure(made, texts)
    expected_uses = [0] * made.vocab_size
    assert counts.shape == (len(texts), len(COUNTED))
    for text, row in zip(texts, counts.tolist(), strict=True):
        ids = made.encode(text)
        for id in ids:
            expected_uses[id] += 1
        in_bytes = sum(peer.is_byte(id) for id in ids)
        fails = preset == "lossless" and made.decode(ids) != text
        assert row == [1, len(text.encode()), len(text.split()), len(ids), in_bytes, fails]
        assert not fails or (model == "word" and SPACE_SYMBOL in text)
    assert uses.tolist() == expected_uses


def test_a_text_that_does_not_come_back_is_counted() -> None:
    counts, _ = measure(tokenizer("word", "lossless"), ["fine", f"a{SPACE_SYMBOL}b"])
    assert counts[:, COUNTED.index("round_trip_failures")].tolist() == [0, 1]


def test_ratios() -> None:
    of_two = ratios(np.array([2, 120, 20, 30, 3, 1]))
    assert (of_two["bytes_per_token"], of_two["fertility"], of_two["byte_token_share"]) == (4.0, 1.5, 0.1)
    nothing = ratios(np.zeros(len(COUNTED), dtype=np.int64))
    assert nothing["bytes_per_token"] is nothing["fertility"] is nothing["byte_token_share"] is None


@pytest.mark.parametrize(("model", "preset"), KINDS)
def test_pieces_that_no_text_uses(model: str, preset: str) -> None:
    made = tokenizer(model, preset)
    peer = sentencepiece.SentencePieceProcessor(model_proto=made.model)
    normal = [id for id in range(made.vocab_size) if not (peer.is_control(id) or peer.is_byte(id))]
    normal = [id for id in normal if not peer.is_unknown(id)]
    _, uses = measure(made, [inspect.getsource(json)])
    facts = piece_facts(made, uses > 0)
    assert facts.pieces == len(normal) == len(facts.longest)
    assert 0 < len(facts.unused) < len(normal)
    spelled = [peer.id_to_piece(id).replace(SPACE_SYMBOL, " ") for id in normal]
    assert facts.unused == [text for text, id in zip(spelled, normal, strict=True) if not uses[id]]
    assert sorted(facts.longest) == sorted(spelled)
    lengths = [len(text) for text in facts.longest]
    assert lengths == sorted(lengths, reverse=True)
