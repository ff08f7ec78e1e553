"""How the `manta` command is typed in this working directory."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def invocation() -> str:
    """What the user types before a stage's name, to run the Manta that runs now.

    `manta` if that is what the shell finds; else the path of the script, relative if it lies below this
    directory, as `.venv/bin/manta` does; or Python and the module if Manta was started so.
    """
    script = Path(sys.argv[0]).absolute()
    if script.name != "manta":
        return f"{_typed(Path(sys.executable))} -m pipelines.cli"
    found = shutil.which("manta")
    if found is not None and Path(found).absolute() == script:
        return "manta"
    return _typed(script)


def _typed(path: Path) -> str:
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
