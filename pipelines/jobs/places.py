"""Places in a configuration: the folders, files and addresses that a job on another machine may not see."""

import os
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from cluster.dashboard import runs_here
from cluster.errors import UserError
from cluster.shared_places import Places
from pipelines.quickstart.config import QuickstartConfig

_Config = TypeVar("_Config", bound=BaseModel)
Move = Callable[[str, str], str]
"""From a flag and the place that it names to the place as the job shall see it."""


def move_places(config: _Config, move: Move) -> _Config:
    """The configuration with each of its places moved: root, raw inputs."""
    moved: dict[str, object] = {}
    if root := getattr(config, "root", None):
        moved["root"] = move("--root", root)
    if paths := getattr(config, "paths", ()):
        moved["paths"] = tuple(move("--paths", path) for path in paths)
    if isinstance(config, QuickstartConfig) and config.source != "python-stdlib":
        moved["source"] = move("--source", config.source)
    return config.model_copy(update=moved)


def places_on_disk(*configs: BaseModel) -> Places:
    """The places of the configurations that are not in object storage."""
    found: dict[str, list[str]] = {}

    def keep(flag: str, place: str) -> str:
        if "://" not in place and place not in (known := found.setdefault(flag, [])):
            known.append(place)
        return place

    for config in configs:
        move_places(config, keep)
    written = {"--root": found.pop("--root")[0]} if "--root" in found else {}  # Stages of a run share it.
    return Places(written, {flag: tuple(each) for flag, each in found.items()})


def move_place(flag: str, place: str, dashboard: Callable[[], str]) -> str:
    """A place as the cluster with this dashboard shall see it; the dashboard is looked for if that matters.

    On this machine it is made absolute: jobs run in a folder of their own, where relative paths mean nothing.

    Raises:
        UserError: it is a folder or file of this machine, and the cluster is elsewhere.
    """
    if "://" in place:
        return place
    if not runs_here(url := dashboard()):
        raise UserError(
            f"{flag} {place} is a place on this machine, which the cluster at {url} does not see: "
            "give one in object storage (s3://BUCKET/PREFIX)"
        )
    return os.path.abspath(os.path.expanduser(place))
