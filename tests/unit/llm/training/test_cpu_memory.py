"""Whether a process asks the system for the same memory again."""

import subprocess
import sys

import pytest

STEPS = """
import ctypes, resource, sys, torch
from llm.training.cpu_memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(10):
    torch.ones(40_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(40_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system gives while 160 MB are taken and freed five times, after some other times."""
    command = [sys.executable, "-c", STEPS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_a_step_frees_the_next_one_has() -> None:
    assert faults("kept") < 1000 < faults("as it is")
