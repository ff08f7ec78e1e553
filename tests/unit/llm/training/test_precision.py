"""The precision that a run gets when nobody asked for one."""

import pytest
import torch

from llm.planning.peak import measured_matmul_flops
from llm.training.precision import choose_precision

CPU = torch.device("cpu")


def test_auto_never_takes_the_much_slower_type():
    speed = {
        "bf16": measured_matmul_flops(CPU, torch.bfloat16, size=256, seconds=0.25),
        "fp32": measured_matmul_flops(CPU, torch.float32, size=256, seconds=0.25),
    }
    chosen = choose_precision("auto", CPU)
    assert speed[chosen] > 0.5 * max(speed.values())


@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
def test_what_is_asked_for_is_taken(wanted):
    assert choose_precision(wanted, CPU) == wanted
