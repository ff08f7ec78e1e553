"""Presets have the parameters that were published, and closed forms count what is built."""

import pytest

from llm.models.load import build
from llm.models.parameters import active_count, parameter_count, published_count
from llm.models.presets import PRESETS, model_config

EXACT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "bert-base": 109_514_298,  # with the masked-LM head, without the pooler
    "bert-large": 335_174_458,
}
"""Of the checkpoints that were released."""
IN_THE_PAPER = {
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13.0e9,
    "gpt3-175b": 175.0e9,
    "transformer-base": 65e6,
    "transformer-big": 213e6,
}


@pytest.mark.parametrize("preset", EXACT)
def test_a_published_model_has_its_parameters_exactly(preset):
    assert published_count(model_config(preset)) == EXACT[preset]


def test_a_token_of_mixtral_meets_its_two_experts_alone():
    assert active_count(model_config("mixtral-8x7b")) == 12_879_925_248


@pytest.mark.parametrize("preset", IN_THE_PAPER)
def test_a_model_known_from_its_paper_has_about_as_many(preset):
    assert published_count(model_config(preset)) == pytest.approx(IN_THE_PAPER[preset], rel=0.03)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("vocab_size", [2048, 50257])
def test_what_is_counted_is_what_is_built(preset, vocab_size):
    config = model_config(preset, vocab_size)
    assert sum(p.numel() for p in build(config).parameters()) == parameter_count(config)
    assert config.padded_vocab_size % 64 == 0
    assert 0 <= config.padded_vocab_size - vocab_size < 64


@pytest.mark.parametrize(
    "fields",
    [
        {"qk_norm": True, "n_heads": 8, "head_dim": 20},
        {"position": "relative", "norm": "layer"},
        {"position": "learned", "bias": True, "gated": False, "norm": "layer", "tie_embeddings": False},
        {"norm_placement": "post", "position": "alibi", "embedding_norm": True},
    ],
)
def test_every_part_is_counted(fields):
    config = model_config("tiny-100k", 500, **fields)
    assert (
        sum(p.numel() for p in build(config).parameters()) == parameter_count(config) == active_count(config)
    )
