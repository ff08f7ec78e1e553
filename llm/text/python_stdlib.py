"""The source of the running Python's standard library: a corpus of some 11 MB that every machine has."""

import sysconfig
from pathlib import Path

_LEFT_OUT = {"test", "tests", "idle_test", "pydoc_data", "site-packages", "__pycache__"}


def stdlib_files() -> tuple[Path, list[Path]]:
    """The library's root and its .py files in sorted order, without tests and installed packages.

    Nor pydoc's topics: they are one file of generated prose, larger than any other, and decide what held-out
    text is like by the side of the split that they fall on.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if not _LEFT_OUT.intersection(path.relative_to(root).parts)]
    return root, sorted(files)
