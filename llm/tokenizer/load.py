"""A tokenizer from its file, of either kind: SentencePiece's `tokenizer.model`, or a `tokenizer.json`."""

from pathlib import Path

from llm.tokenizer.byte_level import JSON_FILE, ByteLevelTokenizer
from llm.tokenizer.sentence_piece import MODEL_FILE, SentencePieceTokenizer
from llm.tokenizer.tokenizer import Tokenizer

FILES = (MODEL_FILE, JSON_FILE)
"""A model or a tokenizer has one of them."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer, given its file or a directory (of an artifact) that holds it.

    Raises FileNotFoundError if it is not there, and ValueError if it is not a tokenizer of ours.
    """
    file = find_tokenizer(path)
    kind = ByteLevelTokenizer if file.suffix == ".json" else SentencePieceTokenizer
    return kind(file.read_bytes())


def find_tokenizer(path: str | Path) -> Path:
    """The file of `load_tokenizer`. Raises FileNotFoundError if there is none."""
    path = Path(path)
    for file in [path / name for name in FILES] if path.is_dir() else [path]:
        if file.is_file():
            return file
    missing = path / MODEL_FILE if path.is_dir() else path
    raise FileNotFoundError(f"no tokenizer at {missing}; make one with `manta tokenizer`")
