"""Position encodings against transformers' own, and against their formulas."""

import math

import pytest
import torch

from llm.models.positions.alibi import alibi_bias, alibi_slopes
from llm.models.positions.relative import RelativeBias, relative_buckets
from llm.models.positions.rope import rope_frequencies
from llm.models.positions.sinusoidal import sinusoids
from llm.models.presets import model_config


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (None, {"rope_type": "default"}),
        (
            {"kind": "linear", "factor": 4, "original_max_seq_len": 64},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {"kind": "llama3", "factor": 8, "original_max_seq_len": 256},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        ),
        (
            {
                "kind": "yarn",
                "factor": 4,
                "original_max_seq_len": 512,
                "low_frequency": 1,
                "high_frequency": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        ),
    ],
)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rotary_frequencies_are_those_of_transformers(ours, theirs, theta):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = model_config(
        "tiny-100k", 500, head_dim=64, rope_theta=theta, rope_scaling=ours, max_seq_len=2048
    )
    llama = transformers.LlamaConfig(
        head_dim=64, max_position_embeddings=2048, rope_parameters=theirs | {"rope_theta": theta}
    )
    reference = LlamaRotaryEmbedding(llama)
    frequencies, magnitude = rope_frequencies(config)
    torch.testing.assert_close(frequencies, reference.inv_freq, rtol=1e-6, atol=0)
    assert magnitude == pytest.approx(reference.attention_scaling)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("buckets, longest", [(32, 128), (8, 20)])
def test_relative_buckets_are_those_of_t5(both_ways, buckets, longest):
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-400, 401)
    theirs = T5Attention._relative_position_bucket(distances, both_ways, buckets, longest)
    assert torch.equal(relative_buckets(distances, buckets, longest, both_ways), theirs)


def test_a_relative_bias_is_its_bucket_of_the_table():
    config = model_config("tiny-100k", 500, position="relative")
    bias = RelativeBias(config, both_ways=False)
    torch.nn.init.normal_(bias.weight)
    made = bias(6)
    for distance in range(-5, 6):
        bucket = relative_buckets(torch.tensor(distance), 32, 128, False)
        assert torch.equal(made[:, distance + 5], bias.weight[bucket])


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(16).tolist() == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])
    twelve = [2.0**-n for n in range(1, 9)] + [2 ** (-n / 2) for n in (1, 3, 5, 7)]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve)
    assert alibi_bias(8, 4)[2].tolist() == [-0.375, -0.25, -0.125, 0, -0.125, -0.25, -0.375]


def test_sinusoids_are_the_formula():
    made = sinusoids(torch.tensor([[0, 1, 7, 1000]]), 12)
    for column, position in enumerate((0, 1, 7, 1000)):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            assert made[0, column, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert made[0, column, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)
