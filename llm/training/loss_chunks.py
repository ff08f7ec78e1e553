"""How many rows of logits exist at a time. torch is not imported: the planner counts with it too.

Each chunk reads the head and adds to its whole gradient, so few rows at a time would move more bytes than
they compute: with a vocabulary of 50,000 on a CPU, 41 rows take twice as long as 512. More than that pays no
longer, and takes memory.
"""

_CPU_ELEMENTS, _CPU_ROWS = 1 << 23, 512
"""32 MiB of logits in fp32, and rows at the least."""
_GPU_ELEMENTS = 1 << 28
"""512 MiB in bf16."""
_MULTIPLE = 64
"""Of rows, for aligned matmuls."""


def rows_at_a_time(padded_vocab_size: int, on_gpu: bool) -> int:
    """Rows of logits that are made, used and forgotten together."""
    elements, least = (_GPU_ELEMENTS, _MULTIPLE) if on_gpu else (_CPU_ELEMENTS, _CPU_ROWS)
    return max(least, elements // padded_vocab_size // _MULTIPLE * _MULTIPLE)
