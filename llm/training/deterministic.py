"""The same bits from the same run, on a GPU too."""

import os

import torch


def use_deterministic_algorithms() -> None:
    """Let torch use only algorithms that add in the same order every time; call it before any work on a GPU.

    An operation that has no such algorithm then raises RuntimeError with its name. On a CPU nothing changes:
    a run there repeats itself bit for bit on the same number of threads as it is.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which times algorithms and takes now one, now another
