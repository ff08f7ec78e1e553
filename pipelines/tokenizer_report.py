"""A tokenizer's report, as people read it."""

import json
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.inspect.format import format_bytes

REPORT_FILE = "report.json"

_ROWS = 12
_EXAMPLES = 8
_CHARACTERS = 40
"""Shown of a name or a piece."""


def readable(report: dict[str, Any]) -> Iterator[RenderableType]:
    """What to print of the content of `report.json`."""
    if report["sample"]["sources"]:
        yield _sampled(report["sample"]["sources"])
        yield ""
    yield _measured(report)
    yield ""
    unused = _pieces(report["unused_examples"])
    share = f"{report['unused_pieces']:,} of {report['pieces']:,} pieces"
    yield Text(f"not used: {share}{f', such as {unused}' if unused else ''}")
    yield Text(f"longest: {_pieces(report['longest_pieces'])}")


def _sampled(sources: list[dict[str, Any]]) -> Table:
    table = _table("trained on", "weight", "text there", "text taken", "documents")
    for row in sources:
        sizes = format_bytes(row["bytes_there"]), format_bytes(row["bytes"])
        table.add_row(Text(_short(row["source"])), f"{row['weight']:g}", *sizes, f"{row['documents']:,}")
    return table


def _measured(report: dict[str, Any]) -> Table:
    narrow = "bytes/\ntoken", "tokens/\nword", "byte\ntokens", "do not\ncome back"
    table = _table(report["measured_on"], "documents", "text", *narrow)
    table.add_row("all", *_cells(report["total"]))
    for title, rows in (("source", report["sources"]), ("language", report["languages"])):
        for row in rows[:_ROWS]:
            name = f"{row['others']} other {title}s" if row[title] is None else f"{title} {row[title]}"
            table.add_row(Text(_short(name)), *_cells(row))
        if len(rows) > _ROWS:
            table.add_row(f"… more in {REPORT_FILE}")
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    share = row["byte_token_share"]
    return (
        f"{row['documents']:,}",
        format_bytes(row["bytes"]),
        _number(row["bytes_per_token"]),
        _number(row["fertility"]),
        "–" if share is None else f"{share:.2%}",
        f"{row['round_trip_failures']:,}",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _pieces(pieces: list[str]) -> str:
    return "  ".join(_short(json.dumps(piece, ensure_ascii=False)) for piece in pieces[:_EXAMPLES])


def _short(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
