"""Tokens: text corpus + tokenizer → tokens/NAME. Each unit writes shards of its own; order is made later."""

from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import StorageError, UserError
from llm.data.shards import SHARDS_FILE, Shard, shards_json, token_dtype
from llm.tokenizer.documents import document_encoder
from pipelines.begin import begin
from pipelines.corpus_pieces import check_text, corpus_pieces
from pipelines.progress import console
from pipelines.tokenizer_artifact import load_tokenizer, resolve_tokenizer
from pipelines.tokens.config import TokensConfig
from pipelines.tokens.encode_worker import AT_ONCE, SPLITS, EncodeWorker
from pipelines.tokens.reuse import encoding_units, shards_by_unit, take_over
from pipelines.units import Unit, run_units

LOGIC_VERSION = 3


def resolve_inputs(config: TokensConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The corpus and the tokenizer; raises UserError if one is missing or the corpus is not text."""
    corpus = store.resolve("corpora", config.corpus)
    check_text(corpus, needed_for="tokens")
    return {"corpus": corpus, "tokenizer": resolve_tokenizer(store, config.tokenizer)}


def run(config: TokensConfig, cluster: Cluster) -> Artifact:
    """Make tokens/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    started = begin(config, inputs, kind="tokens", stage="tokens", logic_version=LOGIC_VERSION)
    if isinstance(started, Artifact):
        return started

    corpus, tokenizer = inputs["corpus"], inputs["tokenizer"]
    # Here too, so that a damaged tokenizer is one error before anything starts.
    encoder = load_tokenizer(tokenizer)
    slow = document_encoder(encoder, token_dtype(encoder.vocab_size)).why_slow
    if slow is not None:
        console.print(f"{config.name}: SentencePiece alone encodes, several times slower: {slow}")
    units = encoding_units(corpus, corpus_pieces(corpus), tokenizer, LOGIC_VERSION)
    _reuse(config, started, units)
    cluster.connect()
    records = run_units(
        units,
        EncodeWorker,
        {
            "corpus": corpus,
            "tokenizer": tokenizer,
            "target": started.folder,
            "text_bytes": _text_bytes_of_each(units, config.workers),
        },
        draft=started,
        config=config,
        title=f"{config.name}: encode",
        at_once=AT_ONCE,
    )
    splits = {
        split: [Shard(**shard) for record in records.values() for shard in record["shards"][split]]
        for split in SPLITS
    }
    if not splits["train"]:
        raise UserError(f"{inputs['corpus'].ref} has no document in its training split")
    for record in records.values():
        started.include(record["files"])
    content = shards_json(encoder.vocab_size, encoder.fingerprint, encoder.eos_id, splits)
    started.write(SHARDS_FILE, content)
    return started.commit(counts=_count(encoder.vocab_size, splits))


def _text_bytes_of_each(units: list[Unit], workers: int | None) -> int:
    """What one of so many actors is likely to encode; None of them is one a CPU."""
    import ray

    actors = workers or int(ray.cluster_resources().get("CPU", 1))
    return sum(unit.payload["bytes"] for unit in units) // actors


def _reuse(config: TokensConfig, draft: Draft, units: list[Unit]) -> None:
    """Take over what the newest version of the name has, unless all is to be made again."""
    store = ArtifactStore(config.root)
    version = None if config.force else store.newest("tokens", config.name)
    if version is None:
        return
    try:
        earlier = store.resolve("tokens", f"{config.name}/{version}")
        known = shards_by_unit(earlier)
    except StorageError:
        raise
    except (UserError, ValueError):
        return  # it is gone, damaged or of an old form: all is encoded
    taken, damaged = take_over(draft, units, earlier, known)
    if taken:
        console.print(f"{config.name}: {taken} of {len(units)} units are those of {earlier.ref}")
    if damaged:
        console.print(f"{config.name}: {damaged} units of {earlier.ref} are damaged there and encoded anew")


def _count(vocab_size: int, splits: dict[str, list[Shard]]) -> dict[str, Any]:
    counts: dict[str, Any] = {"vocab_size": vocab_size}
    for split, shards in splits.items():
        counts[f"{split}_tokens"] = sum(shard.tokens for shard in shards)
        counts[f"{split}_documents"] = sum(shard.documents for shard in shards)
        counts[f"{split}_bytes"] = sum(shard.bytes for shard in shards)
    counts["bytes_per_token"] = round(counts["train_bytes"] / counts["train_tokens"], 4)
    return counts
