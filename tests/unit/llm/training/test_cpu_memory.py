"""Whether a process asks the system for the same memory again."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, threading, torch
from llm.training.cpu_memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    held = [torch.ones(10_000_000) for _ in range(4)]

def count():
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

threading.Thread(target=count).start()  # as Ray Train's workers train
"""


def faults(how: str) -> int:
    """Pages that the system gives for five steps, after some others."""
    command = [sys.executable, "-c", STEPS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_a_step_frees_the_next_one_has() -> None:
    assert faults("kept") < 2000 < faults("as it is")
