"""Import: a Hugging Face directory → models/NAME, on this machine and without Ray.

Every stage encodes with a SentencePiece model that has our special ids. A directory's own one gets them (rows
of embedding and head move along). Where the directory has none, as those of GPT-2, Llama 3, Qwen3 and BERT,
the model comes without: it can be exported again, and stages that need text refuse it by name.
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
from llm.tokenizer.renumber import renumber
from llm.tokenizer.special import ADDED_PIECES
from pipelines.import_model.config import ImportConfig
from pipelines.import_model.source import (
    TOKENIZER_FILES,
    added_pieces,
    find_directory,
    identity,
    sentencepiece_model,
    special_ids,
)
from pipelines.model_folder import GENERATION, IMPORTED, TOKENIZER
from pipelines.outcome import outcome
from pipelines.progress import console

LOGIC_VERSION = 1


def run(config: ImportConfig) -> int:
    """Import, unless this very directory was imported before, and say so."""
    began = time.time()
    artifact = import_directory(config)
    console.print(outcome(artifact, began))
    if TOKENIZER not in artifact.files:
        console.print(
            f"{artifact.ref} has no SentencePiece tokenizer, and so no text can be given to it: it can be "
            "exported, not trained or served"
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
    ids, model = special_ids(directory), sentencepiece_model(directory)
    if model is not None:
        try:
            renumbered = renumber(model, added_pieces(directory), ADDED_PIECES[shape.family])
            state, shape = with_rows(state, shape, renumbered.rows)
        except ValueError as error:
            raise UserError(f"{directory}: its tokenizer cannot be imported: {error}") from None
        ids = _renumbered(ids, renumbered.rows)
        draft.write(TOKENIZER, renumbered.model)
    draft.write(f"{IMPORTED}/{GENERATION}", (json.dumps(ids, indent=2) + "\n").encode())
    with draft.writing() as writing:
        save_model(writing.path, state, shape)
        if model is None:
            (writing.path / IMPORTED).mkdir()
            for name in TOKENIZER_FILES:
                if (directory / name).is_file():
                    shutil.copyfile(directory / name, writing.path / IMPORTED / name)
    counts = {"parameters": published_count(shape), "vocab_size": shape.vocab_size, "family": shape.family}
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
