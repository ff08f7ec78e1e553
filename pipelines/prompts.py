"""Prompts out of a conversation corpus, in an order that depends on nothing but a seed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.corpus_pieces import part_files

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: a conversation up to the assistant's turn."""

    id: str
    group: str
    """Conversations of one group (one source file, say) are on the same side of every split."""
    messages: list[dict[str, str]]
    token_ids: list[int]
    reference: str = ""
    """What the assistant said to it in the corpus, if anything."""

    @property
    def text(self) -> str:
        """The last message: the question itself."""
        return self.messages[-1]["content"]


def check_conversations(corpus: Artifact) -> None:
    """Raise UserError unless `corpus` holds conversations."""
    if corpus.manifest["counts"].get("format") != "conversations":
        raise UserError(f"{corpus.ref} holds plain text; this stage needs a corpus of conversations")


def load_prompts(
    corpus: Artifact,
    tokenizer: Tokenizer,
    *,
    split: Split,
    seed: int,
    limit: int,
    max_tokens: int,
    encode: Callable[[Tokenizer, list[dict[str, str]]], list[int]] = encode_prompt,
    answered: bool = False,
) -> list[Prompt]:
    """Up to `limit` prompts of `split` that are at most `max_tokens` long, ordered by a hash of seed and id.

    A larger limit continues the same list. The assistant's own last message is left out. What is asked in
    several conversations is asked once, and a held-out prompt that the training split has too is left out:
    whoever learned from that split has seen an answer to it.

    Args:
        encode: what token ids a model is given of the messages.
        answered: leave out those to which the assistant says nothing.

    Raises:
        UserError: there is no such prompt.
    """
    folder = corpus.fetch(*part_files(corpus))
    parts = [folder / name for name in part_files(corpus)]
    columns = ["id", "group", "messages", "split"]
    table = pq.read_table(parts, columns=columns)
    asked: set[bytes] = set()
    if split == "heldout":
        learned = table.filter(pc.equal(table["split"], "train"))["messages"]
        asked.update(_question_key(_question(messages)) for messages in learned.to_pylist())
    rows = table.filter(pc.equal(table["split"], split)).to_pylist()
    rows.sort(key=lambda row: _stable_hash(seed, row["id"]))
    prompts: list[Prompt] = []
    for row in rows:
        messages = _question(row["messages"])
        key = _question_key(messages)
        reference = row["messages"][-1]["content"] if len(messages) < len(row["messages"]) else ""
        if not messages or key in asked or len(prompts) == limit or (answered and not reference):
            continue
        asked.add(key)
        token_ids = encode(tokenizer, messages)
        if len(token_ids) <= max_tokens:
            prompts.append(Prompt(row["id"], row["group"], messages, token_ids, reference))
    if not prompts:
        side = {"train": "training", "heldout": "held-out"}[split]
        raise UserError(
            f"{corpus.ref} has no {side} prompt of {max_tokens} tokens or less; raise --max-prompt-tokens"
            if rows
            else f"{corpus.ref} has no {side} conversation; make it with another --heldout-fraction"
        )
    return prompts


def sample_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one response: whichever engine samples it, and however often, it comes out the same."""
    return int.from_bytes(_stable_hash(seed, prompt_id, sample)[:8], "big") >> 1


def _question(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation without the assistant's own last message."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _question_key(messages: list[dict[str, str]]) -> bytes:
    """Equal for equal questions, whatever was answered."""
    return _stable_hash(*(part for message in messages for part in (message["role"], message["content"])))


def _stable_hash(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
