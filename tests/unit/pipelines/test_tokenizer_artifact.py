"""A tokenizer is found by its name or by that of a model, of either kind."""

from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.presets import model_config
from llm.tokenizer.renumber_json import renumber_json
from llm.tokenizer.train import train_tokenizer
from pipelines.finetune.config import FinetuneConfig
from pipelines.model_folder import attachments, prepare_model_folder
from pipelines.run.signatures import reads
from pipelines.tokenizer_artifact import load_tokenizer, read_tokenizer, resolve_tokenizer
from pipelines.tokens.config import TokensConfig
from tests.byte_level_forms import TEXTS, make_tokenizer


def begun(store: ArtifactStore, kind: str, name: str) -> Draft:
    draft = store.begin(kind=kind, name=name, stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(draft, Draft)
    return draft


def made(store: ArtifactStore, kind: str, files: dict[str, bytes], **counts: Any) -> Artifact:
    draft = begun(store, kind, "mine")
    for name, content in files.items():
        draft.write(name, content)
    return draft.commit(counts)


def test_each_kind_is_found_by_its_name(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    pieces = train_tokenizer(TEXTS * 20, vocab_size=400)
    on_bytes = renumber_json(make_tokenizer("qwen3").to_str().encode(), {}).model
    model = made(store, "models", {"tokenizer.json": on_bytes})
    tokenizer = made(store, "tokenizers", {"tokenizer.model": pieces})
    for reference, artifact, content in (
        ("mine", tokenizer, pieces),
        (f"tokenizers/mine/{tokenizer.version}", tokenizer, pieces),
        ("models/mine", model, on_bytes),
        (model.ref, model, on_bytes),
    ):
        found = resolve_tokenizer(store, reference)
        assert (found.ref, read_tokenizer(found)) == (artifact.ref, content)
        loaded = load_tokenizer(found)
        assert (loaded.model, loaded.decode(loaded.encode(TEXTS[0]))) == (content, TEXTS[0])

    draft = begun(store, "models", "trained")
    shape = model_config("tiny-100k", 400)
    prepare_model_folder(draft, shape, model)
    assert attachments(draft).keys() == {"config.json", "tokenizer.json"}
    assert attachments(draft)["tokenizer.json"] == on_bytes


def test_what_has_no_tokenizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(UserError, match="no tokenizers/mine under"):
        resolve_tokenizer(store, "mine")
    model = made(store, "models", {"config.json": b"{}"}, no_tokenizer='model.type is "WordPiece"')
    for call in (lambda: resolve_tokenizer(store, "models/mine"), lambda: load_tokenizer(model)):
        with pytest.raises(UserError, match=r'that Manta can use \(model.type is "WordPiece"\)'):
            call()


def test_a_pipeline_knows_that_it_may_be_a_models() -> None:
    assert reads("tokens", TokensConfig(tokenizer="models/qwen"))["tokenizer"] == "models/qwen"
    assert reads("tokens", TokensConfig(tokenizer="tokenizers/mine"))["tokenizer"] == "tokenizers/mine"
    new = FinetuneConfig(tokenizer="models/qwen/1f", model={"preset": "tiny-100k"})
    assert reads("finetune", new)["tokenizer"] == "models/qwen/1f"
