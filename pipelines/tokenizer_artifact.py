"""The tokenizer of an artifact, a tokenizer or a model: of either kind, whichever file it has."""

from collections.abc import Container

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.tokenizer import load
from llm.tokenizer.tokenizer import Tokenizer


def tokenizer_file(files: Container[str]) -> str | None:
    """Which of an artifact's files is its tokenizer; None if it has none that Manta can use."""
    return next((name for name in load.FILES if name in files), None)


def file_of(artifact: Artifact) -> str:
    """The name of its file. Raises UserError if there is none."""
    name = tokenizer_file(artifact.files)
    if name is None:
        raise UserError(f"{artifact.ref} has no tokenizer that Manta can use{why_none(artifact)}")
    return name


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer. Raises UserError if there is none."""
    name = file_of(artifact)
    return load.load_tokenizer(artifact.fetch(name) / name)


def read_tokenizer(artifact: Artifact) -> bytes:
    """The content of its file: equal contents encode equally. Raises UserError if there is none."""
    return artifact.read(file_of(artifact))


def resolve_tokenizer(store: ArtifactStore, reference: str) -> Artifact:
    """The tokenizer NAME or NAME/VERSION; models/NAME stands for the tokenizer of a model.

    Raises UserError if there is no such artifact, or the model has none.
    """
    found = store.resolve("models" if reference.startswith("models/") else "tokenizers", reference)
    file_of(found)
    return found


def why_none(artifact: Artifact) -> str:
    """Why an imported model has no tokenizer, in brackets; nothing if its manifest does not say."""
    reason = artifact.counts.get("no_tokenizer")
    return f" ({reason})" if reason else ""
