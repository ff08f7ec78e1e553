"""The table of rankings, whoever ranked: a program or a person.

One row a prompt and reviewer: the prompt as messages and as the ids the model saw, K responses, and their
ranks.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RESPONSE = pa.struct(
    [("text", pa.string()), ("token_ids", pa.list_(pa.int32())), ("finish_reason", pa.string())]
)
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.list_(MESSAGE)),
        ("prompt_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(RESPONSE)),
        ("ranks", pa.list_(pa.int32())),  # 1 is best; equal is a tie: 1, 2, 2, 4
        ("reviewer", pa.string()),
        ("split", pa.string()),
    ]
)


TABLE = "preferences.parquet"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` whole or not at all, as zstd Parquet in row groups small enough to page through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd", row_group_size=1024)
    partial.replace(path)
