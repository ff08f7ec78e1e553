"""The precision that a run gets when nobody asked for one."""

import pytest
import torch
import torch.distributed as dist

from llm.models.load import build
from llm.models.presets import model_config
from llm.planning.peak import measured_matmul_flops
from llm.training import precision
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.precision import PrecisionError, choose_precision, compute_in, keep_precision

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


@pytest.mark.parametrize("preset", ["tiny-100k", "t5-tiny", "bert-tiny"])
@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
@torch.no_grad()
def test_a_whole_model_computes_as_one_that_was_sharded(preset, wanted):
    config = model_config(preset, vocab_size=64)
    tokens = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
    whole, sharded = build(config), build(config)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard(sharded, data_mesh(CPU), wanted)
        compute_in(whole, wanted)
        for model in (whole, sharded):
            model.to_empty(device="cpu")
        sharded.init_weights(seed=1)
        whole.load_state_dict(gather_weights(sharded))
        given = (tokens, tokens) if config.family == "encoder-decoder" else (tokens,)
        expected = sharded(*given)
    finally:
        dist.destroy_process_group()
    assert expected.dtype == (torch.bfloat16 if wanted == "bf16" else torch.float32)
    assert torch.equal(whole(*given), expected)
