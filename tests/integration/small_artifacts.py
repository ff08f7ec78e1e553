"""Small artifacts made without their stages, for tests of the stages that read them."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from llm.data.shards import SHARDS_FILE, ShardWriter, shards_json
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.train import train_tokenizer

VOCAB = 384
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "one",
    "small",
    "model",
    "learns",
    "which",
    "word",
    "comes",
    "next",
]


def documents(count: int, seed: int) -> list[str]:
    """Texts in which each word is followed by one of two, so that there is something to learn."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        at, text = int(random.integers(len(WORDS))), []
        for _ in range(60):
            text.append(WORDS[at])
            at = (at * 3 + int(random.integers(2))) % len(WORDS)
        texts.append(" ".join(text))
    return texts


def make_tokenizer(store: ArtifactStore) -> Artifact:
    """tokenizers/small."""
    draft = _begin(store, "tokenizers", {})
    draft.write("tokenizer.model", train_tokenizer(documents(200, seed=0), vocab_size=VOCAB))
    return draft.commit({"vocab_size": VOCAB})


def make_tokens(store: ArtifactStore, tokenizer: Artifact, name: str = "small", seed: int = 1) -> Artifact:
    """tokens/NAME: a train and a held-out split."""
    draft = _begin(store, "tokens", {"tokenizer": tokenizer}, name, {} if seed == 1 else {"seed": seed})
    encoder, splits = load_tokenizer(tokenizer.fetch()), {}
    for split, count, of_split in (("train", 300, seed), ("heldout", 20, seed + 1)):
        with (
            draft.writing() as writing,
            ShardWriter(writing.path, split, "00000", encoder.vocab_size, encoder.eos_id) as writer,
        ):
            for text in documents(count, of_split):
                writer.add(np.array(encoder.encode(text)), len(text.encode()))
        splits[split] = writer.shards
    content = shards_json(encoder.vocab_size, tokenizer.fingerprint, encoder.eos_id, splits)
    draft.write(SHARDS_FILE, content)
    return draft.commit({"tokens": sum(shard.tokens for shard in splits["train"])})


def make_conversations(store: ArtifactStore) -> Artifact:
    """corpora/small: the user says two words, another two each time; the assistant says the first
    backwards.
    """
    draft = _begin(store, "corpora", {})
    rows = []
    for index in range(160):
        other, first = divmod(index, len(WORDS))
        word = WORDS[first]
        messages = [
            {"role": "user", "content": f"{word} {WORDS[other]}"},
            {"role": "assistant", "content": word[::-1] * (1 + index % 3)},
        ]
        split = "heldout" if index % 8 == 0 else "train"
        rows.append(
            {"id": str(index), "messages": messages, "source": "made", "group": str(index), "split": split}
        )
    with draft.writing() as writing:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), writing.path / "part-00000.parquet")
    return draft.commit({"format": "conversations", "conversations": len(rows)})


def _begin(
    store: ArtifactStore,
    kind: str,
    inputs: dict[str, Artifact],
    name: str = "small",
    what: dict[str, int] | None = None,
) -> Draft:
    draft = store.begin(kind=kind, name=name, stage="made", logic_version=1, what=what or {}, inputs=inputs)
    assert isinstance(draft, Draft)
    return draft


def small_store(root: Path) -> ArtifactStore:
    """A store with tokenizers/small, tokens/small and corpora/small."""
    store = ArtifactStore(root)
    make_tokens(store, make_tokenizer(store))
    make_conversations(store)
    return store
