"""What every stage's configuration shares: frozen, strict, and split into *what* and *how*.

*What* a stage makes is hashed into its artifact's version. *How* it is made (workers, micro-batch, logging,
endpoints) is not: a field says so with its type, ``workers: How[int] = 1``. What is added to *what* one day
is ``Later[…]``, lest all versions change. This module imports neither torch nor Ray, so that ``manta --help``
is instant.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict

_T = TypeVar("_T")


class _HowMarker:
    """Marks a field that does not change the result."""


class _LaterMarker:
    """Marks a field that came when artifacts had been made without it."""


How = Annotated[_T, _HowMarker()]
Later = Annotated[_T, _LaterMarker()]
"""A *what* that is left out of the version where it stands at its default, so that what was made before there
was such a field keeps its version.
"""


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields; attribute docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StageConfig(Frozen):
    """Fields that every stage has."""

    root: How[str] = "runs/default"
    """Where artifacts live: a folder that all nodes see, or s3://BUCKET/PREFIX."""
    name: How[str] = "default"
    """Name of the artifact to make: KIND/NAME/VERSION under the root."""
    address: How[str | None] = None
    """Ray cluster to join, HOST:PORT; by default one that runs on this machine, else one is started."""
    force: How[bool] = False
    """Make the artifact again even if this version exists."""

    def what(self) -> dict[str, Any]:
        """The part of the configuration that decides the result, as plain JSON types."""
        return _select(self, how=False)

    def how(self) -> dict[str, Any]:
        """The part that does not: recorded in ``run.json``, never hashed."""
        return _select(self, how=True)


def _is(marker: type, metadata: list[Any]) -> bool:
    return any(isinstance(item, marker) for item in metadata)


def _select(model: BaseModel, how: bool) -> dict[str, Any]:
    """Fields of ``model`` marked as *how* (or not), nested models included; empty nested results left out."""
    plain = model.model_dump(mode="json")
    selected: dict[str, Any] = {}
    for field_name, field in type(model).model_fields.items():
        value = getattr(model, field_name)
        if _is(_HowMarker, field.metadata):
            if how:
                selected[field_name] = plain[field_name]
        elif _is(_LaterMarker, field.metadata) and value == field.default:
            continue
        elif isinstance(value, BaseModel):
            nested = _select(value, how)
            if nested:
                selected[field_name] = nested
        elif not how:
            selected[field_name] = plain[field_name]
    return selected
