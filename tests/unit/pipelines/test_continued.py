"""Stages that go on redo what is damaged or gone; one whose manifest was deleted makes the same again."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.engine.request import Completion
from pipelines import corpus_pieces
from pipelines.corpus import stage as corpus_stage
from pipelines.corpus.config import CorpusConfig
from pipelines.preferences import stage as preferences_stage
from pipelines.preferences.config import PreferencesConfig
from pipelines.prompts import Prompt
from pipelines.tokenizer import stage as tokenizer_stage
from pipelines.tokenizer import training
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokens import stage as tokens_stage
from pipelines.tokens.config import TokensConfig
from tests.unit.pipelines.units_here import NO_CLUSTER, UnitsHere

STAGES = ("corpus", "tokenizer", "tokens", "preferences")


class EnginesHere:
    """An engine pool that answers each request with its seed."""

    def __init__(self, *arguments, **options) -> None:
        pass

    def __enter__(self) -> "EnginesHere":
        return self

    def __exit__(self, *error) -> None:
        pass

    def generate(self, batches) -> Iterator[tuple[int, list[Completion]]]:
        for index, batch in enumerate(batches):
            yield index, [completion(request) for request in batch]


def completion(request) -> Completion:
    seed = request.params.seed
    return Completion(request.id, request.prompt_ids, [seed % 97, seed % 89], [0.0, 0.0], "stop", 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Artifact]:
    """Runs a stage by name, in this process; what it reads is made first."""
    monkeypatch.setattr(corpus_pieces, "UNIT_BYTES", (4_000,))
    for stage in (corpus_stage, tokenizer_stage, tokens_stage):
        monkeypatch.setattr(stage, "run_units", UnitsHere())
    monkeypatch.setattr(
        training, "run_in_one_process", lambda function, *arguments, **options: function(*arguments)
    )
    monkeypatch.setitem(sys.modules, "pipelines.actors.engine_pool", SimpleNamespace(EnginePool=EnginesHere))
    monkeypatch.setattr(preferences_stage, "BATCH_PROMPTS", 4)
    prompts = [Prompt(f"p{i}", f"g{i}", [{"role": "user", "content": f"{i}"}], [2, i]) for i in range(12)]
    monkeypatch.setattr(preferences_stage, "load_prompts", lambda *arguments, **options: prompts)
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    monkeypatch.setattr(preferences_stage, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(preferences_stage, "resolve_inputs", lambda *_: {"model": model, "corpus": model})

    root = tmp_path / "root"
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        line = f"def function_{number}(x):\n    return x * {number} + {number % 5}\n"
        (texts / f"{number:02d}.py").write_text(line * 40 if number else "short")
    (texts / "copy.py").write_text((texts / "01.py").read_text())
    options = {"root": str(root), "name": "a"}
    drafted = ArtifactStore(root).begin(
        kind="models", name="m", stage="made", logic_version=1, what={}, inputs={}
    )
    drafted.write("tokenizer.model", b"-")
    model = drafted.commit({})
    configs = {
        "corpus": CorpusConfig(**options, paths=(str(texts),), min_chars=10, heldout_fraction=0.3),
        "tokenizer": TokenizerConfig(**options, corpus="a", vocab_size=300),
        "tokens": TokensConfig(**options, corpus="a", tokenizer="a", workers=1),
        "preferences": PreferencesConfig(**options, responses=2, heldout_fraction=0.4),
    }
    modules = {
        "corpus": corpus_stage,
        "tokenizer": tokenizer_stage,
        "tokens": tokens_stage,
        "preferences": preferences_stage,
    }
    needs = {"tokenizer": ["corpus"], "tokens": ["corpus", "tokenizer"]}

    def run(stage: str) -> Artifact:
        for needed in needs.get(stage, []):
            modules[needed].run(configs[needed], NO_CLUSTER)
        return modules[stage].run(configs[stage], NO_CLUSTER)

    return run


class Killed(BaseException):
    pass


def run_until_commit(run, stage: str, monkeypatch: pytest.MonkeyPatch) -> Draft:
    """The draft of a run that is killed when all its units are done."""
    drafts = []
    commit = Draft.commit
    kind = {"corpus": "corpora", "tokenizer": "tokenizers"}.get(stage, stage)

    def die(draft: Draft, counts) -> Artifact:
        if draft.manifest["kind"] != kind:
            return commit(draft, counts)
        drafts.append(draft)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "commit", die)
        with pytest.raises(Killed):
            run(stage)
    drafts[0].close()
    return drafts[0]


@pytest.mark.parametrize("stage", STAGES)
def test_delete_the_damaged_manifest_and_run_again(run, stage) -> None:
    made = run(stage)
    content = made.folder.read("manifest.json")
    made.folder.write("manifest.json", b"{half")
    with pytest.raises(UserError, match="delete that file and run"):
        run(stage)
    made.folder.delete(["manifest.json"])
    victim = max(made.files, key=lambda name: made.files[name]["bytes"])
    made.folder.write(victim, b"damaged")
    again = run(stage)
    assert again.folder.read("manifest.json") == content
    assert list(verify(again)) == []
    assert {name.split("/")[0] for name in again.folder.files()} & {"work", "sample", "batches"} == set()


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
@pytest.mark.parametrize("stage", STAGES)
def test_units_whose_files_are_damaged_are_done_again(run, stage, damage, monkeypatch, capsys) -> None:
    draft = run_until_commit(run, stage, monkeypatch)
    records = draft.ledger.done()
    named = sorted({name for record in records.values() for name in record["files"]})
    assert len(named) >= 3
    expected = {name: draft.folder.read(name) for name in named}
    for name in named[::2]:
        if damage == "missing":
            draft.folder.delete([name])
        else:
            content = expected[name]
            half = len(content) // 2
            flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            draft.folder.write(name, content[:half] if damage == "shorter" else flipped)
    made = run(stage)
    assert "is done again" in capsys.readouterr().out
    assert list(verify(made)) == []
    assert {n: made.folder.read(n) for n in named if n in made.files} == {
        n: content for n, content in expected.items() if n in made.files
    }
    assert made.run()["resumed"]


@pytest.mark.parametrize("stage", STAGES)
def test_parts_without_a_ledger_are_made_again(run, stage, monkeypatch) -> None:
    draft = run_until_commit(run, stage, monkeypatch)
    first = run(stage).folder.read("manifest.json")
    draft.folder.delete(["manifest.json"])
    again = run_until_commit(run, stage, monkeypatch)
    again.ledger.folder.delete()
    assert run(stage).folder.read("manifest.json") == first


def test_a_tokenizer_is_trained_again_on_a_sample_that_has_grown(run, monkeypatch) -> None:
    """A unit failed in an earlier run, which was killed once its tokenizer was trained."""
    whole = run("tokenizer").folder.read("manifest.json")
    run("tokenizer").folder.delete()
    monkeypatch.setattr(tokenizer_stage, "run_units", UnitsHere(["sample-00000"]))
    run_until_commit(run, "tokenizer", monkeypatch)
    monkeypatch.setattr(tokenizer_stage, "run_units", UnitsHere())
    assert run("tokenizer").folder.read("manifest.json") == whole


def test_a_damaged_record_is_a_unit_to_do_again(run, monkeypatch) -> None:
    draft = run_until_commit(run, "tokens", monkeypatch)
    for name in draft.ledger.folder.files():
        draft.ledger.folder.write(name, b"{half")
    assert list(verify(run("tokens"))) == []
