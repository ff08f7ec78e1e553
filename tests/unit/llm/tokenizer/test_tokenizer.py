"""Round trips, reserved ids and determinism of trained tokenizers."""

import inspect
import io
import json
import pickle
import random
import tempfile
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer.indentation import SPACE_SYMBOL
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import END_ID, SPECIAL_PIECES
from llm.tokenizer.train import TokenizerTrainingError, train_tokenizer

TEXTS = [inspect.getsource(module) for module in (inspect, json, pickle)]
FORGERY = "<|user|> <|assistant|><|end|><eos><pad><unk><0x0A>"

# Text that spells control symbols, byte pieces, ▁ and layout more often than chance would.
any_text = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            [*SPECIAL_PIECES, "<0x41>", SPACE_SYMBOL, "\n\n\t ", "        x", "\r\n", "\0", "é", "日本語"]
        ),
    )
).map("".join)


@cache
def tokenizer(model_type: str = "bpe", normalization: str = "lossless") -> SentencePieceTokenizer:
    texts = [*TEXTS, FORGERY * 500]
    return SentencePieceTokenizer(
        train_tokenizer(texts, vocab_size=700, model_type=model_type, normalization=normalization)
    )


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
@given(text=any_text)
@settings(max_examples=300, deadline=None)
def test_lossless_round_trip(model_type, text):
    assert tokenizer(model_type).decode(tokenizer(model_type).encode(text)) == text


@given(text=any_text)
@settings(max_examples=100, deadline=None)
def test_word_model_round_trip(text):
    text = text.replace(SPACE_SYMBOL, "")
    assert tokenizer("word").decode(tokenizer("word").encode(text)) == text


def test_round_trip_of_a_model_that_never_saw_a_space():
    spaceless = SentencePieceTokenizer(train_tokenizer(["abcabdabe" * 50], vocab_size=270))
    assert spaceless.decode(spaceless.encode("a b\u2581c  d\n")) == "a b\u2581c  d\n"


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "word", "char"])
@pytest.mark.parametrize("normalization", ["lossless", "nmt_nfkc"])
@given(text=any_text)
@settings(max_examples=50, deadline=None)
def test_user_text_never_yields_a_special_id(model_type, normalization, text):
    assert all(i >= len(SPECIAL_PIECES) for i in tokenizer(model_type, normalization).encode(text + FORGERY))


@given(texts=st.lists(any_text, max_size=5))
@settings(max_examples=50, deadline=None)
def test_batch_equals_one_by_one(texts):
    expected = [tokenizer().encode(text) for text in texts]
    for threads in (1, 2):
        assert [ids.tolist() for ids in tokenizer().encode_arrays(texts, threads)] == expected


def test_encode_is_sentencepiece_and_decode_skips_special_ids():
    text = TEXTS[1]
    peer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().model)
    assert tokenizer().encode(text) == peer.encode(text)
    assert tokenizer().decode([2, *peer.encode("x = 1"), END_ID, 0]) == peer.decode(peer.encode("x = 1"))
    assert [i for i in range(8) if peer.is_control(i) or peer.is_unknown(i)] == list(range(8))


def test_prose_preset_normalises():
    prose = tokenizer("bpe", "nmt_nfkc")
    assert prose.decode(prose.encode("  a\n\n ﬁne   day ")) == "a fine day"


def test_indentation_is_one_piece_and_packs_code_tighter():
    code = tokenizer()
    assert len(code.encode("\n        ")) == 1
    assert len(code.encode("\t")) == 1  # SentencePiece alone can never learn one
    line_by_line = io.BytesIO()  # as spm_train reads a file, with its options that keep layout
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS for line in text.splitlines(keepends=True)),
        model_writer=line_by_line,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    peer = sentencepiece.SentencePieceProcessor(model_proto=line_by_line.getvalue())
    held_out = inspect.getsource(tempfile)
    assert len(code.encode(held_out)) < 0.95 * len(peer.encode(held_out))


def test_training_is_deterministic_and_pieces_are_unique():
    again = train_tokenizer([*TEXTS, FORGERY * 500], vocab_size=700)
    assert again == tokenizer().model
    pieces = [sentencepiece.SentencePieceProcessor(model_proto=again).id_to_piece(i) for i in range(700)]
    assert len(set(pieces)) == 700


def test_streamed_bytes_join_to_the_text():
    text = "naïve 日本語 🎉\n"
    ids = tokenizer().encode(text)
    assert b"".join(tokenizer().decode_bytes([i]) for i in ids).decode() == text


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 700, "no text"),
        ([""], 700, "no text"),
        (["tiny text"], 5000, "lower vocab_size to"),
        (TEXTS, 200, "at least 328"),
        (["".join(map(chr, range(0x4E00, 0x5000)))], 300, "so many different characters"),
    ],
)
def test_training_errors_say_the_mend(texts, vocab_size, message):
    with pytest.raises(TokenizerTrainingError, match=message):
        train_tokenizer(texts, vocab_size=vocab_size)


def test_text_without_spaces_is_no_text_for_a_word_model():
    drawn = random.Random(0)
    texts = ["".join(drawn.choices("abcdefgh", k=8_000)) for _ in range(80)]
    with pytest.raises(TokenizerTrainingError, match="no spaces, make a bpe or unigram model"):
        train_tokenizer(texts, vocab_size=330, model_type="word")


def test_load_from_file_directory_and_pickle(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().model)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == load_tokenizer(tmp_path / "tokenizer.model").fingerprint
    assert pickle.loads(pickle.dumps(loaded)).encode("def f():\n") == tokenizer().encode("def f():\n")
    with pytest.raises(FileNotFoundError, match="manta tokenizer"):
        load_tokenizer(tmp_path / "missing")
