"""Prompts out of a conversation corpus, in an order that depends on nothing but a seed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.load import Tokenizer

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: a conversation up to the assistant's turn."""

    id: str
    group: str
    """Conversations of one group (one source file, say) are on the same side of every split."""
    messages: list[dict[str, str]]
    token_ids: list[int]

    @property
    def text(self) -> str:
        """The last message: the question itself."""
        return self.messages[-1]["content"]


def check_conversations(corpus: Artifact) -> None:
    """Raise UserError unless `corpus` holds conversations."""
    if corpus.manifest["counts"].get("format") != "conversations":
        raise UserError(f"{corpus.ref} holds plain text; this stage needs a corpus of conversations")


def load_prompts(
    corpus: Path, tokenizer: Tokenizer, *, split: Split, seed: int, limit: int, max_tokens: int
) -> list[Prompt]:
    """Up to `limit` prompts of `split` that are at most `max_tokens` long, ordered by a hash of seed and id.

    A larger limit continues the same list. The assistant's own last message is left out.
    """
    columns = ["id", "group", "messages", "split"]
    table = pq.read_table(sorted(corpus.glob("part-*.parquet")), columns=columns)
    rows = table.filter(pc.equal(table["split"], split)).to_pylist()
    rows.sort(key=lambda row: _stable_hash(seed, row["id"]))
    prompts: list[Prompt] = []
    for row in rows:
        messages = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
        if not messages or len(prompts) == limit:
            continue
        token_ids = encode_prompt(tokenizer, messages)
        if len(token_ids) <= max_tokens:
            prompts.append(Prompt(row["id"], row["group"], messages, token_ids))
    return prompts


def sample_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one response: whichever engine samples it, and however often, it comes out the same."""
    return int.from_bytes(_stable_hash(seed, prompt_id, sample)[:8], "big") >> 1


def is_heldout(seed: int, key: str, fraction: float) -> bool:
    """Whether `key` falls into the held-out `fraction` under `seed`."""
    # Not the hash that orders prompts: the first ones would then all be held out.
    return int.from_bytes(_stable_hash("heldout", seed, key)[:8], "big") < fraction * 2**64


def _stable_hash(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
