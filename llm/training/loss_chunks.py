"""How many rows of logits exist at a time. torch is not imported: the planner counts with it too.

Each chunk reads the head and adds to its whole gradient, so few rows at a time would move more bytes than
they compute: with a vocabulary of 50,000 on a CPU, 41 rows take twice as long as 512. More than that pays no
longer, and takes memory.
"""

_CPU_ELEMENTS, _CPU_ROWS = 1 << 23, 512
"""32 MiB of logits in fp32, and rows at the least."""
_GPU_ELEMENTS, _GPU_ROWS = 1 << 28, 4096
"""512 MiB in bf16, and rows at the most."""
_MULTIPLE = 64
"""Of rows, for aligned matmuls."""


def rows_at_a_time(rows: int, padded_vocab_size: int, on_gpu: bool) -> int:
    """Of so many rows of logits, those that are made, used and forgotten together: all chunks but the last
    are equally large, and that one is hardly smaller.
    """
    if on_gpu:
        most = min(_GPU_ROWS, _GPU_ELEMENTS // padded_vocab_size)
    else:
        most = max(_CPU_ROWS, _CPU_ELEMENTS // padded_vocab_size)
    chunks = max(1, -(-rows // max(most, _MULTIPLE)))
    return -(-rows // chunks // _MULTIPLE) * _MULTIPLE or _MULTIPLE
