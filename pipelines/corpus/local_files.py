"""Raw inputs on a disk: a file, what a folder holds, or what a glob matches."""

import glob
from pathlib import Path

from cluster.errors import UserError
from llm.text.readers import format_of


def find_local(argument: str, is_one_of_many: bool) -> list[tuple[Path, str]]:
    """(path, source) of each file that `argument` stands for. Raises UserError if there is none."""
    path = Path(argument).expanduser().absolute()
    if path.is_file():
        return [(path, path.name)]
    if path.is_dir():
        inside = [
            each
            for each in path.rglob("*")
            if each.is_file() and format_of(each) and not _is_hidden(each.relative_to(path))
        ]
        prefix = Path(path.name) if is_one_of_many else Path()  # folders may hold files of one name
        return [(each, str(prefix / each.relative_to(path))) for each in inside]
    matches = [Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file()]
    if not matches:
        raise UserError(f"--paths {argument}: there is no such file or folder, and the glob matches nothing")
    root = _fixed_part(path)
    return [(each, str(each.relative_to(root))) for each in matches]


def _fixed_part(pattern: Path) -> Path:
    """The folders before the first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[1:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
