"""Tokenizer: corpus → tokenizers/NAME. Actors take a sample, one process trains on it, actors measure.

    count   piece → bytes of text by source, where sources have weights
    sample  piece → its documents of the sample, and of those that the report measures
    train   the sample → tokenizer.model
    report  documents → counts, which add up to report.json

What a step has done is in the ledger, under a name that says what it was done with. So a run that was killed
does the rest, and one that could read more than the run before does again what follows from that.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.tokenizer.sentence_piece import MODEL_FILE, VOCABULARY_FILE, SentencePieceTokenizer
from llm.tokenizer.special import MIN_VOCAB_SIZE
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.begin import begin
from pipelines.corpus_pieces import corpus_pieces
from pipelines.inspect.format import format_bytes
from pipelines.progress import console
from pipelines.tokenizer.choice import ALL, Choice, fractions_of_shares
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokenizer.count_worker import NAMES_TOLD, CountWorker
from pipelines.tokenizer.report import report
from pipelines.tokenizer.report_worker import ReportWorker
from pipelines.tokenizer.sample_worker import SAMPLE_FOLDER, SampleWorker
from pipelines.tokenizer.training import required_memory, train
from pipelines.tokenizer_report import REPORT_FILE, readable
from pipelines.units import Unit, run_units

LOGIC_VERSION = 2

SAMPLE, REPORT = "sample", "report"
"""What documents are chosen for."""
MEASURED_ON = {"heldout": "held-out documents", "train": "documents of the sample"}
"""By the split that the report's documents are of."""

REPORT_BYTES = 50_000_000
"""About how much text the report measures: half a minute of one CPU."""
REPORT_UNIT_BYTES = 4_000_000

Records = dict[str, dict[str, Any]]


def resolve_inputs(config: TokenizerConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The corpus; raises UserError if it is missing or has nothing to train on."""
    if config.vocab_size <= MIN_VOCAB_SIZE:
        raise UserError(
            f"--vocab-size {config.vocab_size}: the special and byte pieces alone are {MIN_VOCAB_SIZE}; "
            f"make it at least {MIN_VOCAB_SIZE + 64}"
        )
    corpus = store.resolve("corpora", config.corpus)
    if not corpus.manifest["counts"]["train_bytes"]:
        raise UserError(f"{corpus.ref} has no document in its training split")
    return {"corpus": corpus}


def run(config: TokenizerConfig, cluster: Cluster) -> Artifact:
    """Make tokenizers/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    started = begin(config, inputs, kind="tokenizers", stage="tokenizer", logic_version=LOGIC_VERSION)
    if isinstance(started, Artifact):
        return started

    cluster.connect()
    corpus, weights = inputs["corpus"], config.weights or {ALL: 1.0}
    pieces = [vars(piece) for piece in corpus_pieces(corpus)]
    there = count_text(config, started, corpus, pieces)
    fractions = fractions_of_shares(weights, there, config.sample_bytes)
    planned = math.ceil(sum(fractions[name] * there[name] for name in weights))
    required_memory(config, planned, cluster.largest_memory_bytes)  # before the sample is taken

    choices = {
        SAMPLE: Choice("train", "sample", config.seed, fractions),
        REPORT: choose_measured(config, corpus, fractions, planned),
    }
    records = take(config, started, corpus, pieces, choices)
    taken = {name: _total(records, SAMPLE, name) for name in weights}
    documents, size = _sum(taken.values())
    sample = [name for name, _ in _files(records, SAMPLE)]
    tokenizer = SentencePieceTokenizer(train(config, started, sample, size, cluster.largest_memory_bytes))
    measured = measure(config, started, tokenizer, _files(records, REPORT))

    sources = [
        {"source": name, "weight": weight, "bytes_there": there[name]}
        | dict(zip(("documents", "bytes"), taken[name], strict=True))
        for name, weight in config.weights.items()
    ]
    facts = {
        "sample": {"documents": documents, "bytes": size, "sources": sources},
        "measured_on": MEASURED_ON[choices[REPORT].split],
        **report(tokenizer, measured.values()),
    }
    started.write(MODEL_FILE, tokenizer.model)
    started.write(VOCABULARY_FILE, tokenizer.vocabulary().encode())
    started.write(REPORT_FILE, json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")
    artifact = started.commit(
        counts={
            "vocab_size": tokenizer.vocab_size,
            "sampled_documents": documents,
            "sampled_bytes": size,
            "bytes_per_token": facts["total"]["bytes_per_token"],
            "model_sha256": tokenizer.fingerprint,
        }
    )
    started.discard_work(SAMPLE_FOLDER)
    for part in readable(facts):
        console.print(part)
    return artifact


def count_text(
    config: TokenizerConfig, draft: Draft, corpus: Artifact, pieces: Sequence[dict[str, Any]]
) -> dict[str, int]:
    """Bytes of text to train on, by the names that have weights.

    Raises UserError if a name stands for none.
    """
    if not config.weights:
        return {ALL: corpus.counts["train_bytes"]}
    records = run_units(
        [Unit(f"count-{number:05d}", piece) for number, piece in enumerate(pieces)],
        CountWorker,
        {"corpus": corpus, "names": tuple(config.weights)},
        draft=draft,
        config=config,
        title=f"{config.name}: count",
    )
    there: Counter[str] = Counter()
    for record in records.values():
        there.update(record["bytes"])
    for name, weight in config.weights.items():
        if not there[name]:
            tops = sorted({top for record in records.values() for top in record["there"]})
            named = ", ".join(tops[:NAMES_TOLD]) + (", …" if len(tops) > NAMES_TOLD else "")
            raise UserError(
                f"--source-weights {name}: {corpus.ref} has no text to train on from there; it has {named}"
            )
        share = config.sample_bytes * weight / sum(config.weights.values())
        if there[name] < share:
            console.print(
                f"{config.name}: {name} has {format_bytes(there[name])} of text, less than its share of "
                f"{format_bytes(share)}: all of it is taken, once",
                markup=False,
            )
    return there


def choose_measured(
    config: TokenizerConfig, corpus: Artifact, fractions: Mapping[str, float], planned: int
) -> Choice:
    """Documents for the report: held-out ones; where there are none, some of the sample's `planned` bytes."""
    heldout = corpus.counts["heldout_bytes"]
    if heldout:
        return Choice("heldout", "report", config.seed, {ALL: min(1.0, REPORT_BYTES / heldout)})
    part = min(1.0, REPORT_BYTES / planned)
    return Choice("train", "sample", config.seed, {name: part * each for name, each in fractions.items()})


def take(
    config: TokenizerConfig,
    draft: Draft,
    corpus: Artifact,
    pieces: Sequence[dict[str, Any]],
    choices: dict[str, Choice],
) -> Records:
    """Copy the chosen documents into the draft's work folder."""
    # With --max-failed-units, a later run may count more text, and so choose otherwise.
    chosen = _digest(*(asdict(choice) for choice in choices.values()))
    return run_units(
        [Unit(f"sample-{number:05d}-{chosen}", piece) for number, piece in enumerate(pieces)],
        SampleWorker,
        {"corpus": corpus, "target": draft.folder / SAMPLE_FOLDER, "choices": choices},
        draft=draft,
        config=config,
        title=f"{config.name}: sample",
    )


def measure(
    config: TokenizerConfig, draft: Draft, tokenizer: Tokenizer, files: Sequence[tuple[str, int]]
) -> Records:
    """What the tokenizer makes of the documents in the files, given by name and bytes of text."""
    groups: list[list[tuple[str, int]]] = []
    for file in files:
        if not groups or sum(size for _, size in groups[-1]) >= REPORT_UNIT_BYTES:
            groups.append([])
        groups[-1].append(file)
    made_from = _digest(tokenizer.fingerprint, files)
    units = [
        Unit(
            f"report-{number:05d}-{made_from}",
            {"files": [name for name, _ in group], "bytes": sum(size for _, size in group)},
        )
        for number, group in enumerate(groups)
    ]
    return run_units(
        units,
        ReportWorker,
        {"folder": draft.folder, "tokenizer": tokenizer, "names": tuple(config.weights)},
        draft=draft,
        config=config,
        title=f"{config.name}: report",
    )


def _files(records: Records, choice: str) -> list[tuple[str, int]]:
    """Name and bytes of text of each file that was written for a choice, in order."""
    return [
        (f"{SAMPLE_FOLDER}/{choice}/{unit}.parquet", _sum(record["taken"][choice].values())[1])
        for unit, record in records.items()
        if record["taken"][choice]
    ]


def _total(records: Records, choice: str, name: str) -> tuple[int, int]:
    """Documents and bytes that were taken for a choice from one source."""
    return _sum(record["taken"][choice].get(name, (0, 0)) for record in records.values())


def _sum(pairs: Iterable[Sequence[int]]) -> tuple[int, int]:
    documents = size = 0
    for more, larger in pairs:
        documents, size = documents + more, size + larger
    return documents, size


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
