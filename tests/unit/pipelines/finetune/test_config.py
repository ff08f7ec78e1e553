"""Options of adapters: what they change in a model's version, and mistakes in them."""

import pytest

from cluster.errors import UserError
from pipelines.command_line import parse
from pipelines.finetune.config import FinetuneConfig
from pipelines.run.signatures import reads


def parsed(*arguments: str) -> FinetuneConfig:
    config = parse(FinetuneConfig, "finetune", list(arguments))
    assert config is not None
    return config


def test_models_without_adapters_keep_the_versions_that_they_had_before_there_were_any():
    assert parsed().adapters is None
    assert not {"lora", "packing", "model", "max_target_len"} & parsed().what().keys()


def test_every_option_of_an_adapter_is_part_of_the_version():
    asked = [
        (),
        ("--lora.rank", "16"),
        ("--lora.rank", "8"),
        ("--lora.rank", "16", "--lora.alpha", "16"),
        ("--lora.rank", "16", "--lora.targets", "attention"),
    ]
    versions = [parsed(*arguments).what() for arguments in asked]
    assert all(one not in versions[:i] for i, one in enumerate(versions))
    lora = parsed("--lora.rank", "16").adapters
    assert (lora.rank, lora.scale, lora.targets) == (16, 2.0, "attention,mlp")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lora.rank", "-1"], "greater than or equal to 0"),
        (["--lora.rank", "4", "--lora.alpha", "0"], "greater than 0"),
        (["--lora.alpha", "4"], r"alpha=4.0: without a rank there are no adapters; give rank too"),
        (["--lora.rank", "4", "--lora.targets", "heads"], "invalid choice 'heads'"),
        (
            ["--lora.rank", "4", "--optimizer.embedding-scale", "3"],
            r"embedding_scale=3.0: with adapters \(lora.rank=4\) embeddings and head stay as they are",
        ),
        (
            ["--lora.rank", "4", "--workers", "2", "--parallel.tensor", "2"],
            r"parallel.tensor=2: adapters \(lora.rank=4\) are not divided so; leave it out",
        ),
        (
            ["--lora.rank", "4", "--workers", "2", "--parallel.pipeline", "2", "--packing"],
            r"parallel.pipeline=2: adapters \(lora.rank=4\) are not divided so",
        ),
        (
            ["--workers", "2", "--parallel.pipeline", "2"],
            "parallel.pipeline=2 takes sequences of one length: add packing",
        ),
        (["--lora.rank", "4", "--float8"], r"float8: matrices with adapters \(lora.rank=4\).*leave out one"),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    with pytest.raises(UserError, match=words):
        parsed(*arguments)


def test_how_workers_divide_the_model_is_no_part_of_its_version():
    assert parsed("--workers", "4", "--parallel.tensor", "2").what() == parsed().what()


def test_a_new_model_is_known_by_its_shape():
    new = parsed("--model.preset", "transformer-base", "--tokenizer", "small")
    assert new.from_scratch
    assert new.what()["model"]["position"] == "sinusoidal"
    assert "preset" not in new.what()["model"]
    wide = parsed("--model.preset", "transformer-base", "--model.d-model", "64", "--tokenizer", "small")
    assert wide.what() != new.what()
    assert reads("finetune", new) == {"tokenizer": "tokenizers/small", "corpus": "corpora/chat"}
    assert reads("finetune", parsed()) == {"base": "models/base", "corpus": "corpora/chat"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.preset", "t5-tiny"], "model.preset=t5-tiny: a new model needs a tokenizer"),
        (["--tokenizer", "small"], "tokenizer=small is for a new model, and base has its own"),
        (["--model.d-model", "64"], "a shape is for a new model: give model.preset too"),
        (["--model.preset", "t5-tiny", "--tokenizer", "a", "--base", "b"], "give one of them"),
        (["--model.preset", "t5-tiny", "--tokenizer", "a", "--lora.rank", "4"], "adapters need a base model"),
        (
            ["--model.preset", "bert-tiny", "--tokenizer", "a"],
            "bert-tiny is an encoder, which writes nothing",
        ),
        (["--model.preset", "t5-nano", "--tokenizer", "a"], "model preset 't5-nano' does not exist"),
    ],
)
def test_there_is_one_model_to_begin_with(arguments, words):
    with pytest.raises(UserError, match=words):
        parsed(*arguments)
