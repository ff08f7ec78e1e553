"""What each stage makes and reads: the kinds of its artifacts, by the field of its configuration."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Signature:
    """A stage as a function from artifacts to an artifact."""

    makes: str
    """Kind of the artifact that it makes."""
    reads: dict[str, str]
    """Field that names an artifact → the kind of that artifact."""


SIGNATURES = {
    "corpus": Signature("corpora", {"from_corpus": "corpora"}),
    "tokenizer": Signature("tokenizers", {"corpus": "corpora"}),
    "tokens": Signature("tokens", {"corpus": "corpora", "tokenizer": "tokenizers"}),
    "pretrain": Signature("models", {"tokens": "tokens", "extends": "models"}),
    "finetune": Signature("models", {"base": "models", "tokenizer": "tokenizers", "corpus": "corpora"}),
    "preferences": Signature("preferences", {"model": "models", "corpus": "corpora"}),
    "reward": Signature("models", {"model": "models", "preferences": "preferences"}),
    "rlhf": Signature("models", {"model": "models", "reward_model": "models", "corpus": "corpora"}),
    "evaluate": Signature(
        "evaluations", {"model": "models", "baseline": "models", "corpus": "corpora", "tokens": "tokens"}
    ),
}
"""Stages that make one artifact; the others (serve, quickstart) have no place in a pipeline."""


def makes(stage: str, config: Any) -> str:
    """``KIND/NAME`` of what a stage makes, or the stage's own name if that is no artifact."""
    return f"{SIGNATURES[stage].makes}/{config.name}" if stage in SIGNATURES else stage


def reads(stage: str, config: Any) -> dict[str, str]:
    """Field, or role of an input, → ``KIND/NAME`` or ``KIND/NAME/VERSION`` of each artifact that it reads."""
    named = {field: (kind, getattr(config, field)) for field, kind in SIGNATURES[stage].reads.items()}
    if stage == "pretrain":  # which may read several, each in a role of its own
        named |= {role: ("tokens", name) for role, name in config.sources.roles.items()}
    if stage == "finetune" and config.from_scratch:
        del named["base"]
    return {
        field: _with_kind(kind, reference)
        for field, (kind, reference) in named.items()
        if reference is not None
    }


def _with_kind(kind: str, reference: str) -> str:
    if kind == "tokenizers" and reference.startswith("models/"):  # of which it is the tokenizer
        return reference
    return f"{kind}/{reference.removeprefix(f'{kind}/')}"
