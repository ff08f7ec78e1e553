"""The tokenizer's half of a Hugging Face directory: `tokenizer.json`, special tokens, chat template.

transformers has a conversion of its own for SentencePiece models, which gives other ids for documents that
begin with white space, hold ▁, or repeat characters. So we write what the `tokenizers` library reads.

    text ──► normalizer ──► pre-tokenizer ──► model: BPE or Unigram, bytes for what it lacks ──► ids

Pieces are written with a space where SentencePiece writes ▁: a ▁ of the text then stays what it is.

Ids are those of `Tokenizer.encode`, but for:
  - text that spells a special piece ("<|user|>"): theirs reads the piece there, ours never does. Otherwise a
    rendered chat template would mean nothing. Encode what users write by itself, with
    `split_special_tokens=True`, as `llm/tokenizer/chat.py` does;
  - unigram models where two ways to cut a text have the same probability up to the rounding of sums: theirs
    adds in 64 bits and SentencePiece in 32;
  - the nmt_nfkc rules on a compatibility character with an accent of its own (a full-width e, U+0301): theirs
    looks rules up by what a reader sees as one character, SentencePiece by the longest match. Composing (NFC)
    first makes both see the same in all other text, decomposed or not.
Word models have no counterpart there; they are copied as they are, without a tokenizer.json.

A byte-level tokenizer is a tokenizer.json already, and goes along as it is.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as proto

SPACE_SYMBOL = "\u2581"

# What llm/tokenizer/chat.py builds in ids, as the template language has it; a test holds them together.
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEMPLATE_PIECES = ("<bos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_PIECE = proto.ModelProto.SentencePiece
_NEVER = -1e4
"""Score of byte pieces, so that no text that spells "<0x0A>" is read as one."""


@dataclass(frozen=True)
class Added:
    """Pieces that a model may have after those of its tokenizer, such as T5's sentinels and a <mask>."""

    vocab_size: int = 0
    """Ids of the model."""
    pieces: Sequence[str] = ()

    def after(self, size: int) -> dict[int, str]:
        """The pieces by id, if that is what the model has after `size` ids of the tokenizer."""
        return dict(enumerate(self.pieces, size)) if self.vocab_size == size + len(self.pieces) else {}


def export_tokenizer(
    model: bytes, directory: Path, special_ids: dict[str, Any], max_length: int, added: Added | None = None
) -> None:
    """Write tokenizer.json and tokenizer_config.json, and a SentencePiece model as it is.

    `special_ids` are entries such as {"eos_token_id": 3}; their pieces become "eos_token" and so on. The chat
    template goes along if the tokenizer has the pieces that it needs.

    Args:
        model: a SentencePiece model, or the tokenizer.json of a byte-level tokenizer.
    """
    if model.startswith(b"{"):  # no SentencePiece model does
        tokenizer = json.loads(model)
        pieces = list(tokenizer["model"]["vocab"])
        behind = (added or Added()).after(len(pieces))
        content = with_pieces(tokenizer, behind) if behind else model
        control = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
        unknown = "<unk>"
    else:
        (directory / "tokenizer.model").write_bytes(model)
        spec = proto.ModelProto.FromString(model)
        if spec.trainer_spec.model_type == proto.TrainerSpec.WORD:
            return
        pieces = [piece.piece for piece in spec.pieces]
        behind = (added or Added()).after(len(pieces))
        content = tokenizer_json(spec, behind)
        control = [piece.piece for piece in spec.pieces if piece.type == _PIECE.CONTROL]
        unknown = next(piece.piece for piece in spec.pieces if piece.type == _PIECE.UNKNOWN)
    (directory / "tokenizer.json").write_bytes(content)
    config = tokenizer_config(pieces, control, unknown, special_ids, max_length)
    if "<mask>" in behind.values():
        config["mask_token"] = "<mask>"
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def tokenizer_config(
    pieces: Sequence[str], control: Sequence[str], unknown: str, special_ids: dict[str, Any], max_length: int
) -> dict[str, Any]:
    """What transformers wants to know beside tokenizer.json, which has one end: of several, the first."""
    firsts = {name: id[0] if isinstance(id, list) else id for name, id in special_ids.items()}
    named = {
        name.removesuffix("_id"): pieces[token]
        for name, token in firsts.items()
        if name != "decoder_start_token_id"
    }
    config: dict[str, Any] = {
        # Each class of transformers builds a tokenizer of its own kind, but for this one.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "unk_token": unknown,
        "additional_special_tokens": [piece for piece in control if piece not in (*named.values(), unknown)],
        "clean_up_tokenization_spaces": False,
    } | named
    if all(piece in control for piece in _TEMPLATE_PIECES):
        config["chat_template"] = CHAT_TEMPLATE
    return config


def tokenizer_json(spec: proto.ModelProto, behind: dict[int, str]) -> bytes:
    """A BPE, unigram or char model as the `tokenizers` library reads it, with pieces after its own by id."""
    pieces = [_text_of(piece) for piece in spec.pieces]
    is_unigram = spec.trainer_spec.model_type == proto.TrainerSpec.UNIGRAM
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(id, piece.piece)
            for id, piece in enumerate(spec.pieces)
            if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)
        ]
        + [_added_token(id, text) for id, text in behind.items()],
        "normalizer": _sequence("normalizers", _normalizers(spec.normalizer_spec)),
        "pre_tokenizer": _pre_tokenizer(spec),
        "post_processor": None,
        "decoder": _decoder(spec.normalizer_spec),
        "model": _unigram(spec, pieces) if is_unigram else _bpe(spec, pieces),
    }
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def with_pieces(tokenizer: dict[str, Any], behind: dict[int, str]) -> bytes:
    """A byte-level tokenizer.json with pieces after its own by id."""
    model = tokenizer["model"]
    vocab = model["vocab"] | {text: id for id, text in behind.items()}
    added = [*tokenizer["added_tokens"], *(_added_token(id, text) for id, text in behind.items())]
    content = tokenizer | {"added_tokens": added, "model": model | {"vocab": vocab}}
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _text_of(piece: proto.ModelProto.SentencePiece) -> str:
    return piece.piece.replace(SPACE_SYMBOL, " ") if piece.type == _PIECE.NORMAL else piece.piece


def _added_token(id: int, content: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **plain, "special": True}


def _sequence(name: str, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", name: steps} if steps else None


def _normalizers(rules: proto.NormalizerSpec) -> list[dict[str, Any]]:
    """SentencePiece's normaliser step by step: characters, spaces in front and runs of them, one put in
    front, ▁, spaces at the end. A text between special tokens is normalised by itself.
    """
    steps: list[dict[str, Any]] = []
    if rules.precompiled_charsmap:
        charsmap = base64.b64encode(rules.precompiled_charsmap).decode()
        steps += [{"type": "NFC"}, {"type": "Precompiled", "precompiled_charsmap": charsmap}]
    if rules.remove_extra_whitespaces:
        steps += [_replace({"Regex": r"\A +"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    if not _is_lossless(rules):
        steps.append(_replace({"String": SPACE_SYMBOL}, " "))
    if rules.remove_extra_whitespaces:
        steps.append(_replace({"Regex": r" +\z"}, ""))
    return steps


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _is_lossless(rules: proto.NormalizerSpec) -> bool:
    """As `Tokenizer.is_lossless`: a ▁ of the text is spelled in bytes."""
    return rules.name == "identity" and not rules.add_dummy_prefix and not rules.remove_extra_whitespaces


def _pre_tokenizer(spec: proto.ModelProto) -> dict[str, Any] | None:
    """Cuts that change no ids, because no piece spans them.

    Where spaces only begin pieces, words are encoded one by one, which is sooner. In a unigram model the
    characters of "<0x0A>" that it lacks are encoded by themselves: it would rather take the byte piece.
    """
    steps = []
    text = [piece.piece for piece in spec.pieces if piece.type == _PIECE.NORMAL]
    lacking = "".join(sorted(set("<0x123456789ABCDEF>") - set("".join(text))))
    if lacking and spec.trainer_spec.model_type == proto.TrainerSpec.UNIGRAM:
        steps.append(_split({"Regex": f"[{lacking}]"}, "Isolated"))
    if not any(SPACE_SYMBOL in piece[1:] for piece in text):
        steps.append(_split({"String": " "}, "MergedWithNext"))
    return _sequence("pretokenizers", steps)


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _decoder(rules: proto.NormalizerSpec) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(spec: proto.ModelProto, pieces: list[str]) -> dict[str, Any]:
    """Scores are log probabilities (Kudo, 2018, arXiv:1804.10959)."""
    normal = [piece.type == _PIECE.NORMAL for piece in spec.pieces]
    vocab = [
        [text, piece.score if is_text else _NEVER]
        for text, piece, is_text in zip(pieces, spec.pieces, normal, strict=True)
    ]
    unk = next(id for id, piece in enumerate(spec.pieces) if piece.type == _PIECE.UNKNOWN)
    fallback = spec.trainer_spec.byte_fallback
    return {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": fallback}


def _bpe(spec: proto.ModelProto, pieces: list[str]) -> dict[str, Any]:
    """A merge for every way to make a piece of two others, in the order of the pieces' scores."""
    scores = {
        text: piece.score
        for text, piece in zip(pieces, spec.pieces, strict=True)
        if piece.type == _PIECE.NORMAL
    }
    merges = [
        [text[:cut], text[cut:]]
        for text in sorted(scores, key=lambda text: -scores[text])
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece.piece for piece in spec.pieces if piece.type == _PIECE.UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": spec.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: id for id, text in enumerate(pieces)},
        "merges": merges,
    }
