"""Counted FLOPs against torch's own count of every matmul in a forward and a backward pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.planning.flops import training_flops_per_token
from llm.planning.peak import measured_matmul_flops


@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 4}, {"tie_embeddings": False}])
def test_against_torchs_counter(change):
    config = model_config("tiny-100k", vocab_size=128, **change)
    model = Decoder(config)
    model.init_weights(seed=0)
    tokens = torch.zeros(2, 32, dtype=torch.int64)

    def attend(layer, q, k, v):
        """Attention out of plain matmuls, which the counter sees, with grouped heads repeated."""
        repeat = q.shape[2] // k.shape[2]
        q, k, v = (
            t.transpose(1, 2) for t in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2))
        )
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)

    with FlopCounterMode(display=False) as counter:
        model(tokens, pattern=lambda scoring: attend).sum().backward()
    assert training_flops_per_token(config, seq_len=32) * tokens.numel() == counter.get_total_flops()


def test_measured_peak_is_a_speed():
    torch.set_num_threads(1)
    assert 1e8 < measured_matmul_flops(torch.device("cpu"), torch.float32, size=128, seconds=0.05) < 1e14
