"""Somebody else's tokenizer with our ids: every text is cut as before."""

import io
from typing import Any

import pytest
import sentencepiece

from llm.tokenizer.renumber import renumber
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import END_ID, EOS_ID, SPECIAL_PIECES, USER_ID
from llm.tokenizer.train import train_tokenizer

TEXTS = [
    "The quick brown fox, naïve, jumps over 0x1f lazy dogs",
    "  def f(x):\n\treturn  x  # 日本 🎉 <s> </s>",
]


def trained(model_type: str, **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 50),
        model_writer=model,
        model_type=model_type,
        vocab_size=320,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bpe", {"byte_fallback": True, "remove_extra_whitespaces": False}),  # as Llama 2
        ("unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),  # as T5, without bytes
        ("bpe", {"byte_fallback": True, "user_defined_symbols": ["def", "  "], "bos_id": 5}),
    ],
)
def test_texts_are_cut_as_before(model_type: str, options: dict[str, Any]) -> None:
    model = trained(model_type, **options)
    before = sentencepiece.SentencePieceProcessor(model_proto=model)
    made = renumber(model)
    ours = SentencePieceTokenizer(made.model)
    assert sorted(row for row in made.rows if row is not None) == list(range(len(before)))
    assert [made.rows[EOS_ID], made.rows[1]] == [before.eos_id(), before.unk_id()]
    for text in [*TEXTS, "", " ", "héé ▁ x", "\n\n", *SPECIAL_PIECES]:
        assert [made.rows[id] for id in ours.encode(text)] == before.encode(text)
    assert renumber(made.model).model == made.model


def test_pieces_that_mean_the_same_are_found_by_name() -> None:
    model = trained("bpe", byte_fallback=True, control_symbols=["<|user|>"])
    before = sentencepiece.SentencePieceProcessor(model_proto=model)
    made = renumber(
        model, {1: "<s>", len(before): "<pad>", len(before) + 1: "<|end|>", len(before) + 3: "[INST]"}
    )
    assert made.rows[0] == len(before)
    assert made.rows[USER_ID] == before.piece_to_id("<|user|>")
    assert made.rows[END_ID] == len(before) + 1
    assert made.rows[-1] == len(before) + 3
    assert SentencePieceTokenizer(made.model).encode("[INST]") != [len(made.rows) - 1]


def test_ours_stays_and_what_is_no_tokenizer_is_refused() -> None:
    ours = train_tokenizer(TEXTS * 20, vocab_size=320)
    assert renumber(ours).model == ours
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        renumber(b"\x00\xff garbage")
