"""How many rows of logits exist at a time, and what a loss in such chunks holds. torch is not imported: the
planner counts with it too.

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


def loss_bytes(rows: int, d_model: int, padded_vocab_size: int, itemsize: int, on_gpu: bool) -> int:
    """The most that `summed_cross_entropy` holds of so many rows. It keeps the gradients of the hidden states
    and, in fp32, of the head.

    forward    a chunk of logits in fp32; in bf16 also their gradients and, on a CPU, the product that is
               added to the head's gradient
    backward   both gradients again, scaled

    Args:
        itemsize: bytes of an activation, 2 or 4.
    """
    hidden, head = rows * d_model * itemsize, d_model * padded_vocab_size
    chunk = min(rows, rows_at_a_time(rows, padded_vocab_size, on_gpu)) * padded_vocab_size
    cast = itemsize if itemsize == 2 else 0
    forward = hidden + (4 if on_gpu else 4 + cast) * head + (4 + cast) * chunk
    backward = 2 * hidden + (4 + 4 + cast) * head
    return max(forward, backward)
