"""Training takes no more memory than was said before, and not much less."""

import subprocess
import sys

import pytest

from llm.tokenizer.memory import most_text, training_memory

TRAIN = """
import re, sys
from llm.text.python_stdlib import stdlib_files
from llm.tokenizer.train import train_tokenizer

def texts(left):
    for path in stdlib_files()[1]:
        text = path.read_bytes()[:left].decode(errors="ignore")
        left -= len(text.encode())
        if text:
            yield text

train_tokenizer(texts(int(sys.argv[1])), vocab_size=1_000)
# Not of getrusage: that begins with what the process had that started this one.
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
"""


def test_what_training_takes_is_below_the_bound_and_grows_more_slowly() -> None:
    sizes = 1_000_000, 4_000_000
    taken = [
        int(subprocess.run([sys.executable, "-c", TRAIN, str(size)], capture_output=True, check=True).stdout)
        for size in sizes
    ]
    bounds = [training_memory("bpe", size, 1_000) for size in sizes]
    assert all(each < bound for each, bound in zip(taken, bounds, strict=True))
    growth, bound = taken[1] - taken[0], bounds[1] - bounds[0]
    assert bound / 4 < growth < bound


@pytest.mark.parametrize("model", ["bpe", "unigram", "word", "char"])
def test_most_text_is_what_fits(model: str) -> None:
    room = 8 * 2**30
    most = most_text(model, room, 32_000)
    assert training_memory(model, most, 32_000) <= room < training_memory(model, most + 1, 32_000)
    assert most_text(model, 2**20, 32_000) == 0
