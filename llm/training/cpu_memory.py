"""Memory of a step on a CPU that is kept for the next one.

glibc gives large tensors back to the system as they are freed, and gets them anew, page by page and zeroed,
in every step: 10 to 15 % of a step of 10 million parameters in bf16. A training step needs the same memory
again and again, so its process keeps it.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
_HEAP = 2**26
"""Bytes of a heap, of which threads other than the first have several. One that is empty goes back to the
system unless as much is to be left over.
"""
_NEVER, _LARGEST = -1, (2**30, 2**25)  # glibc before 2.35 takes no more than 32 MiB


def keep_freed_memory() -> None:
    """Let this process keep what it frees for as long as it lives: tensors below 1 GiB, and those of threads
    other than the first below 64 MiB, the most that glibc keeps for these at a time.

    With any other library than glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST):
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_TOP_PAD, _HEAP)
