"""Which documents of a corpus are taken: those with a hash of their id below the fraction of their source.

A source is known by its own name or by that of a folder above it: "web" stands for "web/2024/a.jsonl". A
document that is taken at some fraction is taken at every larger one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llm.text.identity import is_heldout

ALL = ""
"""The folder above all sources."""


def nearest(source: str, names: Collection[str]) -> str | None:
    """The one of `names` that is the source, or else the lowest folder above it; None if none is."""
    while source not in names:
        if source == ALL:
            return None
        source = source.rpartition("/")[0]
    return source


def top(source: str) -> str:
    """The highest folder of a source, or its name if it lies in none."""
    return source.partition("/")[0]


def fractions_of_shares(
    weights: Mapping[str, float], bytes_there: Mapping[str, int], sample_bytes: int
) -> dict[str, float]:
    """The fraction of each source's documents that makes a sample of about `sample_bytes`.

    With weights w and bytes B, source s gives a fraction min(1, sample_bytes · w_s / Σw / B_s).
    """
    total = sum(weights.values())
    return {
        name: min(1.0, sample_bytes * weight / total / bytes_there[name]) for name, weight in weights.items()
    }


@dataclass(frozen=True)
class Choice:
    """A choice of documents of one split."""

    split: str
    key: str
    """Choices with one key take the same documents first."""
    seed: int
    fractions: Mapping[str, float]
    """Of the documents of each source, by its name; other sources give none."""

    def source_of(self, document_id: str, split: str, source: str) -> str | None:
        """The name, among those of `fractions`, that the document is taken for; None if it is not taken."""
        if split != self.split:
            return None
        name = nearest(source, self.fractions)
        # The same hash that holds documents out, under a key of its own.
        taken = name is not None and is_heldout(f"{self.key}/{document_id}", self.seed, self.fractions[name])
        return name if taken else None
