"""Whether a model fits what a stage wants of it, from its config.json alone."""

import json
from typing import Any, Literal

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from pipelines.model_folder import TOKENIZER

_NAMES = {"lm": "language", "scalar": "reward"}


def check_head(flag: str, model: Artifact, head: Literal["lm", "scalar"]) -> None:
    """Raise UserError unless `model`, given as --`flag`, is a language model ("lm") or a reward model."""
    found = _config(model)["head"]
    if found != head:
        raise UserError(
            f"--{flag} {model.ref} is no {_NAMES[head]} model but a {_NAMES[found]} model; name another one"
        )


def check_language_model(flag: str, model: Artifact) -> None:
    """Raise UserError unless `model`, given as --`flag`, is a decoder that text can be given to."""
    check_head(flag, model, "lm")
    family = _config(model).get("family", "decoder")  # models made before there were others do not say
    if family != "decoder":
        raise UserError(
            f"--{flag} {model.ref} is an {family}, and this stage takes a decoder: name another one, or "
            "pre-train one with --model.preset gpt2 or a llama"
        )
    if TOKENIZER not in model.files:
        raise UserError(
            f"--{flag} {model.ref} has no tokenizer that Manta can use: it comes from a folder without "
            "a SentencePiece model, and can only be exported; name another one"
        )


def check_context(model: Artifact, tokens: int) -> None:
    """Raise UserError if the model was not trained with `tokens` of prompt and response together."""
    longest = _config(model)["max_seq_len"]
    if tokens > longest:
        raise UserError(
            f"max_prompt_tokens + max_tokens is {tokens}, but {model.ref} was trained with {longest} tokens; "
            "lower one of them"
        )


def _config(model: Artifact) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(model.read("config.json"))
    return fields
