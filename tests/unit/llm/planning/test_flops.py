"""Counted FLOPs against torch's own count of every matmul in a forward and a backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llm.models.attention import Attend, Scoring
from llm.models.load import LANGUAGE_MODELS
from llm.models.presets import model_config
from llm.planning.flops import training_flops_per_token
from llm.planning.peak import measured_matmul_flops

SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "d_ff": 48, "max_seq_len": 64}


def with_plain_matmuls(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
    """Attention of (batch, heads, places, head_dim) that the counter sees, with grouped heads repeated."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def counted(config, seq_len: int, *inputs: Tensor, **arguments) -> float:
    """FLOPs for each token of `seq_len`, two rows of which go through the model."""
    model = LANGUAGE_MODELS[config.family](config)
    model.init_weights(seed=0)
    with FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(2, seq_len, dtype=torch.int64)
        model(*inputs, tokens, **arguments).sum().backward()
    return counter.get_total_flops() / (2 * seq_len)


@pytest.mark.parametrize(
    "preset, change",
    [
        ("llama3-8b", {"n_kv_heads": 2}),
        ("llama3-8b", {"n_kv_heads": 1, "head_dim": 24, "tie_embeddings": True, "qk_norm": True}),
        ("mixtral-8x7b", {"n_experts": 5, "experts_per_token": 3}),
        ("gpt2", {}),
        ("bert-base", {}),
    ],
)
def test_against_torchs_counter(monkeypatch, preset, change):
    monkeypatch.setattr(F, "scaled_dot_product_attention", with_plain_matmuls)
    config = model_config(preset, vocab_size=128, **SMALL | change)
    assert training_flops_per_token(config, seq_len=40) == counted(config, 40)


def test_only_tokens_with_a_target_meet_an_encoders_head(monkeypatch):
    """A quarter of them, each of which bears what four cost before the head."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", with_plain_matmuls)
    config = model_config("bert-base", vocab_size=1024, **SMALL)

    def readout(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(hidden[:, ::4], weight, bias)

    expected = 4 * counted(config, 40, readout=readout)
    assert training_flops_per_token(config, seq_len=40, predicted=0.25) == expected


@pytest.mark.parametrize("preset", ["transformer-base", "t5-small", "t5-v1.1-small"])
@pytest.mark.parametrize("input_len", [20, 56])
def test_an_output_token_bears_its_share_of_the_encoder(monkeypatch, preset, input_len):
    monkeypatch.setattr(F, "scaled_dot_product_attention", with_plain_matmuls)
    config = model_config(preset, vocab_size=128, **SMALL | {"n_encoder_layers": 3, "head_dim": 12})
    inputs = torch.zeros(2, input_len, dtype=torch.int64)
    expected = counted(config, 40, inputs)
    assert training_flops_per_token(config, seq_len=40, input_len=input_len) == pytest.approx(expected)


def test_a_window_has_so_many_keys():
    """Each query with the keys of its window alone, among them those before the beginning."""
    config = model_config("tiny-100k", vocab_size=128, sliding_window=6)

    def pattern(scoring: Scoring) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (
                F.pad(x.repeat_interleave(q.shape[2] // x.shape[2], 2), (0, 0, 0, 0, 5, 0)).unfold(1, 6, 1)
                for x in (k, v)
            )
            return ((q.unsqueeze(-2) @ k).softmax(-1) @ v.transpose(-1, -2)).squeeze(-2)

        return attend

    assert training_flops_per_token(config, seq_len=32) == counted(config, 32, pattern=pattern)


def test_measured_peak_is_a_speed():
    torch.set_num_threads(1)
    assert 1e8 < measured_matmul_flops(torch.device("cpu"), torch.float32, size=128, seconds=0.05) < 1e14
