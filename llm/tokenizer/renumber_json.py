"""Gives a byte-level `tokenizer.json` of somebody else our special ids, as `renumber` does for SentencePiece.

Ours come first, then all other pieces in their order. Merges are ranked by their place in a list and not by
ids, so that every text is cut as before. What is read from a text is what the original reads when it is told
to split special tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from llm.tokenizer.byte_level import ALPHABET, JSON_FILE, read_json
from llm.tokenizer.renumber import Renumbered
from llm.tokenizer.special import BOS_ID, EOS_ID, PAD_ID, SPECIAL_PIECES

_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")
_CUTS = ("Split", "Digits", "Punctuation")
"""Pre-tokenizers that leave a text whole, if they do not remove what they split at."""
_SURROUNDINGS = ("{}", " {}", "{} ", "\n{}\n", "a{}a", "1{}1", "-{}-")
"""Where a piece of a text may stand."""


def renumber_json(
    content: bytes,
    meanings: Mapping[int, str | int],
    added: Mapping[int, str] | None = None,
    model_pieces: Sequence[str] = (),
) -> Renumbered:
    """The same tokenizer with our special pieces in front.

    <eos>, <bos> and <pad> take the place of what means the same. A piece that means several of them becomes
    the first; the others are new. Added pieces with the names of ours take their places too.

    Args:
        meanings: by our special id, the piece that means the same, or its id; an id counts only if its piece
            was added, for models often have ids there that nobody chose.
        added: pieces by id that the tokenizer must have according to other files.
        model_pieces: pieces that shall be the model's and not the tokenizer's (`ADDED_PIECES`).

    Raises ValueError, saying why, if it is no byte-level BPE tokenizer, does more to a text than we can vouch
    for, or may read a special piece in it.
    """
    library = read_json(content)
    parts = _parts(content)
    ids: dict[str, int] = library.get_vocab()
    pieces = {id: text for text, id in sorted(ids.items())}
    if len(pieces) < len(ids):
        raise ValueError(f"{JSON_FILE}: several pieces have the same id")
    for id, text in (added or {}).items():
        if ids.get(text) != id:
            raise ValueError(f"{JSON_FILE}: has no piece {text!r} with the id {id}, and other files say so")
    flags = library.get_added_tokens_decoder()

    if all(pieces.get(id) == text for id, text in enumerate(SPECIAL_PIECES)):
        had = dict(enumerate(range(len(SPECIAL_PIECES))))
    else:
        had = _specials(ids, meanings, set(flags))
    moved = {*had.values(), *(ids[text] for text in model_pieces if text in ids)}
    rest = [id for id in sorted(pieces) if id not in moved]
    for id in rest:
        if pieces[id] in SPECIAL_PIECES:
            raise ValueError(f"{JSON_FILE}: has a piece {pieces[id]!r}, which means something else to us")

    texts = [*SPECIAL_PIECES, *(pieces[id] for id in rest)]
    tokens = [_special(id, text) for id, text in enumerate(SPECIAL_PIECES)]
    tokens += [
        _added(ours, flags[theirs]) for ours, theirs in enumerate(rest, len(tokens)) if theirs in flags
    ]
    for token in tokens:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            raise ValueError(f"{JSON_FILE}: the piece {token['content']!r} takes white space off the text")
    specials = [token["content"] for token in tokens if token["special"]]
    _check_unreadable(parts["model"], library, [*specials, *(pieces[id] for id in had.values())])
    made = {
        "version": parts.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": None,
        "decoder": parts["decoder"],
        "model": parts["model"]
        | {"type": "BPE", "unk_token": None, "vocab": {text: id for id, text in enumerate(texts)}},
    }
    renumbered = (json.dumps(made, ensure_ascii=False) + "\n").encode()
    read_json(renumbered)
    first = [had.get(id) for id in range(len(SPECIAL_PIECES))]
    return Renumbered(renumbered, [*first, *rest, *(ids.get(text) for text in model_pieces)])


def _parts(content: bytes) -> dict[str, Any]:
    """The parts of a file that the library reads. Raises ValueError for the first that we do not have."""
    parts: dict[str, Any] = json.loads(content)
    model = parts["model"]
    cuts = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    normalizers = _steps(parts.get("normalizer"), "normalizers")
    kind = model.get("type", "BPE" if "merges" in model else None)  # old files do not say
    decoder = (parts.get("decoder") or {}).get("type")
    if kind != "BPE":
        raise _refusal("model.type", kind, "only BPE on bytes can be used")
    for field in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise _refusal(f"model.{field}", model[field], "only BPE on bytes can be used, without that")
    if decoder != "ByteLevel":
        raise _refusal("decoder", decoder, "only ByteLevel can be used")
    if not cuts or cuts[-1].get("type") != "ByteLevel":
        raise _refusal("pre_tokenizer", [step.get("type") for step in cuts], "it must end with ByteLevel")
    for step in cuts[:-1]:
        if step.get("type") not in _CUTS or step.get("behavior") == "Removed":
            possible = f"before ByteLevel only {', '.join(_CUTS)} can be used, if they remove nothing"
            raise _refusal("pre_tokenizer", step.get("type"), possible)
    if cuts[-1].get("add_prefix_space", True):
        raise _refusal("add_prefix_space", True, "only a pre_tokenizer without it can be used")
    for step in normalizers:
        if step.get("type") not in _NORMALIZERS:
            raise _refusal("normalizer", step.get("type"), f"only {', '.join(_NORMALIZERS)} can be used")
    lacking = ALPHABET.keys() - model["vocab"].keys()
    if lacking:
        raise ValueError(
            f"{JSON_FILE}: {len(lacking)} of the 256 bytes have no piece: not every text has ids"
        )
    return parts | {"normalizer": parts["normalizer"] if normalizers else None}


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence, of any depth; of another part, itself."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for each in part[name] for step in _steps(each, name)]


def _refusal(field: str, value: Any, possible: str) -> ValueError:
    return ValueError(f"{JSON_FILE}: {field} is {json.dumps(value, ensure_ascii=False)}; {possible}")


def _specials(ids: dict[str, int], meanings: Mapping[int, str | int], added: set[int]) -> dict[int, int]:
    """By our special id, the id of what means the same: what is said of it, else by its name."""
    known = dict[str | int, int]([*ids.items(), *((id, id) for id in added)])
    found: dict[int, int] = {}
    for ours in (EOS_ID, BOS_ID, PAD_ID):
        theirs = known.get(meanings[ours]) if ours in meanings else None
        if theirs is not None and theirs not in found.values():
            found[ours] = theirs
    for ours, text in enumerate(SPECIAL_PIECES):
        if ours not in found and ids.get(text) in added and ids[text] not in found.values():
            found[ours] = ids[text]
    return found


def _check_unreadable(model: dict[str, Any], library: tokenizers.Tokenizer, specials: Sequence[str]) -> None:
    """Raise ValueError if text that spells one of these pieces may be read as it: one of them is a byte, or
    made by a merge, or a whole word where words are looked up.
    """
    merges = model["merges"]
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges}
    readable = [text for text in specials if text in ALPHABET or text in made]
    if model.get("ignore_merges"):
        readable += [text for text in specials if _is_a_word(library, text)]
    if readable:
        raise ValueError(f"{JSON_FILE}: text that spells {readable[0]!r} could be read as this special piece")


def _is_a_word(library: tokenizers.Tokenizer, text: str) -> bool:
    cut = library.pre_tokenizer.pre_tokenize_str
    return any(word == text for around in _SURROUNDINGS for word, _ in cut(around.format(text)))


def _special(id: int, content: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **plain, "special": True}


def _added(id: int, token: tokenizers.AddedToken) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": id, "content": token.content} | {name: getattr(token, name) for name in names}
