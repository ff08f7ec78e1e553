"""Configuration of `manta corpus`."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.stage_config import Frozen, How, Later
from pipelines.unit_config import UnitsConfig


class FunctionOptions(Frozen):
    """Which functions become conversations (`--source python-functions`)."""

    answer: Later[Literal["body", "docstring"]] = "body"
    """What the answer is: the body, when signature and docstring ask; or the first sentence of the docstring,
    when the code asks.
    """
    max_prompt_chars: int = Field(default=600, gt=0)
    """Longest question, in characters."""
    max_response_chars: int = Field(default=600, gt=0)
    """Longest answer, in characters."""


class CorpusConfig(UnitsConfig):
    """Read text or conversations, normalise, remove duplicates, split into train and heldout."""

    source: Literal["files", "python-stdlib", "python-functions"] = "files"
    """Where documents come from: "files" reads --paths; "python-stdlib" the source code of this Python's
    standard library; "python-functions" makes conversations (docstring asks, body answers, or as
    --functions.answer says) out of the text corpus --from-corpus.
    """
    paths: How[tuple[str, ...]] = ()
    """Files, folders or globs. Recognised by content, so moving or touching them changes nothing."""
    from_corpus: How[str | None] = None
    """Text corpus for python-functions: NAME or NAME/VERSION."""
    format: Literal["auto", "text", "jsonl", "parquet", "conversations"] = "auto"
    """What the files hold; "auto" goes by their names. "conversations": JSON lines or Parquet with `messages`
    (a list of role and content), or with a pair of texts: `prompt` and `response`, `prompt` and `completion`,
    or `source` and `target`. JSON lines and text may be .gz or .zst.
    """
    text_field: str = "text"
    """Field of JSON lines, or column of Parquet, that holds the text."""
    min_chars: int = Field(1, ge=1)
    """Shorter documents are removed."""
    functions: FunctionOptions = FunctionOptions()
    """Sizes of functions that python-functions takes."""
    heldout_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of documents (of whole groups of conversations) kept out of training, by a hash of their id."""
    split_seed: int = Field(0, ge=0)
    """Another seed holds out other documents."""

    @model_validator(mode="after")
    def _source_has_what_it_reads(self) -> "CorpusConfig":
        if (self.source == "files") != bool(self.paths):
            raise ValueError(
                "--paths goes with --source files: name what to read, or choose another --source"
            )
        if (self.source == "python-functions") != (self.from_corpus is not None):
            raise ValueError("--from-corpus goes with --source python-functions: name a text corpus")
        return self

    @property
    def holds_conversations(self) -> bool:
        return self.source == "python-functions" or self.format == "conversations"
