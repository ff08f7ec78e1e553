"""The precision that a run gets when nobody asked for one."""

import pytest
import torch

from llm.planning.peak import measured_matmul_flops
from llm.training import precision
from llm.training.precision import PrecisionError, choose_precision, keep_precision

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


@pytest.mark.parametrize("native", [True, False])
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(native, monkeypatch):
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
    assert keep_precision("auto", "fp32", CPU) == "fp32"
    assert keep_precision("auto", None, CPU) == ("bf16" if native else "fp32"), "nothing is known: as new"
    assert keep_precision("bf16", "bf16", CPU) == "bf16", "who asks for it gets it, however slow"
    if native:
        assert keep_precision("auto", "bf16", CPU) == "bf16"
    else:
        with pytest.raises(PrecisionError, match=r"in bf16, which .* would use fp32"):
            keep_precision("auto", "bf16", CPU)
