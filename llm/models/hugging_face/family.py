"""What a family is to `directory.py`: a config.json read and written, and the parameters by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llm.models.config import ModelConfig
from llm.models.hugging_face.fields import Fields
from llm.models.hugging_face.names import Pair, Read


def nothing_same(config: ModelConfig) -> dict[str, str]:
    """Of a family whose files hold nothing twice."""
    return {}


@dataclass(frozen=True)
class Family:
    """A family of published models."""

    architectures: dict[str, str]
    """Their class by `model_type`."""
    required: Callable[[ModelConfig], dict[str, Any]]
    """The fields of ours that they can have in one way only, given the others."""
    our_config: Callable[[Fields, set[str]], dict[str, Any]]
    """Fields and names of tensors -> our fields, those that are the same in all the family left out.

    Raises Unsupported for what we do not have.
    """
    their_config: Callable[[ModelConfig], dict[str, Any]]
    """Their config.json, without class, data type and special ids."""
    pairs: Callable[[ModelConfig], list[Pair]]
    """All parameters."""
    same: Callable[[ModelConfig], dict[str, str]] = nothing_same
    """Tensors that may be there and then equal another one."""
    always: dict[str, Any] = field(default_factory=dict)
    """Our fields that are the same in all the family."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that say nothing that we need, such as masks."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) from older names to those of `pairs`."""

    def misfits(self, config: ModelConfig) -> dict[str, Any]:
        """Fields of ours that this family cannot have, and what they should be."""
        needed = self.always | self.required(config)
        return {name: value for name, value in needed.items() if getattr(config, name) != value}

    def to_theirs(self, read: Read, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
        """Our parameters, each read once, as their tensors: views, without the vocabulary's padding."""
        for pair in self.pairs(config):
            yield from pair.to_theirs(read(pair.ours)).items()
