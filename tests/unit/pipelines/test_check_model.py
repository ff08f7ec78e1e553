"""Stages that generate or score text take a decoder, two of them an encoder-decoder too, and say so of
anything else in one line.
"""

import pytest

from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.load import config_json
from llm.models.presets import model_config
from pipelines.check_model import check_language_model
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.finetune import stage as finetune
from pipelines.finetune.config import FinetuneConfig
from pipelines.preferences import stage as preferences
from pipelines.preferences.config import PreferencesConfig
from pipelines.reward import stage as reward
from pipelines.reward.config import RewardConfig
from pipelines.rlhf import stage as rlhf
from pipelines.rlhf.config import RLHFConfig
from pipelines.serve import stage as serve
from pipelines.serve.config import ServeConfig

STAGES = {
    "evaluate": (evaluate, EvaluateConfig, {"model": "m", "tokens": "small"}),
    "finetune": (finetune, FinetuneConfig, {"base": "m", "corpus": "small"}),
    "preferences": (preferences, PreferencesConfig, {"model": "m", "corpus": "small"}),
    "reward": (reward, RewardConfig, {"model": "m"}),
    "rlhf": (rlhf, RLHFConfig, {"model": "m", "reward_model": "m", "corpus": "small"}),
    "serve": (serve, ServeConfig, {"model": "m"}),
}


def make(store, kind, name, files, counts, what):
    draft = store.begin(kind=kind, name=name, stage="made", logic_version=1, what=what, inputs={})
    for file, content in files.items():
        draft.write(file, content)
    return draft.commit(counts)


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(tmp_path)
    make(store, "corpora", "small", {"part-00000.parquet": b""}, {"format": "conversations"}, {})
    make(store, "preferences", "preferences", {}, {}, {})
    return store


def make_model(store, preset):
    shape = model_config(preset, 300)
    files = {"config.json": config_json(shape), "tokenizer.model": b""}
    return make(store, "models", "m", files, {}, {"preset": preset})


REFUSED = [(stage, "bert-tiny", "encoder") for stage in STAGES if stage != "evaluate"] + [
    (stage, "t5-tiny", "encoder-decoder") for stage in STAGES if stage not in ("finetune", "evaluate")
]


@pytest.mark.parametrize(("stage", "preset", "family"), REFUSED)
def test_a_model_that_is_no_decoder_is_refused_in_one_line(store, stage, preset, family):
    model = make_model(store, preset)
    module, config, fields = STAGES[stage]
    flag = "base" if stage == "finetune" else "model"
    with pytest.raises(UserError, match=f"--{flag} {model.ref} is an {family}, and this stage takes") as seen:
        module.resolve_inputs(config(root=str(store.root), **fields), store)
    assert "\n" not in str(seen.value)


def test_an_encoder_answers_nothing(store):
    model = make_model(store, "bert-tiny")
    config = EvaluateConfig(root=str(store.root), model="m", corpus="small")
    with pytest.raises(
        UserError, match=f"--corpus small: {model.ref} is an encoder, which writes no answers"
    ):
        evaluate.resolve_inputs(config, store)


def test_a_decoder_is_taken_also_one_that_was_made_before_there_were_others(store):
    check_language_model("model", make_model(store, "tiny-100k"))
    files = {"config.json": b'{"head": "lm", "max_seq_len": 8}', "tokenizer.model": b""}
    check_language_model("model", make(store, "models", "old", files, {}, {}))


def test_an_encoder_decoder_is_fine_tuned_and_its_answers_are_evaluated(store):
    root, model = str(store.root), make_model(store, "t5-tiny")
    decoder = make(
        store,
        "models",
        "d",
        {"config.json": config_json(model_config("tiny-100k", 300)), "tokenizer.model": b""},
        {},
        {},
    )
    assert (
        finetune.resolve_inputs(FinetuneConfig(root=root, base="m", corpus="small"), store)["base"] == model
    )
    fits = EvaluateConfig(root=root, model="m", corpus="small", max_prompt_tokens=512, max_tokens=512)
    assert evaluate.resolve_inputs(fits, store)["model"] == model
    for changes, problem in [
        ({"baseline": "d"}, f"--baseline {decoder.ref} is a decoder, and {model.ref} a encoder-decoder"),
        ({"max_prompt_tokens": 513}, f"max_prompt_tokens is 513, but {model.ref} was trained with 512"),
    ]:
        with pytest.raises(UserError, match=problem):
            evaluate.resolve_inputs(fits.model_copy(update=changes), store)
