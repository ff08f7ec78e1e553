"""Shards that an earlier version of the same name has already: after new text has come, only that is encoded.

A unit's id, which its shards' names carry, says all that they depend on: the piece of the corpus, by the
checksum of its file, the tokenizer's model, and the code. So a shard whose name is known is known.
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.fingerprint import fingerprint
from cluster.artifacts.folder import describe
from cluster.artifacts.manifest import Artifact
from llm.data.shards import SHARDS_FILE, shards_of
from pipelines.corpus_pieces import CorpusPiece
from pipelines.tokenizer_artifact import file_of
from pipelines.units import Unit

PREFIX = "encode-"
_ID_LENGTH = 12
_THREADS = 16

Shards = dict[str, dict[str, list[dict[str, Any]]]]


def encoding_units(
    corpus: Artifact, pieces: list[CorpusPiece], tokenizer: Artifact, logic_version: int
) -> list[Unit]:
    """A unit for each piece of the corpus, in order. Pieces of equal content are told apart by number."""
    model = tokenizer.files[file_of(tokenizer)]["sha256"]
    units, seen = [], Counter[str]()
    for piece in pieces:
        what = {"rows": [piece.first, piece.last], "file": corpus.files[piece.file]["sha256"]}
        identity = fingerprint("encode", logic_version, what, {"model": model})[:_ID_LENGTH]
        seen[identity] += 1
        again = f".{seen[identity]}" if seen[identity] > 1 else ""
        units.append(Unit(f"{PREFIX}{identity}{again}", vars(piece)))
    return units


def take_over(draft: Draft, units: list[Unit], earlier: Artifact, known: Shards) -> tuple[int, int]:
    """Give the draft the shards of units that `earlier`, finished tokens, has.

    On a disk the files are the same ones under two names, and are compared with their checksums first; in a
    bucket they are copied there, and sizes are compared.

    Returns how many units it took over, and how many it left because a file of theirs is damaged.
    """
    found, done = earlier.folder.files(), draft.ledger.done()
    wanted = [unit.id for unit in units if unit.id in known and unit.id not in done]

    def is_whole(name: str) -> bool:
        local, entry = earlier.folder.local, earlier.files[name]
        return found.get(name) == entry["bytes"] and (local is None or describe(local / name) == entry)

    def take(unit: str) -> bool:
        draft.ticket.check()
        shards = [shard["file"] for split in known[unit].values() for shard in split]
        names = [name for file in shards for name in (file, str(PurePosixPath(file).with_suffix(".idx")))]
        try:
            if not all(map(is_whole, names)):
                return False
            for name in names:
                draft.folder.storage.copy(earlier.folder.key(name), draft.folder.key(name))
        except FileNotFoundError:  # removed at this moment
            return False
        files = {name: earlier.files[name] for name in names}
        draft.ledger.commit(unit, {"files": files, "shards": known[unit]})
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        taken = sum(pool.map(take, wanted))
    return taken, len(wanted) - taken


def shards_by_unit(tokens: Artifact) -> Shards:
    """Unit id → split → its shards, as a unit's record has them.

    Raises UserError or ValueError if `shards.json` is damaged or of an old form.
    """
    content = json.loads(tokens.read(SHARDS_FILE))
    checksums = {name: entry["sha256"] for name, entry in tokens.files.items()}
    units: Shards = {}
    for split in content["splits"]:
        for shard in shards_of(content, split, checksums):
            unit = PurePosixPath(shard.file).stem.removeprefix("part-").rpartition("-")[0]
            of_unit = units.setdefault(f"{PREFIX}{unit}", {each: [] for each in content["splits"]})
            of_unit[split].append(asdict(shard))
    return units
