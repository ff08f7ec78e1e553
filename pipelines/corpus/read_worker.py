"""First step: read a unit's pieces, normalise, filter, and index the ids by hash range."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.artifacts.folder import Folder
from llm.text.identity import hash_range
from llm.text.source import Source
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.documents import Removed, documents
from pipelines.corpus.tables import REMOVED, RowWriter, schema, text_bytes
from pipelines.corpus.work_files import WORK, documents_file, index_file, removed_file

INDEX = pa.schema([("id", pa.binary(16)), ("row", pa.int64())])


class ReadWorker:
    """Runs in an actor; a unit's record has the number of documents it passed on."""

    def __init__(
        self,
        config: CorpusConfig,
        files: Sequence[Source],
        work: Folder,
        ranges: int,
        row_group_bytes: int,
    ) -> None:
        self._config, self._files, self._work = config, files, work
        self._ranges, self._row_group_bytes = ranges, row_group_bytes

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        unit = unit_id.removeprefix("read-")
        rows_schema = schema(self._config.holds_conversations)
        index: list[tuple[list[bytes], list[int]]] = [([], []) for _ in range(self._ranges)]
        rows = 0
        with (
            self._work.writing() as writing,
            RowWriter(writing.path / documents_file(unit), rows_schema, self._row_group_bytes) as kept,
            RowWriter(writing.path / removed_file(unit, "read"), REMOVED, self._row_group_bytes) as removed,
        ):
            for piece in payload["pieces"]:
                for document in documents(self._files[piece["file"]], piece, self._config):
                    if isinstance(document, Removed):
                        removed.add({**vars(document), "kept_id": None}, size=0)
                        continue
                    kept.add(document, text_bytes(document))
                    ids, places = index[hash_range(document["id"], self._ranges)]
                    ids.append(bytes.fromhex(document["id"]))
                    places.append(rows)
                    rows += 1
            _write_index(writing.path / index_file(unit), index)
        return {"documents": rows, "files": writing.files_below(WORK)}


def _write_index(path: Path, index: list[tuple[list[bytes], list[int]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, INDEX) as writer:
        for ids, places in index:
            arrays = [pa.array(ids, type=pa.binary(16)), pa.array(places, type=pa.int64())]
            writer.write_batch(pa.record_batch(arrays, schema=INDEX))
