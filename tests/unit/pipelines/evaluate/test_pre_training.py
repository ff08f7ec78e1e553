"""A model is asked what it was pre-trained with, whatever was made of it since."""

import json

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.evaluate.pre_training import check_question, pre_training, question_for
from pipelines.objective_options import ObjectiveOptions
from tests.integration.small_artifacts import VOCAB, make_tokenizer, make_tokens

WHAT = {"seq_len": 24, "objective": {"noise_density": 0.3, "mean_span_length": 2.0}}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def made(store, name, stage, what, vocab_size=VOCAB + 100, max_seq_len=64, **inputs):
    draft = store.begin(kind="models", name=name, stage=stage, logic_version=1, what=what, inputs=inputs)
    assert isinstance(draft, Draft)
    shape = {"family": "encoder-decoder", "vocab_size": vocab_size, "max_seq_len": max_seq_len}
    draft.write("config.json", json.dumps(shape).encode())
    return draft.commit({})


def test_the_question_is_that_of_the_pre_training(store):
    base = made(store, "base", "pretrain", WHAT)
    chat = made(store, "chat", "finetune", {"epochs": 2}, base=base)
    further = made(store, "further", "finetune", {"epochs": 3}, base=chat)
    question = question_for(store, further)
    assert question == question_for(store, base)
    assert question.options == ObjectiveOptions(noise_density=0.3, mean_span_length=2.0)
    hidden = round(0.3 * question.window)
    assert question.window - hidden + round(hidden / 2) + 1 == 24, "with a sentinel for each span, and <eos>"


def test_without_a_pre_training_it_is_the_usual_one(store):
    imported = made(store, "imported", "import", {})
    assert pre_training(store, imported) == {}
    question = question_for(store, imported)
    assert (question.seq_len, question.options) == (64, ObjectiveOptions())


def test_what_cannot_be_asked_is_said_in_one_line(store):
    tokens = make_tokens(store, make_tokenizer(store))
    base = made(store, "base", "pretrain", WHAT)
    question = question_for(store, base)
    check_question(question, {"model": base}, tokens)
    long = made(store, "long", "pretrain", {"seq_len": 10**6}, max_seq_len=10**6)
    shorter = made(store, "shorter", "pretrain", {"seq_len": 16}, max_seq_len=16)
    other = made(store, "other", "import", {}, vocab_size=VOCAB)
    for models, reason in (
        ({"model": long}, r"tokens/small/\S+: no shard of its held-out text has \d+ tokens, as many as"),
        ({"model": base, "baseline": shorter}, r"pre-trained with is 24, but models/shorter\S+ was trained"),
        ({"model": base, "baseline": other}, r"models/other\S+ has 384 ids, and not the 384 of .* 100 more"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            check_question(question_for(store, models["model"]), models, tokens)
        assert "\n" not in str(error.value)
