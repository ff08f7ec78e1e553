"""Second step: find duplicates within one range of hashes, over all units.

Equal documents have equal ids and meet in one range. The first stays: by unit, then by row, which is the
order of the sources' names. So the choice depends on nothing but the input.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.artifacts.folder import Folder
from pipelines.corpus.work_files import WORK, duplicates_file, index_file

DUPLICATES = pa.schema([("unit", pa.int32()), ("row", pa.int64())])


class DedupWorker:
    """Runs in an actor; holds the ids of one range in memory: 28 bytes a document."""

    def __init__(self, work: Folder, units: Sequence[str], units_read: str) -> None:
        self._work, self._units, self._units_read = work, units, units_read

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        hash_range: int = payload["range"]
        ids, units, rows = self._read(hash_range)
        # return_index names the first of equal elements, and the units were read in order.
        _, first = np.unique(ids, return_index=True)
        is_duplicate = np.ones(len(ids), dtype=bool)
        is_duplicate[first] = False

        arrays = [pa.array(units[is_duplicate]), pa.array(rows[is_duplicate])]
        with self._work.writing() as writing:
            path = writing.path / duplicates_file(hash_range, self._units_read)
            path.parent.mkdir(parents=True)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, DUPLICATES) as writer:
                writer.write_batch(pa.record_batch(arrays, schema=DUPLICATES))
        return {"duplicates": int(is_duplicate.sum()), "files": writing.files_below(WORK)}

    def _read(self, hash_range: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (n,) of 16 bytes, units (n,) int32, rows (n,) int64, in order of unit and row."""
        ids, units, rows = [], [], []
        for unit in self._units:
            with self._work.open(index_file(unit)) as source:
                batch = pa.ipc.open_file(source).get_batch(hash_range)
                ids.append(_as_numpy(batch["id"]))
                rows.append(batch["row"].to_numpy().copy())
            units.append(np.full(batch.num_rows, int(unit), dtype=np.int32))
        return np.concatenate(ids), np.concatenate(units), np.concatenate(rows)


def _as_numpy(ids: pa.FixedSizeBinaryArray) -> np.ndarray:
    """(n,) S16: a copy of the array's bytes. Equal as S16 is equal in all 16 bytes."""
    if len(ids) == 0:
        return np.empty(0, dtype="S16")
    return np.frombuffer(ids.buffers()[1], dtype="S16", count=len(ids), offset=16 * ids.offset).copy()
