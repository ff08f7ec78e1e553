"""The compiled loops give SentencePiece's ids, whatever the text."""

import inspect
import io
import json
import random
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer import documents
from llm.tokenizer.documents import DocumentEncoder, utf8
from llm.tokenizer.encoder import compiled as machine_code
from llm.tokenizer.encoder import encoder
from llm.tokenizer.encoder.compiled import _machine_code_folder
from llm.tokenizer.encoder.encoder import Encoder
from llm.tokenizer.encoder.normalise import normalise, rules
from llm.tokenizer.encoder.vocabulary import why_unsupported
from llm.tokenizer.indentation import SPACE_SYMBOL
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import SPECIAL_PIECES
from llm.tokenizer.train import train_tokenizer

KINDS = [(model, preset) for model in ("bpe", "unigram") for preset in ("lossless", "nmt_nfkc")]
INT32 = np.dtype(np.int32)

SPACES = [" " * 40, "        x", "\0", "\n\n\t ", "\r\n", "\u3000", "\xa0", "\u2009", "\u200b", "\ufeff"]
MARKS = ["\u0301", "e\u0301", "\u0301\u0301\u0301", "ﬁ", "ﷺ", "Å", "\u0958", "が", "日本語の文章", "한국어"]
BEYOND = [
    "🎉🏽",
    "👩\u200d👩\u200d👧",
    "\ufdd0",
    "\ufffd",
    "\U0010ffff",
    "a" * 50,
    "ab" * 40,
    '"' * 33,
    "=" * 70,
]
CODE = ["self.assertEqual(", "return", "0123456789", "www.example.com/a-b_c?d=e&f", "the the the"]
CONTROL = [*SPECIAL_PIECES, "<0x41>", SPACE_SYMBOL, SPACE_SYMBOL * 3]
HOSTILE = [*SPACES, *MARKS, *BEYOND, *CODE, *CONTROL]
any_text = st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE), st.text("ab \n", max_size=30))).map(
    "".join
)


@cache
def tokenizer(model: str, preset: str) -> SentencePieceTokenizer:
    sources = [inspect.getsource(module) for module in (inspect, json, random)]
    texts = [*sources, *HOSTILE * 20, "ab abab babb aab bba " * 300]
    return SentencePieceTokenizer(
        train_tokenizer(texts, vocab_size=1000, model_type=model, normalization=preset)
    )


@cache
def compiled(model: str, preset: str) -> Encoder:
    return new(tokenizer(model, preset))


def new(made: SentencePieceTokenizer) -> Encoder:
    return Encoder(proto.ModelProto.FromString(made.model), not made.is_lossless, INT32)


def split(ids: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(ids, ends)[:-1]]


@pytest.mark.parametrize(("model", "preset"), KINDS)
@given(texts=st.lists(any_text, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_text(model, preset, texts):
    found = compiled(model, preset).encode(*utf8(pa.array(texts, pa.string())))
    assert split(*found) == [tokenizer(model, preset).encode(text) for text in texts]


@pytest.mark.parametrize(("model", "preset"), KINDS)
def test_long_documents_in_which_rounding_decides(model, preset):
    """Unigram adds up scores in float32 from the beginning, and begins anew beyond 100,000."""
    choice = random.Random(0)
    pieces = [piece.piece for piece in proto.ModelProto.FromString(tokenizer(model, preset).model).pieces]
    texts = [
        "".join(choice.choices("ab", k=300_000)),
        "".join(choice.choices(HOSTILE, k=20_000)),
        "".join(choice.choices(pieces, k=100_000)).replace(SPACE_SYMBOL, " "),
        " ".join(choice.choices(pieces, k=100_000)),
        "=" * 100_000,
    ]
    found = compiled(model, preset).encode(*utf8(pa.array(texts)))
    assert split(*found) == [tokenizer(model, preset).encode(text) for text in texts]


def test_a_score_that_drifts_past_the_reset():
    """Equal scores round the same way each time: after a million, float32 is far from the exact sum."""
    spec = proto.ModelProto.FromString(tokenizer("unigram", "lossless").model)
    del spec.pieces[264:]  # all but special and byte pieces
    scores = {SPACE_SYMBOL: -3.0, "a": -0.0821, "baab": -9.0, "c": -2.0, "d": -2.0, "cd": -4.00001}
    for piece, score in scores.items():
        spec.pieces.add(piece=piece, score=score)
    peer = sentencepiece.SentencePieceProcessor(model_proto=spec.SerializeToString())
    text = "a" * 1_204_000 + " " + "cd " * 40
    ids, _ = Encoder(spec, False, INT32).encode(*utf8(pa.array([text])))
    assert ids.tolist() == peer.encode(text)


@pytest.mark.parametrize(("model", "preset"), KINDS)
def test_a_table_too_small_for_the_words(model, preset, monkeypatch):
    monkeypatch.setattr(encoder, "_WORDS", 64)
    monkeypatch.setattr(encoder, "_PLACES", 100)
    made = tokenizer(model, preset)
    texts = [inspect.getsource(random), "x" * 1000, *HOSTILE, ""]
    assert split(*new(made).encode(*utf8(pa.array(texts)))) == [made.encode(text) for text in texts]


@pytest.mark.parametrize("preset", ["nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf", "identity"])
def test_every_character_is_normalised_as_sentencepiece_does(preset):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to train on"] * 50),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name=preset,
        minloglevel=2,
    )
    peer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    made = rules(proto.ModelProto.FromString(model.getvalue()).normalizer_spec)
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    texts = ["a".join(points[start : start + 64]) for start in range(0, len(points), 64)]
    texts += [f" {first}{second}  {first}\u0301 " for first in HOSTILE for second in HOSTILE]
    text, offsets = utf8(pa.array(texts))
    out, out_offsets = np.empty(12 * len(text), dtype=np.uint8), np.empty(len(offsets), dtype=np.int64)
    assert normalise(text, offsets, made, out, out_offsets) == len(texts)
    found = [out[start:end].tobytes().decode() for start, end in pairwise(out_offsets)]
    assert found == [peer.normalize(text).replace(SPACE_SYMBOL, " ") for text in texts]


def test_models_that_the_loops_do_not_know_are_named():
    known = proto.ModelProto.FromString(tokenizer("bpe", "lossless").model)
    assert why_unsupported(known) is None
    known.pieces[300].type = proto.ModelProto.SentencePiece.USER_DEFINED
    assert "user-defined" in why_unsupported(known)
    known.pieces[300].type = proto.ModelProto.SentencePiece.NORMAL
    known.pieces[300].piece = "a b"
    assert "not written as ▁" in why_unsupported(known)
    known.trainer_spec.byte_fallback = False
    assert "byte fallback" in why_unsupported(known)
    word = train_tokenizer([inspect.getsource(json)], vocab_size=400, model_type="word")
    assert "neither a BPE nor a unigram" in why_unsupported(proto.ModelProto.FromString(word))


@pytest.mark.parametrize(("model", "preset"), [*KINDS, ("word", "lossless")])
def test_batches_are_the_same_before_and_after_compiling(model, preset, monkeypatch):
    made = tokenizer(model, preset)
    column = pa.array(["left out", *HOSTILE, "", inspect.getsource(json)]).slice(1)
    expected = [[*made.encode(text), made.eos_id] for text in column.to_pylist()]
    batches = DocumentEncoder(made, np.dtype(np.uint16), compile_after=1, compared=1)
    for number in range(4):
        if number == 2 and model != "word":
            monkeypatch.setattr(made, "encode_arrays", None)  # SentencePiece is needed no more
        ids, ends = batches.encode(column)
        assert ids.dtype == np.uint16
        assert split(ids, ends) == expected
    assert (batches.why_slow is None) == (model != "word")
    assert [array.tolist() for array in batches.encode(column[:0])] == [[], []]


def test_no_more_is_compared_than_was_asked_for(monkeypatch):
    made = tokenizer("bpe", "lossless")
    texts = pa.array(["left out", *["some words of text"] * 20]).slice(1)
    batches = DocumentEncoder(made, INT32, compile_after=0, compared=60)
    seen = []
    monkeypatch.setattr(
        made, "encode_arrays", lambda some, whole=made.encode_arrays: seen.extend(some) or whole(some)
    )
    expected = [*made.encode("some words of text"), made.eos_id]
    for _ in range(2):
        assert split(*batches.encode(texts)) == [expected] * 20
    assert 60 <= len("".join(seen)) <= 60 + len(texts[0].as_py())


@pytest.mark.parametrize("on_disk", [True, False])
def test_loops_that_are_on_disk_are_used_sooner(monkeypatch, on_disk):
    made = tokenizer("bpe", "lossless")
    text = pa.array([inspect.getsource(json)])
    DocumentEncoder(made, INT32, compile_after=0).encode(text)  # which leaves them there
    if not on_disk:
        monkeypatch.setattr(machine_code, "_FOLDER", None)
    asked = []
    monkeypatch.setattr(
        made, "encode_arrays", lambda texts, whole=made.encode_arrays: asked.append(1) or whole(texts)
    )
    batches = DocumentEncoder(made, INT32, load_after=1, compared=1)
    for _ in range(4):
        ids, _ = batches.encode(text)
        assert ids.tolist() == [*made.encode(text[0].as_py()), made.eos_id]
    assert len(asked) == (2 if on_disk else 4)


def test_loops_that_give_other_ids_are_not_used(monkeypatch, caplog):
    made = tokenizer("bpe", "lossless")
    monkeypatch.setattr(documents, "utf8", lambda texts: utf8(pa.array(["other"] * len(texts), pa.string())))
    batches = DocumentEncoder(made, INT32, compile_after=0)
    assert batches.encode(pa.array([], pa.string()))[0].size == 0
    assert batches.why_slow is None  # nothing was compared
    for _ in range(3):
        ids, _ = batches.encode(pa.array(["some text"]))
        assert ids.tolist() == [*made.encode("some text"), made.eos_id]
    assert "several times slower: the compiled loops gave other ids" in caplog.text


def test_loops_that_do_not_compile_are_not_used(monkeypatch, caplog):
    made = tokenizer("bpe", "lossless")
    monkeypatch.setattr(encoder, "cut", None)
    batches = DocumentEncoder(made, INT32, compile_after=0)
    ids, _ = batches.encode(pa.array(["some text"]))
    assert ids.tolist() == [*made.encode("some text"), made.eos_id]
    assert "several times slower: TypeError" in caplog.text


def test_bytes_that_are_no_text_are_refused():
    no_text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xf0")]
    )
    with pytest.raises(ValueError, match="UTF8"):
        DocumentEncoder(tokenizer("bpe", "lossless"), INT32).encode(no_text)


def test_without_a_folder_to_write_to_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/below")
    assert _machine_code_folder() is None
