"""The tables of docs/metrics.md, made from the declarations.

python -m cluster.metrics_page     writes them into the page, between its two markers
"""

from pathlib import Path

from cluster.grafana import TITLES
from cluster.metrics import METRICS, Metric, groups

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

_BEGIN = "<!-- The tables are made by `make metrics` from cluster/metrics.py. -->"
_END = "<!-- End of the tables. -->"


def tables() -> str:
    """A table for each group."""
    parts = []
    for group in groups():
        metrics = [metric for metric in METRICS if metric.group == group]
        common = [label for label in metrics[0].labels if all(label in m.labels for m in metrics)]
        labels = ", ".join(f"`{label}`" for label in common)
        parts += [f"### {TITLES[group]}", "", f"Labels: {labels}.", ""]
        parts += ["| name | at the Prometheus endpoint | unit | what it is |", "|---|---|---|---|"]
        parts += [_row(metric, common) for metric in metrics]
        parts.append("")
    return "\n".join(parts)


def with_tables(page: str) -> str:
    """The page with its tables made anew. Raises ValueError if a marker is missing."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks {_END if begin else _BEGIN}")
    return f"{head}{begin}\n\n{tables()}\n{end}{tail}"


def _row(metric: Metric, common: list[str]) -> str:
    more = [f"`{label}`" for label in metric.labels if label not in common]
    by = f", by {' and '.join(more)}" if more else ""
    kind = "" if metric.kind == "gauge" else f" ({metric.kind})"
    return f"| `{metric.name}` | `{metric.exported}`{kind} | {metric.unit} | {metric.help}{by} |"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
    print(f"wrote {PAGE}")
