"""Whether a model fits what a stage wants of it, from its config.json alone."""

import json
from collections.abc import Collection
from typing import Any, Literal

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from llm.models.config import Family
from pipelines.tokenizer_artifact import tokenizer_file, why_none

_NAMES = {"lm": "language", "scalar": "reward"}
_DECODERS: tuple[Family, ...] = ("decoder",)


def check_head(flag: str, model: Artifact, head: Literal["lm", "scalar"]) -> None:
    """Raise UserError unless `model`, given as --`flag`, is a language model ("lm") or a reward model."""
    found = _config(model)["head"]
    if found != head:
        raise UserError(
            f"--{flag} {model.ref} is no {_NAMES[head]} model but a {_NAMES[found]} model; name another one"
        )


def check_language_model(flag: str, model: Artifact, families: Collection[Family] = _DECODERS) -> None:
    """Raise UserError unless `model`, given as --`flag`, is of one of the families, and text can be given to
    it.
    """
    check_head(flag, model, "lm")
    family = family_of(model)
    if family not in families:
        raise UserError(
            f"--{flag} {model.ref} is an {family}, and this stage takes a {' or an '.join(families)}: name "
            "another one, or pre-train one with --model.preset gpt2 or a llama"
        )
    if tokenizer_file(model.files) is None:
        raise UserError(
            f"--{flag} {model.ref} has no tokenizer that Manta can use{why_none(model)}: it can only be "
            "exported; name another one"
        )


def family_of(model: Artifact) -> Family:
    """Of a language model."""
    found: Family = _config(model).get("family", "decoder")  # those made before there were others do not say
    return found


def check_context(model: Artifact, tokens: int, what: str = "max_prompt_tokens + max_tokens") -> None:
    """Raise UserError if the model was not trained with `tokens`, by default of prompt and response together,
    which `what` says.
    """
    longest = _config(model)["max_seq_len"]
    if tokens > longest:
        raise UserError(
            f"{what} is {tokens}, but {model.ref} was trained with {longest} tokens; lower one of them"
        )


def _config(model: Artifact) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(model.read("config.json"))
    return fields
