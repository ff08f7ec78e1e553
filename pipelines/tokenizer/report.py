"""The tokenizer's report out of the records of its units."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llm.tokenizer.report import COUNTED, piece_facts, ratios
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.tokenizer.report_worker import UNKNOWN

ROWS = 100
"""Sources (and languages) that the report lists by themselves, those with most text."""
EXAMPLES = 20


def report(tokenizer: Tokenizer, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of the records, as plain JSON. They are the same however the documents were dealt to units."""
    sources: dict[str, np.ndarray] = {}
    languages: dict[str, np.ndarray] = {}
    used = np.zeros(tokenizer.vocab_size, dtype=bool)
    for record in records:
        for sums, parts in ((sources, record["sources"]), (languages, record["languages"])):
            for name, counts in parts.items():
                sums[name] = sums.get(name, 0) + np.array(counts, dtype=np.int64)
        used[record["used"]] = True
    pieces = piece_facts(tokenizer, used)
    return {
        "round_trip": "exact" if tokenizer.is_lossless else "of the normalised text",
        "total": ratios(_sum(sources.values())),
        "sources": _rows("source", sources),
        "languages": _rows("language", languages) if languages.keys() - {UNKNOWN} else [],
        "pieces": pieces.pieces,
        "unused_pieces": len(pieces.unused),
        "unused_examples": pieces.unused[:EXAMPLES],
        "longest_pieces": pieces.longest[:EXAMPLES],
    }


def _rows(title: str, sums: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row each for those with most bytes, and one without a name for all others together."""
    by_size = sorted(sums, key=lambda name: (-sums[name][COUNTED.index("bytes")], name))
    rows: list[dict[str, Any]] = [{title: name, **ratios(sums[name])} for name in by_size[:ROWS]]
    rest = by_size[ROWS:]
    if rest:
        rows.append({title: None, "others": len(rest), **ratios(_sum(sums[name] for name in rest))})
    return rows


def _sum(counts: Iterable[np.ndarray]) -> np.ndarray:
    return sum(counts, start=np.zeros(len(COUNTED), dtype=np.int64))
