"""Records of files become rows of the corpus, or are removed with a reason."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm.text.identity import content_id, is_heldout
from llm.text.normalise import normalise
from llm.text.python_functions import UnparsableError, documented_functions, python_functions
from llm.text.readers import Located, ReadError, read_bytes, read_jsonl, read_parquet
from llm.text.source import Source
from llm.tokenizer.chat import ROLE_IDS
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.tables import Row
from pipelines.unit_actor import InputError

_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("source", "target"))
"""Fields of a record that make a conversation of one question and one answer."""


@dataclass(frozen=True)
class Removed:
    """A document that does not enter the corpus."""

    id: str
    source: str
    reason: str
    score: float | None = None
    """What the reason was decided by, e.g. the number of characters."""


def documents(file: Source, piece: dict[str, Any], config: CorpusConfig) -> Iterator[Row | Removed]:
    """All documents of a piece of `file`, in order. Raises InputError naming file and line."""
    source = piece["source"]
    try:
        if piece["format"] == "text":
            yield _text_file(file, source, config)
        elif piece["format"] == "corpus":
            yield from _functions(file, piece, config)
        else:
            for located in _records(file, piece):
                make = _conversation if config.format == "conversations" else _text_record
                yield make(located, source, config)
    except ReadError as error:
        raise InputError(str(error)) from error


def _records(file: Source, piece: dict[str, Any]) -> Iterator[Located]:
    if piece["format"] == "parquet":
        return read_parquet(file, first=piece["first"], last=piece["last"])
    return read_jsonl(file, piece.get("start", 0), piece.get("end"))


def _text_file(file: Source, source: str, config: CorpusConfig) -> Row | Removed:
    data = read_bytes(file)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Removed(content_id(data.decode("latin-1")), source, "undecodable", float(error.start))
    return _text(text, source, config)


def _text_record(located: Located, source: str, config: CorpusConfig) -> Row | Removed:
    text = located.record.get(config.text_field)
    if not isinstance(text, str):
        have = ", ".join(map(str, located.record)) or "nothing"
        raise InputError(
            f"{located.place}: no text in field {config.text_field!r}, only {have}; choose with --text-field"
        )
    return _text(text, source, config)


def _text(text: str, source: str, config: CorpusConfig) -> Row | Removed:
    text = normalise(text)
    id = content_id(text)
    if not text or text.isspace():
        return Removed(id, source, "empty", 0.0)
    if len(text) < config.min_chars:
        return Removed(id, source, "too_short", float(len(text)))
    split = "heldout" if is_heldout(id, config.split_seed, config.heldout_fraction) else "train"
    return {"id": id, "text": text, "source": source, "split": split}


def _conversation(located: Located, source: str, config: CorpusConfig) -> Row | Removed:
    record = located.record
    messages = record.get("messages")
    for asks, answers in _PAIRS:
        if messages is None and asks in record and answers in record:
            messages = [
                {"role": "user", "content": record[asks]},
                {"role": "assistant", "content": record[answers]},
            ]
    problem = _problem(messages)
    if messages is None or problem:
        raise InputError(f"{located.place}: {problem}")
    messages = [{"role": m["role"], "content": normalise(m["content"])} for m in messages]
    id = _conversation_id(messages)
    size = sum(len(message["content"]) for message in messages)
    if not all(message["content"].strip() for message in messages):
        return Removed(id, source, "empty", float(size))
    if size < config.min_chars:
        return Removed(id, source, "too_short", float(size))
    out_of_turn = _out_of_turn([message["role"] for message in messages])
    if out_of_turn is not None:
        return Removed(id, source, "turn_order", float(out_of_turn))
    group = str(record.get("group") or id)
    split = "heldout" if is_heldout(group, config.split_seed, config.heldout_fraction) else "train"
    return {"id": id, "messages": messages, "source": source, "group": group, "split": split}


def _problem(messages: Any) -> str:
    """What is wrong with a record's messages; "" if nothing is."""
    if not isinstance(messages, list) or not messages:
        pairs = ", ".join(f"`{asks}` and `{answers}`" for asks, answers in _PAIRS)
        return f"no conversation: it needs a list `messages`, or a pair: {pairs}"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"messages[{number}] has no text as `content`"
        if message.get("role") not in ROLE_IDS:
            return f"messages[{number}] has role {message.get('role')!r}; use {', '.join(ROLE_IDS)}"
    return ""


def _out_of_turn(roles: list[str]) -> int | None:
    """The number of the first message that is not as it should be, from 0; None if all are.

    There may be a system message first. Then user and assistant speak in turn, the user first. The last word
    may be the user's: that is a prompt, for stages that sample the reply.
    """
    first = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[first:], first):
        if role != ("user", "assistant")[(number - first) % 2]:
            return number
    return None if roles[first:] else first


def _functions(file: Source, piece: dict[str, Any], config: CorpusConfig) -> Iterator[Row | Removed]:
    """Functions of a text corpus; split and group are their document's, so that none straddles the split."""
    columns = ["id", "text", "source", "split"]
    for located in read_parquet(file, columns, piece["first"], piece["last"]):
        document = located.record
        pairs_of = documented_functions if config.functions.answer == "docstring" else python_functions
        try:
            pairs = list(pairs_of(document["text"]))
        except UnparsableError as error:
            line = None if error.line is None else float(error.line)
            yield Removed(document["id"], document["source"], "unparsable", line)
            continue
        for pair in pairs:
            messages = [
                {"role": "user", "content": pair.prompt},
                {"role": "assistant", "content": pair.response},
            ]
            id = _conversation_id(messages)
            limits = config.functions
            if len(pair.prompt) > limits.max_prompt_chars or len(pair.response) > limits.max_response_chars:
                yield Removed(
                    id, document["source"], "too_long", float(len(pair.prompt) + len(pair.response))
                )
                continue
            yield {
                "id": id,
                "messages": messages,
                "source": document["source"],
                "group": document["id"],
                "split": document["split"],
            }


def _conversation_id(messages: list[dict[str, str]]) -> str:
    turns = [[message["role"], message["content"]] for message in messages]
    return content_id(json.dumps(turns, ensure_ascii=False, separators=(",", ":")))
