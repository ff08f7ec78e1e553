"""`run_units` in this process: a stage's workers one unit after the other, in the place of Ray's actors."""

import json
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

from cluster.artifacts.draft import Draft
from pipelines.units import Unit

NO_CLUSTER: Any = SimpleNamespace(connect=lambda: None, share=lambda count: None, largest_memory_bytes=2**40)


class UnitsHere:
    """Call it as `run_units`. Units whose ids start with one of `failing` fail, and are left out."""

    def __init__(self, failing: Collection[str] = ()) -> None:
        self.failing = failing
        self.ran: list[str] = []
        """Ids, in the order in which they were run."""

    def __call__(
        self,
        units: Sequence[Unit],
        worker: Any,
        options: dict[str, Any],
        *,
        draft: Draft,
        config: Any,
        title: str,
        at_once: int = 1,
    ) -> dict[str, dict[str, Any]]:
        done, actor = draft.ledger.done(), worker(**options)
        for unit in units:
            if unit.id in done or unit.id.startswith(tuple(self.failing)):
                continue
            draft.ledger.commit(unit.id, actor.run(unit.id, json.loads(json.dumps(unit.payload))))
            self.ran.append(unit.id)
        done = draft.ledger.done()
        return {unit.id: done[unit.id] for unit in units if unit.id in done}
