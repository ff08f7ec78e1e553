"""How the loops of this package are compiled, and where the machine code is kept.

numba looks at the age of one file to know whether its machine code is stale, and not at the files whose
functions it calls. So the machine code lies in a folder named after the content of all files here.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # No folder can be written to: each process compiles for itself.
        return numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before


def _machine_code_folder() -> str:
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(caches / "manta" / "compiled" / hashlib.sha256(sources).hexdigest()[:16])


_FOLDER = _machine_code_folder()
