"""What a run needs grows with what it is asked for, and what is offered in place of it fits."""

from dataclasses import replace

import pytest

from llm.models.lora import adapter_count
from llm.models.lora_config import LoraConfig
from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from llm.planning.fit import Demand
from llm.planning.memory import Step, training_memory

CONFIG = model_config("llama-125m")
STEP = Step(micro_batch=16, seq_len=1024, micro_batches=2)


def test_averages_copies_and_adapters_count() -> None:
    plain, parameters = Demand(CONFIG, STEP), parameter_count(CONFIG)
    assert plain.needed == training_memory(CONFIG, STEP).peak
    assert replace(plain, averaged=True).needed - plain.needed == 4 * parameters
    assert replace(plain, copied=True).needed - plain.needed == 12 * parameters
    both = replace(plain, averaged=True, copied=True)
    assert both.needed - plain.needed == (4 + 12 + 4) * parameters

    trained = adapter_count(CONFIG, LoraConfig(rank=16))
    adapted = Demand(CONFIG, STEP, trained=trained)
    assert plain.needed - adapted.needed == (8 + 4) * (parameters - trained)
    assert replace(adapted, copied=True).needed - adapted.needed == 12 * trained


@pytest.mark.parametrize("part", [0.9, 0.7, 0.5, 0.35, 0.2])
def test_each_mend_fits(part: float) -> None:
    demand = Demand(CONFIG, STEP, averaged=True)
    room = int(part * demand.needed)
    mends = demand.mends(room, more_ranks=True)
    assert mends
    for mend in mends:
        flags = mend.split()
        told = dict(zip(flags[::2], flags[1::2], strict=True))
        ranks = int(told.get("--workers", 1))
        rows = STEP.micro_batch * STEP.micro_batches // ranks
        size = min(rows, int(told.get("--micro-batch", STEP.micro_batch)))
        step = replace(
            STEP,
            micro_batch=size,
            micro_batches=rows // size,
            checkpointing="--activation-checkpointing" in told,
            ranks=ranks,
        )
        assert replace(demand, step=step).needed <= room, mend
    assert not any("--workers" in mend for mend in demand.mends(room, more_ranks=False))


def test_nothing_is_offered_where_nothing_helps() -> None:
    weights = 16 * parameter_count(CONFIG)
    assert Demand(CONFIG, STEP).mends(weights // 2, more_ranks=False) == []
    assert Demand(CONFIG, STEP).mends(1000, more_ranks=True) == []
