"""Readers: every record once, whatever the pieces; errors that name the place."""

import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.text.readers import ReadError, format_of, read_bytes, read_jsonl, read_parquet

RECORDS = [{"text": f"line {i} " + "x" * (i % 7), "n": i} for i in range(25)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@given(
    cuts=st.lists(st.integers(1, len(LINES) - 1), unique=True, max_size=8).map(sorted), trailing=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_byte_ranges_share_the_lines_out(tmp_path_factory, cuts, trailing):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(LINES if trailing else LINES.rstrip())
    bounds = [0, *cuts, len(LINES)]
    pieces = [list(read_jsonl(path, a, b)) for a, b in itertools.pairwise(bounds)]
    located = [each for piece in pieces for each in piece]
    assert [each.record for each in located] == RECORDS
    assert [each.place for each in located] == [f"{path}:{i + 1}" for i in range(len(RECORDS))]


def test_compressed_files_in_many_frames(tmp_path):
    for name, compress in (
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
    ):
        path = tmp_path / name
        path.write_bytes(compress(LINES[:100]) + compress(LINES[100:]))
        assert [each.record for each in read_jsonl(path)] == RECORDS
        assert read_bytes(path) == LINES
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ReadError, match=rf"{name}: cannot be decompressed"):
            list(read_jsonl(path))


def test_bad_lines_are_named_in_any_piece(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(LINES + b"\n[1]\n" + b"{oops\n")
    with pytest.raises(ReadError, match=r"bad\.jsonl:27: a list, where a JSON object"):
        list(read_jsonl(path))
    with pytest.raises(ReadError, match=r"bad\.jsonl:28: not a JSON value: Expecting property name"):
        list(read_jsonl(path, len(LINES) + 3))


def test_parquet_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=10)
    assert [each.record for each in read_parquet(path)] == RECORDS
    second = list(read_parquet(path, ["n"], first=1, last=2))
    assert [each.record for each in second] == [{"n": i} for i in range(10, 20)]
    assert second[3].place == f"{path} row 13"
    with pytest.raises(ReadError, match="no column body; there is text, n"):
        list(read_parquet(path, ["body"]))
    (tmp_path / "b.parquet").write_bytes(b"nonsense")
    with pytest.raises(ReadError, match=r"b\.parquet: not a Parquet file"):
        list(read_parquet(tmp_path / "b.parquet"))


def test_format_by_name(tmp_path):
    names = {
        "a.txt": "text",
        "a.py.gz": "text",
        "A.JSONL.ZST": "jsonl",
        "x.tar.parquet": "parquet",
        "a.bin": None,
    }
    assert {name: format_of(tmp_path / name) for name in names} == names
    assert format_of(tmp_path / "README") is None
