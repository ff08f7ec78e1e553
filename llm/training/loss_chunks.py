"""How many rows of logits exist at a time. torch is not imported: the planner counts with it too.

A chunk is as large as pays. Each reads the head and adds to its whole gradient, so few rows at a time would
move more bytes than they compute; but on a CPU all that is done to a chunk should find it in the cache.
"""

_CPU_ELEMENTS = 1 << 21
"""8 MiB in fp32, about a CPU's share of the last-level cache,"""
_CPU_ROWS = 256
"""unless that is fewer rows than these, which a large vocabulary's head takes longer to read than to use."""
_GPU_ELEMENTS = 1 << 28
"""512 MiB in bf16."""
_MULTIPLE = 64
"""Of rows, for aligned matmuls."""


def rows_at_a_time(padded_vocab_size: int, on_gpu: bool) -> int:
    """Rows of logits that are made, used and forgotten together."""
    least, elements = (_MULTIPLE, _GPU_ELEMENTS) if on_gpu else (_CPU_ROWS, _CPU_ELEMENTS)
    return max(least, elements // padded_vocab_size // _MULTIPLE * _MULTIPLE)
