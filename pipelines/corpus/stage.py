"""Corpus: files → corpora/NAME, in three steps over the same units.

    read   unit → its documents, normalised and filtered, and an index of their ids by hash range
    dedup  hash range → the duplicates in it, over all units
    write  unit → part-UNIT.parquet, without them

Each step is one Ray Data map whose units are committed to the ledger; a run that was killed does the rest.
The result is the same, byte for byte, for any number of workers.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.text.source import Source
from pipelines.begin import begin
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.dedup_worker import DedupWorker
from pipelines.corpus.inputs import (
    find_files,
    hash_files,
    identity,
    plan_corpus_units,
    plan_units,
)
from pipelines.corpus.read_worker import ReadWorker
from pipelines.corpus.tables import REMOVED, concatenate
from pipelines.corpus.work_files import REMOVED_FOLDER, WORK
from pipelines.corpus.write_worker import WriteWorker
from pipelines.corpus_pieces import check_text, unit_bytes
from pipelines.units import Unit, run_units

LOGIC_VERSION = 4
REMOVED_FILE = "removed.parquet"

RANGE_BYTES = 4 * 2**30
"""Text to a hash range: its ids then take some tens of megabytes in one actor."""


def resolve_inputs(config: CorpusConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The corpus that python-functions reads, else nothing; raises UserError if there is nothing to read."""
    if config.from_corpus is None:
        find_files(config)
        return {}
    corpus = store.resolve("corpora", config.from_corpus)
    check_text(corpus, needed_for="python-functions")
    return {"corpus": corpus}


def run(config: CorpusConfig, cluster: Cluster) -> Artifact:
    """Make corpora/NAME."""
    what, inputs = config.what(), {}
    files: Sequence[Source]
    if config.from_corpus is not None:
        inputs = resolve_inputs(config, ArtifactStore(config.root))
        files, units = plan_corpus_units(inputs["corpus"])
    else:  # Their listing is their check: a bucket with a million objects takes minutes.
        found = hash_files(find_files(config))
        what["raw"] = identity(found)
        files, units = [each.file for each in found], plan_units(found)
    started = begin(config, inputs, kind="corpora", stage="corpus", logic_version=LOGIC_VERSION, what=what)
    if isinstance(started, Artifact):
        return started

    cluster.connect()
    records = make_parts(config, started, files, units)
    artifact = started.commit(counts=finish(config, started, records))
    started.discard_work(WORK)
    return artifact


def make_parts(
    config: CorpusConfig, draft: Draft, files: Sequence[Source], units: list[Unit]
) -> dict[str, dict[str, Any]]:
    """Run the three steps; the records of what was read and written.

    Which documents are duplicates depends on which units could be read. So the later steps' units carry a
    digest of that in their ids: where units failed and were left out, and a later run can read them, what
    had been done without them does not count.
    """
    work = draft.folder / WORK
    total_bytes = sum(_piece_bytes(unit) for unit in units)
    ranges = total_bytes // RANGE_BYTES + 1
    row_group_bytes = max(unit_bytes(total_bytes) // 4, 2**18)
    pool: dict[str, Any] = {"draft": draft, "config": config}

    read = {
        "config": config,
        "files": files,
        "work": work,
        "ranges": ranges,
        "row_group_bytes": row_group_bytes,
    }
    was_read = run_units(units, ReadWorker, read, title=f"{config.name}: read", **pool)

    if not was_read:
        raise UserError(f"{config.name}: no unit of the input could be read; the errors are listed above")
    numbers = [unit.removeprefix("read-") for unit in was_read]
    units_read = hashlib.sha256("\n".join(numbers).encode()).hexdigest()[:8]
    by_range = [Unit(f"dedup-{units_read}-{number:05d}", {"range": number}) for number in range(ranges)]
    dedup = {"work": work, "units": numbers, "units_read": units_read}
    all_of_them = {**pool, "config": config.model_copy(update={"max_failed_units": 0})}
    run_units(by_range, DedupWorker, dedup, title=f"{config.name}: find duplicates", **all_of_them)

    parts = [
        Unit(
            f"write-{units_read}-{number}",
            {"unit": number, "documents": was_read[f"read-{number}"]["documents"]},
        )
        for number in numbers
    ]
    write = {
        "target": draft.folder,
        "work": work,
        "ranges": ranges,
        "units_read": units_read,
        "conversations": config.holds_conversations,
        "row_group_bytes": row_group_bytes,
    }
    return was_read | run_units(parts, WriteWorker, write, title=f"{config.name}: write", **pool)


def finish(config: CorpusConfig, draft: Draft, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Gather what was removed, and count."""
    tables = sorted(
        name
        for record in records.values()
        for name in record["files"]
        if name.startswith(f"{WORK}/{REMOVED_FOLDER}/")
    )
    with draft.writing() as writing:
        removed = writing.path / REMOVED_FILE
        concatenate(_opened(draft.folder, tables), removed, REMOVED)
        reasons = _reasons(removed)
    counts: Counter[str] = Counter(
        dict.fromkeys(("train_documents", "heldout_documents", "train_bytes", "heldout_bytes"), 0)
    )
    for unit, record in records.items():
        if unit.startswith("write-"):
            parts = {name: entry for name, entry in record["files"].items() if "/" not in name}
            draft.include(parts)
            counts.update(record["counts"])
    if counts["train_documents"] + counts["heldout_documents"] == 0:
        raise UserError(
            f"no document is left: all were removed, see {draft.folder}/{REMOVED_FILE} for the reasons"
        )
    return {
        "format": "conversations" if config.holds_conversations else "text",
        "documents": counts["train_documents"] + counts["heldout_documents"],
        "bytes": counts["train_bytes"] + counts["heldout_bytes"],
        **counts,
        "removed": reasons,
    }


def _opened(folder: Folder, names: list[str]) -> Iterator[pa.NativeFile]:
    """Each of the named files, open, one at a time."""
    for name in names:
        with folder.open(name) as source:
            yield source


def _reasons(removed: Path) -> dict[str, int]:
    reasons = Counter(pq.read_table(removed, columns=["reason"])["reason"].to_pylist())
    return dict(sorted(reasons.items()))


def _piece_bytes(unit: Unit) -> int:
    return sum(piece["bytes"] for piece in unit.payload["pieces"])
