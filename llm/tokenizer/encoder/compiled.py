"""How the loops of this package are compiled, and where the machine code is kept.

numba takes machine code for stale when the file of a function has changed, and does not look at the files
whose functions it calls. So the machine code lies in a folder named after the content of all files here, and
after the processor and the versions that it was made for.
"""

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code, made on its first call with each type of arguments and kept on disk.

    It makes no arrays, and uses those that the caller keeps alive: references are not counted, which would
    take most of the time of functions as short as these. Beware: an int and a np.uint64 make a float.
    """
    return _compiled(function, _nrt=False)


def allocating(function: Function) -> Function:
    """As `compiled`, for a function that makes arrays of its own."""
    return _compiled(function)


@contextmanager
def compiling_alone() -> Iterator[None]:
    """While no other process of this machine compiles: numba's index of machine code knows no two writers."""
    if _FOLDER is None:
        yield
        return
    with open(_FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def was_compiled(module: str) -> bool:
    """Whether functions of a module of this package have machine code on this machine's disk."""
    return _FOLDER is not None and next(_FOLDER.rglob(f"{module}.*.nbi"), None) is not None


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy", "cache": _FOLDER is not None}
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_FOLDER or before)
    try:
        return numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before


def _machine_code_folder() -> Path | None:
    """None where nothing can be written to: then each process compiles for itself."""
    made_for = [
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
        numba.__version__,
        sys.version,
    ]
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    name = hashlib.sha256(b"".join([*sources, *map(str.encode, made_for)])).hexdigest()[:16]
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "manta" / "compiled" / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


_FOLDER = _machine_code_folder()
