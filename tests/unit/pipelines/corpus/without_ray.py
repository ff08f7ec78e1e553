"""The corpus stage in this process: its workers one after the other, in the place of Ray's actors."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from pipelines.corpus import stage
from pipelines.corpus.config import CorpusConfig
from pipelines.units import Unit


def make_corpus(config: CorpusConfig, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """`pipelines.corpus.stage.run` without a cluster."""
    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_units", _run_units)
        return stage.run(config, _NoCluster())  # type: ignore[arg-type]


class _NoCluster:
    def connect(self) -> None:
        """There is none."""


def _run_units(
    units: Sequence[Unit], worker: Any, options: dict[str, Any], *, draft: Draft, config: Any, title: str
) -> dict[str, dict[str, Any]]:
    actor = worker(**options)
    for unit in units:
        draft.ledger.commit(unit.id, actor.run(unit.id, json.loads(json.dumps(unit.payload))))
    done = draft.ledger.done()
    return {unit.id: done[unit.id] for unit in units}
