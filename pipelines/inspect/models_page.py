"""The table of presets in docs/models.md: ``python -m pipelines.inspect.models_page`` writes it."""

from pathlib import Path

from llm.models.presets import PRESETS
from pipelines.inspect.models import COLUMNS, facts, row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"

_BEGIN = "<!-- The table is made by `python -m pipelines.inspect.models_page` from llm/models/presets.py. -->"
_END = "<!-- End of the table. -->"


def with_table(page: str) -> str:
    """The page with its table made anew. Raises ValueError if a marker is missing."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks {_END if begin else _BEGIN}")
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)] + [row(facts(name)) for name in PRESETS]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
    print(f"wrote {PAGE}")
