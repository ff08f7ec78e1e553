"""A finished run is extended by the same run, longer; whatever else differs is named before work starts."""

from typing import Any

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.extend import finished_run

FIELDS: dict[str, Any] = {"name": "base", "model": {"preset": "tiny-100k"}, "steps": 40, "seq_len": 32}


def config(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**FIELDS | {"steps": 80, "extends": "base"} | changes)


def made(store: ArtifactStore, kind: str, stage: str, what: dict[str, Any], **inputs: Artifact) -> Artifact:
    draft = store.begin(kind=kind, name="base", stage=stage, logic_version=1, what=what, inputs=inputs)
    assert isinstance(draft, Draft)
    if kind == "models":
        draft.folder.write("checkpoints/step-00000040/manifest.json", b"{}")
    return draft.commit({"steps": what.get("steps", 0)})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


@pytest.fixture
def tokens(store):
    return made(store, "tokens", "tokens", {})


@pytest.fixture
def base(store, tokens):
    return made(store, "models", "pretrain", PretrainConfig(**FIELDS).what(), tokens=tokens)


def test_more_steps_and_another_optimizer_extend_it(store, tokens, base):
    assert finished_run(config(), store, {"tokens": tokens}).ref == base.ref
    other = {"learning_rate": 1e-2, "decay": "wsd", "decay_fraction": 0.5, "outlier_sigmas": 6}
    longer = config(optimizer=other, workers=2, micro_batch=1)
    assert finished_run(longer, store, {"tokens": tokens}).ref == base.ref


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": {"preset": "tiny-100k", "d_model": 128}}, "model.d_model 64, not 128"),
        ({"model": {"preset": "tiny-100k", "n_layers": 3}}, "model.n_layers 2, not 3"),
        ({"seq_len": 16}, "seq_len 32, not 16"),
        ({"global_batch": 8}, "global_batch 16, not 8"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"precision": "fp32"}, "precision auto, not fp32"),
        ({"optimizer": {"algorithm": "muon"}}, "optimizer.algorithm at its default, not muon; .*, but for"),
        ({"optimizer": {"ema_decay": 0.9}}, "optimizer.ema_decay at its default, not 0.9"),
        ({"steps": 40}, "--steps 40 in all, and .* has 40 already"),
        ({"steps": 20}, "--steps 20 in all, and .* has 40 already"),
    ],
)
def test_a_setting_that_cannot_differ_is_named_with_both_values(changes, words, store, tokens, base):
    with pytest.raises(UserError, match=f"--extends base: .*{words}") as seen:
        finished_run(config(**changes), store, {"tokens": tokens})
    assert "\n" not in str(seen.value)
    assert "{" not in str(seen.value), "the one setting, not the group that it is in"


def test_every_setting_but_steps_and_optimizer_is_compared(store, tokens, base):
    """Also one that is added to the configuration later."""
    what = config().what()
    assert set(what) - {"steps", "optimizer"} == {"model", "seq_len", "global_batch", "seed", "precision"}
    assert set(config(document_mask=True).what()) - set(config().what()) == {"document_mask"}


def test_other_tokens_are_named(store, tokens, base):
    other = made(store, "tokens", "tokens", {"other": 1})
    with pytest.raises(UserError, match=f"trained on {tokens.ref}, not on {other.ref}; give --tokens base/"):
        finished_run(config(), store, {"tokens": other})


def test_a_model_of_another_stage_is_refused(store, tokens):
    made(store, "models", "finetune", {})
    with pytest.raises(UserError, match="was made by `manta finetune`; give a model of `manta pretrain`"):
        finished_run(config(), store, {"tokens": tokens})


def test_a_model_without_checkpoints_is_refused(store, tokens, base):
    base.folder.delete(["checkpoints/step-00000040/manifest.json"])
    with pytest.raises(UserError, match="no checkpoint left"):
        finished_run(config(), store, {"tokens": tokens})


def test_the_same_command_again_goes_by_what_was_extended_then(store, tokens, base):
    """`base` stands for the result by now."""
    longer = config()
    made(store, "models", "pretrain", longer.what(), tokens=tokens, extends=base)
    assert finished_run(longer, store, {"tokens": tokens}).ref == base.ref
