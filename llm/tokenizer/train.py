"""Training a SentencePiece model from texts.

`train_tokenizer` is deterministic: the same texts in the same order give the same bytes. SentencePiece's own
sampling and shuffling stay off (the caller decides what it reads) and it runs on one thread.

Two presets of normalisation:
  lossless  no change at all: decode(encode(text)) == text for any text, with its spaces, tabs and newlines.
            Pieces may mix scripts and digits. Suits code, and anything that must come back as it was.
  nmt_nfkc  SentencePiece's default: NFKC, runs of white space become one space, a space before the first
            word, no piece across scripts. Suits prose when the exact layout does not matter.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import sentencepiece

from llm.tokenizer.indentation import SPACE_SYMBOL, hide_indentation, reveal_indentation
from llm.tokenizer.special import (
    BOS,
    BOS_ID,
    CHAT_SYMBOLS,
    EOS,
    EOS_ID,
    MIN_VOCAB_SIZE,
    PAD,
    PAD_ID,
    UNK,
    UNK_ID,
)

ModelType = Literal["bpe", "unigram", "word", "char"]
Normalization = Literal["lossless", "nmt_nfkc"]

PRESETS: dict[Normalization, dict[str, Any]] = {
    "lossless": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_by_unicode_script": False,
    },
    "nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
}

# Characters that SentencePiece's trainer keeps for itself; a text that holds one would be skipped whole.
_RESERVED = {ord("\u2585"): None, 0: None, ord("\ufdd0"): None, ord("\ufdd1"): None}

# The BPE trainer counts positions in 16 bits, and a text without spaces is one word to it.
_CHUNK_CHARS = 8_192


class TokenizerTrainingError(ValueError):
    """The texts do not suit the options; the message says what to change."""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    model_type: ModelType = "bpe",
    normalization: Normalization = "lossless",
    character_coverage: float = 0.9995,
) -> bytes:
    """Train on whole documents and return the serialised model (the content of `tokenizer.model`).

    `vocab_size` counts the 8 special and 256 byte pieces. Characters outside the most frequent
    `character_coverage` of the text have no piece of their own: they are encoded as UTF-8 bytes.
    "char" may come out smaller than `vocab_size`, for it has a piece per character and no more.

    Raises TokenizerTrainingError if there is no text, or if it is too small or too varied for `vocab_size`.
    Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226.
    """
    if vocab_size <= MIN_VOCAB_SIZE:
        raise TokenizerTrainingError(
            f"vocab_size {vocab_size} leaves no room beside the {MIN_VOCAB_SIZE} special and byte pieces; "
            f"make it at least {MIN_VOCAB_SIZE + 64}"
        )
    # Words and characters have no pieces that could span a newline.
    hides = normalization == "lossless" and model_type in ("bpe", "unigram")
    surplus = vocab_size // 16 + 64 if hides else 0  # pieces that become equal when indentation is put back
    sentences = _sentences(texts, hides)
    first = next(sentences, None)
    if first is None:
        raise TokenizerTrainingError("there is no text to train on; give a corpus with at least one document")

    model = _train(
        _chain(first, sentences),
        vocab_size=vocab_size + surplus,
        model_type=model_type,
        character_coverage=character_coverage,
        **PRESETS[normalization],
    )
    if hides:
        model = reveal_indentation(model, vocab_size)
    _check_size(model, vocab_size, model_type)
    return model


def _sentences(texts: Iterable[str], hides: bool) -> Iterator[str]:
    """Cut documents into chunks that the trainer can hold, at a newline or space where there is one."""
    for text in texts:
        text = text.translate(_RESERVED)
        start = 0
        while start < len(text):
            end = start + _CHUNK_CHARS
            if end < len(text):
                cut = max(text.rfind("\n", start + 1, end), text.rfind(" ", start + 1, end))
                end = cut if cut > start else end
            chunk = text[start:end]
            yield hide_indentation(chunk) if hides else chunk
            start = end


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _train(sentences: Iterator[str], **options: Any) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            byte_fallback=True,
            hard_vocab_limit=False,  # we check the size ourselves, with a message that says what to do
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_piece=PAD,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            control_symbols=list(CHAT_SYMBOLS),
            required_chars=SPACE_SYMBOL,  # without this piece a space would come back as a ▁
            max_sentence_length=8 * _CHUNK_CHARS,  # bytes; longer ones would be dropped
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except (RuntimeError, ValueError) as error:
        too_many = re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error))
        if too_many:
            raise TokenizerTrainingError(_too_many_characters(int(too_many[1]))) from error
        raise TokenizerTrainingError(
            f"SentencePiece cannot train {options['model_type']} with these options: {error}"
        ) from error
    return model.getvalue()


def _check_size(model: bytes, vocab_size: int, model_type: ModelType) -> None:
    try:
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    except RuntimeError as error:  # it writes words of any length, and does not read them
        raise TokenizerTrainingError(
            f"SentencePiece cannot read the {model_type} model that it made: {error}; if the text has words "
            "of thousands of characters, or no spaces, make a bpe or unigram model"
        ) from error
    if size > vocab_size:
        raise TokenizerTrainingError(_too_many_characters(size))
    if size < vocab_size and model_type != "char":
        raise TokenizerTrainingError(
            f"the text is too small for vocab_size {vocab_size}: it gives {size} pieces; "
            f"lower vocab_size to {size} or give more text"
        )


def _too_many_characters(needed: int) -> str:
    return (
        f"the text has so many different characters that vocab_size is too small for one piece each; "
        f"make it larger than {needed}, or lower character_coverage"
    )
