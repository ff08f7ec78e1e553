"""The tokenizer of a Hugging Face directory with our special ids, if it is of a kind that we have."""

from pathlib import Path
from typing import Any

from llm.models.config import ModelConfig
from llm.tokenizer.byte_level import JSON_FILE
from llm.tokenizer.renumber import Renumbered, renumber
from llm.tokenizer.renumber_json import renumber_json
from llm.tokenizer.sentence_piece import MODEL_FILE
from llm.tokenizer.special import ADDED_PIECES, BOS_ID, EOS_ID, PAD_ID
from pipelines.import_model.source import json_object, special_ids

_SENTENCEPIECE = ("tokenizer.model", "spiece.model")
_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


class NotUsable(Exception):
    """Why the model is imported without its tokenizer, in a line."""


def our_tokenizer(directory: Path, shape: ModelConfig) -> tuple[str, Renumbered]:
    """The name of its file here, and the tokenizer, for a model of this shape.

    Raises:
        NotUsable: it is of no kind that we have, or there is none.
        ValueError: it is a SentencePiece model that cannot have our ids.
    """
    model, its_own = sentencepiece_model(directory), ADDED_PIECES[shape.family]
    if model is not None:
        return MODEL_FILE, renumber(model, _added_to_sentencepiece(directory), its_own)
    if not (directory / JSON_FILE).is_file():
        raise NotUsable(f"there is neither a SentencePiece model nor a {JSON_FILE}")
    if json_object(directory / _CONFIG).get("add_prefix_space"):
        raise NotUsable(f"{_CONFIG}: add_prefix_space is true")
    try:
        configured = _configured(directory)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{_CONFIG} or {_ADDED} is not as it should be: {type(error).__name__}: {error}"
        raise NotUsable(message) from None
    try:
        content = (directory / JSON_FILE).read_bytes()
        made = renumber_json(content, _meanings(directory), configured, its_own)
    except ValueError as error:
        raise NotUsable(str(error)) from None
    last = max(row for row in made.rows if row is not None)
    if last >= shape.vocab_size:
        raise NotUsable(f"{JSON_FILE}: has an id {last}, the model {shape.vocab_size} ids")
    return JSON_FILE, made


def sentencepiece_model(directory: Path) -> bytes | None:
    """The SentencePiece model that text is encoded with, if it is one.

    Llama 3's `tokenizer.model` is none, but a list of byte strings.
    """
    for name in _SENTENCEPIECE:
        file = directory / name
        if file.is_file() and not file.read_bytes().isascii():
            return file.read_bytes()
    return None


def _added_to_sentencepiece(directory: Path) -> dict[int, str]:
    """Pieces by id that tokenizer.json or added_tokens.json add to the SentencePiece model."""
    tokens = json_object(directory / JSON_FILE).get("added_tokens", [])
    return {int(token["id"]): str(token["content"]) for token in tokens} | _added(directory)


def _added(directory: Path) -> dict[int, str]:
    return {int(id): str(piece) for piece, id in json_object(directory / _ADDED).items()}


def _configured(directory: Path) -> dict[int, str]:
    """Pieces by id that other files than tokenizer.json say were added."""
    tokens = json_object(directory / _CONFIG).get("added_tokens_decoder", {})
    return {int(id): str(token["content"]) for id, token in tokens.items()} | _added(directory)


def _meanings(directory: Path) -> dict[int, str | int]:
    """By our special id, what the directory begins, ends and pads texts with. The tokenizer's word goes
    before the model's, and of several ends the first one counts.
    """
    found: dict[int, str | int] = {}
    ids = special_ids(directory)
    files = [json_object(directory / name) for name in (_CONFIG, _SPECIAL)]
    for ours, name in ((BOS_ID, "bos_token"), (EOS_ID, "eos_token"), (PAD_ID, "pad_token")):
        said: list[str | int | None] = [_content(file.get(name)) for file in files]
        id = ids.get(f"{name}_id")
        said += id if isinstance(id, list) else [id]
        first = next((each for each in said if each is not None), None)
        if first is not None:
            found[ours] = first
    return found


def _content(token: Any) -> str | None:
    """A piece, which is written alone or with how it is read."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
