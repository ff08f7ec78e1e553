"""Import: a Hugging Face directory → models/NAME, on this machine and without Ray.

Every stage encodes with a tokenizer that has our special ids. A directory's own one gets them (rows of
embedding and head move along) if it is a SentencePiece model, or a tokenizer.json with BPE on bytes. Where
there is neither, as in BERT's directory, the model comes without: it can be exported again, and stages that
need text refuse it by name.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.hugging_face.directory import import_model
from llm.models.hugging_face.fields import Unsupported
from llm.models.hugging_face.vocabulary import with_rows
from llm.models.load import save_model
from llm.models.parameters import published_count
from pipelines.import_model.config import ImportConfig
from pipelines.import_model.source import (
    TOKENIZER_FILES,
    find_directory,
    identity,
    special_ids,
)
from pipelines.import_model.tokenizer import NotUsable, our_tokenizer
from pipelines.model_folder import GENERATION, IMPORTED
from pipelines.outcome import outcome
from pipelines.progress import console
from pipelines.tokenizer_artifact import tokenizer_file, why_none

LOGIC_VERSION = 2


def run(config: ImportConfig) -> int:
    """Import, unless this very directory was imported before, and say so."""
    began = time.time()
    artifact = import_directory(config)
    console.print(outcome(artifact, began))
    if tokenizer_file(artifact.files) is None:
        console.print(
            f"{artifact.ref} has no tokenizer that Manta can use{why_none(artifact)}: it can be exported, "
            "not trained or served",
            markup=False,
        )
    return 0


def import_directory(config: ImportConfig) -> Artifact:
    """The model of a directory. Raises UserError for what cannot be imported, in one line."""
    directory = find_directory(config.directory)
    try:
        source = identity(directory)
        draft = ArtifactStore(config.root).begin(
            kind="models",
            name=config.name,
            stage="import",
            logic_version=LOGIC_VERSION,
            what={"source": source},
            inputs={},
            how={"directory": str(directory)},
            force=config.force,
            announce=console.print,
        )
        if isinstance(draft, Artifact):
            return draft
        try:
            return _fill(draft, directory)
        except BaseException:
            draft.close()
            raise
    except Unsupported as error:
        raise UserError(str(error)) from None


def _fill(draft: Draft, directory: Path) -> Artifact:
    state, shape = import_model(directory)
    ids, why_not = special_ids(directory), None
    try:
        name, tokenizer = our_tokenizer(directory, shape)
        state, shape = with_rows(state, shape, tokenizer.rows)
        ids = _renumbered(ids, tokenizer.rows)
        draft.write(name, tokenizer.model)
    except NotUsable as reason:
        why_not = str(reason)
    except ValueError as error:
        raise UserError(f"{directory}: its tokenizer cannot be imported: {error}") from None
    draft.write(f"{IMPORTED}/{GENERATION}", (json.dumps(ids, indent=2) + "\n").encode())
    with draft.writing() as writing:
        save_model(writing.path, state, shape)
        if why_not is not None:
            (writing.path / IMPORTED).mkdir()
            for name in TOKENIZER_FILES:
                if (directory / name).is_file():
                    shutil.copyfile(directory / name, writing.path / IMPORTED / name)
    counts: dict[str, Any] = {
        "parameters": published_count(shape),
        "vocab_size": shape.vocab_size,
        "family": shape.family,
    }
    if why_not is not None:
        counts["no_tokenizer"] = why_not
    return draft.commit(counts)


def _renumbered(ids: dict[str, Any], rows: list[int | None]) -> dict[str, Any]:
    """The same ids by our numbers; those of no piece are left out, such as Llama's padding id of -1."""
    number = {row: id for id, row in enumerate(rows) if row is not None}
    found = {
        name: [number[each] for each in value if each in number]
        if isinstance(value, list)
        else number.get(value)
        for name, value in ids.items()
    }
    return {name: value for name, value in found.items() if value not in (None, [])}
