"""A model is exported while its training goes on: as one of its checkpoints has it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.artifacts import holder, lease
from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from llm.models.decoder import Decoder
from llm.models.load import build, config_json, save_model
from llm.models.lora import add_adapters, initial_adapters
from llm.models.lora_config import LoraConfig
from llm.models.presets import model_config
from llm.tokenizer.special import END_ID, EOS_ID
from llm.tokenizer.train import train_tokenizer
from llm.training.checkpoint_weights import read_weights
from llm.training.loop import train
from llm.training.parallel.weights import scatter_weights
from pipelines.cli import run
from pipelines.export_model import checkpoint
from pipelines.model_folder import prepare_model_folder
from tests.unit.llm.training.checkpointed_run import RECIPE, a_run, micro_batches

transformers = pytest.importorskip("transformers")

CONFIG = model_config("tiny-100k", vocab_size=320, d_model=32, d_ff=48, n_kv_heads=2, n_heads=4)
LORA = {"rank": 3, "alpha": 6.0}
TOKENS = torch.arange(8, 40).unsqueeze(0)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """With tokenizers/small and a finished models/base."""
    store = ArtifactStore(tmp_path / "root")
    tokenizer = begun(store, "tokenizers", "small")
    tokenizer.write(
        "tokenizer.model",
        train_tokenizer(["The quick brown fox jumps over the lazy dog, more words"] * 50, vocab_size=320),
    )
    tokenizer.commit({})
    base = begun(store, "models", "base")
    prepare_model_folder(base, CONFIG, store.resolve("tokenizers", "small"))
    with base.writing() as writing:
        save_model(writing.path, new_model(seed=3).state_dict(), CONFIG)
    base.commit({})
    return store


def begun(
    store: ArtifactStore,
    kind: str,
    name: str,
    stage: str = "pretrain",
    what: dict[str, Any] | None = None,
    inputs: dict[str, Artifact] | None = None,
) -> Draft:
    draft = store.begin(
        kind=kind, name=name, stage=stage, logic_version=1, what=what or {}, inputs=inputs or {}
    )
    assert isinstance(draft, Draft)
    return draft


def new_model(seed: int) -> Decoder:
    model = Decoder(CONFIG)
    model.init_weights(seed)
    return model


def with_adapters(base: Decoder) -> Decoder:
    model = build(CONFIG)
    assert isinstance(model, Decoder)
    add_adapters(model, LoraConfig(**LORA))
    model.to_empty(device="cpu")
    scatter_weights(model, base.state_dict() | initial_adapters(model, seed=4))
    return model


def trained(draft: Draft, model: Decoder, until: int, **recipe: Any) -> None:
    """Leave what a run leaves that has got to the step `until`, of 12, with a checkpoint every four."""

    def stopping(step: int):
        if step == until:
            raise KeyboardInterrupt
        return micro_batches(step)

    tokenizer = draft.folder.read("tokenizer.model")
    run = a_run(
        draft.workspace.path,
        model=model,
        recipe=dataclasses.replace(RECIPE, **recipe),
        micro_batches=stopping,
        attachments={"config.json": config_json(CONFIG), "tokenizer.model": tokenizer},
    )
    if until > run.recipe.steps:
        train(run)
        return
    with pytest.raises(KeyboardInterrupt):
        train(run)


def exported(store: ArtifactStore, target: Path, model: str, *flags: str) -> Any:
    assert run(["export", model, "--to", str(target), "--root", store.root, *flags]) == 0
    return transformers.AutoModelForCausalLM.from_pretrained(target)


@torch.no_grad()
def assert_computes(theirs: Any, ours: Decoder) -> None:
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS)[..., :320], atol=1e-5, rtol=1e-5)


def test_the_newest_checkpoint_of_a_run_and_an_earlier_one(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = holder.this_process() | {"machine": "another"}
    monkeypatch.setattr(lease, "this_process", lambda: elsewhere)  # this process counts as gone
    draft = begun(store, "models", "mine", what={"seed": 1})
    prepare_model_folder(draft, CONFIG, store.resolve("tokenizers", "small"))
    refusal = ["export", "mine", "--to", str(tmp_path / "none"), "--root", store.root]
    assert run(refusal) == 2
    assert f"{draft.ref}: there is no whole checkpoint\n" in capsys.readouterr().err

    model = new_model(seed=1)
    trained(draft, model, until=8)
    newest = exported(store, tmp_path / "newest", "mine")
    assert "after step 8: written to" in capsys.readouterr().out
    assert_computes(newest, model)
    assert newest.generation_config.eos_token_id == EOS_ID
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "newest")
    assert tokenizer.decode(tokenizer.encode("more words")) == "more words"
    told = json.loads((tmp_path / "newest" / "manta.json").read_text())
    assert (told["model"], told["step"], told["what"]) == (draft.ref, 8, {"seed": 1})

    earlier = exported(store, tmp_path / "earlier", draft.ref, "--step", "4")
    at_4 = new_model(seed=1)
    at_4.load_state_dict(read_weights(draft.workspace.path / "checkpoints/step-00000004"))
    assert_computes(earlier, at_4)

    capsys.readouterr()
    assert run([*refusal, "--step", "5"]) == 2
    error = capsys.readouterr().err
    assert "no whole checkpoint of step 5; there is that of step 8, 4" in error
    assert error.count("\n") == 1
    assert run(["export", "base", "--to", str(tmp_path / "none"), "--step", "8", "--root", store.root]) == 2
    assert "no whole checkpoint of step 8" in capsys.readouterr().err
    other = begun(store, "models", "mine", what={"seed": 2})
    prepare_model_folder(other, CONFIG, store.resolve("tokenizers", "small"))
    assert run(refusal) == 2
    assert "may be any of" in capsys.readouterr().err
    other.close()  # nobody works on it any more
    exported(store, tmp_path / "the-one-at-work", "mine")
    assert not (tmp_path / "none").exists()


def test_averages_stand_for_the_weights_and_adapters_are_merged(store: ArtifactStore, tmp_path: Path) -> None:
    small = store.resolve("tokenizers", "small")
    averaged = begun(store, "models", "averaged")
    prepare_model_folder(averaged, CONFIG, small)
    model = new_model(seed=1)
    trained(averaged, model, until=99, ema_decay=0.9)  # At its end the averages take the weights' place.
    assert_computes(exported(store, tmp_path / "averaged", "averaged", "--step", "12"), model)

    base, inputs = new_model(seed=3), {"base": store.resolve("models", "base")}
    adapted = begun(store, "models", "chat", "finetune", {"lora": LORA}, inputs)
    prepare_model_folder(adapted, CONFIG, small)
    model = with_adapters(base)
    trained(adapted, model, until=8)
    merged = exported(store, tmp_path / "adapted", "chat")
    assert_computes(merged, model)
    assert merged.generation_config.eos_token_id == [END_ID, EOS_ID]  # where our own server ends
    with pytest.raises(AssertionError):
        assert_computes(merged, base)


def test_a_checkpoint_that_goes_while_it_is_read_is_followed_by_the_next(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = begun(store, "models", "mine")
    prepare_model_folder(draft, CONFIG, store.resolve("tokenizers", "small"))
    trained(draft, new_model(seed=1), until=5)
    checkpoints = draft.workspace.path / "checkpoints"

    def overtaken(path: Path) -> dict[str, torch.Tensor]:
        """The run goes on while we read, and removes what it has no more use for."""
        if path.name == "step-00000004":
            trained(draft, new_model(seed=1), until=9, keep_checkpoints=1)
        return read_weights(path)

    monkeypatch.setattr(checkpoint, "read_weights", overtaken)
    exported(store, tmp_path / "out", "mine")
    assert json.loads((tmp_path / "out" / "manta.json").read_text())["step"] == 8

    def always(path: Path) -> dict[str, torch.Tensor]:
        shutil.copytree(path, checkpoints / f"step-{int(path.name[-8:]) + 1:08d}")
        shutil.rmtree(path)
        return read_weights(path)

    monkeypatch.setattr(checkpoint, "read_weights", always)
    assert run(["export", "mine", "--to", str(tmp_path / "more"), "--root", store.root]) == 2
    assert "removed before they can be read" in capsys.readouterr().err
    named = max(int(path.name[-8:]) for path in checkpoints.iterdir())
    command = ["export", "mine", "--to", str(tmp_path / "more"), "--root", store.root, "--step", str(named)]
    assert run(command) == 2
    assert (
        f"no whole checkpoint of step {named}; there is that of step {named + 1}" in capsys.readouterr().err
    )
