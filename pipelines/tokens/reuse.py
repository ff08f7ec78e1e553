"""Shards that an earlier version of the same name has already: after new text has come, only that is encoded.

A unit's id, which its shards' names carry, says all that they depend on: the piece of the corpus, by the
checksum of its file, the tokenizer, and the code. So a shard whose name is known is known.
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.fingerprint import fingerprint
from cluster.artifacts.manifest import Artifact
from llm.data.shards import SHARDS_FILE, shards_of
from pipelines.corpus_pieces import CorpusPiece
from pipelines.units import Unit

PREFIX = "encode-"
_ID_LENGTH = 12
_THREADS = 16


def encoding_units(
    corpus: Artifact, pieces: list[CorpusPiece], tokenizer: Artifact, logic_version: int
) -> list[Unit]:
    """A unit for each piece of the corpus, in order. Pieces of equal content are told apart by number."""
    units, seen = [], Counter[str]()
    for piece in pieces:
        what = {"rows": [piece.first, piece.last], "file": corpus.files[piece.file]["sha256"]}
        inputs = {"tokenizer": tokenizer.fingerprint}
        identity = fingerprint("encode", logic_version, what, inputs)[:_ID_LENGTH]
        seen[identity] += 1
        again = f".{seen[identity]}" if seen[identity] > 1 else ""
        units.append(Unit(f"{PREFIX}{identity}{again}", vars(piece)))
    return units


def take_over(draft: Draft, units: list[Unit], earlier: Artifact) -> int:
    """Give the draft the shards of units that `earlier`, finished tokens, has; returns how many units.

    On a disk the files are the same ones under two names, in a bucket they are copied there; their checksums
    are those of the manifest that they come from.

    Raises UserError or ValueError if `earlier` is damaged or of an old form.
    """
    known, done = _shards_by_unit(earlier), draft.ledger.done()
    wanted = [unit.id for unit in units if unit.id in known and unit.id not in done]

    def take(unit: str) -> None:
        shards = [shard["file"] for split in known[unit].values() for shard in split]
        names = [name for file in shards for name in (file, str(PurePosixPath(file).with_suffix(".idx")))]
        for name in names:
            draft.folder.storage.copy(earlier.folder.key(name), draft.folder.key(name))
        files = {name: earlier.files[name] for name in names}
        draft.ledger.commit(unit, {"files": files, "shards": known[unit]})

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(take, wanted))
    return len(wanted)


def _shards_by_unit(tokens: Artifact) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Unit id → split → its shards, as a unit's record has them."""
    content = json.loads(tokens.read(SHARDS_FILE))
    checksums = {name: entry["sha256"] for name, entry in tokens.files.items()}
    units: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split in content["splits"]:
        for shard in shards_of(content, split, checksums):
            unit = PurePosixPath(shard.file).stem.removeprefix("part-").rpartition("-")[0]
            of_unit = units.setdefault(f"{PREFIX}{unit}", {each: [] for each in content["splits"]})
            of_unit[split].append(asdict(shard))
    return units
