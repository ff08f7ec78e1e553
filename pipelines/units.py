"""The one unit runner: plan → Ray Data map over units → ledger → the list of failures.

A stage over a corpus plans units of work whose outputs depend on nothing but the unit. Ray Data maps over
*units*, one per block, never over documents. The actor that worked on a unit commits its record to the
ledger, so that a stage that dies goes on with the units that are missing.

Errors are caught in the actor and come back as rows. Bad input (`InputError`) fails a unit at once, for it
would fail again; anything else is tried `MAX_ATTEMPTS` times. An actor that dies (of memory, with its
machine) ends the first pass of Ray Data. Later passes take what is missing and isolate it: a death costs the
one unit, its actor is started anew. After `MAX_ATTEMPTS` passes without a single commit we give up. So one
poisonous unit cannot loop, nor keep the others from being finished. What failed is quarantined: one UserError
at the end names it.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cluster.artifacts.ledger import Ledger
from cluster.errors import UserError
from pipelines.progress import stage_progress
from pipelines.unit_meter import UnitMeter

MAX_ATTEMPTS = 3

_NAMED_FAILURES = 3
_NO_ERROR = "the actor that ran it died; it may need more memory than there is"


class InputError(ValueError):
    """The unit's input is at fault: the message names the file and the place. Never tried again."""


@dataclass(frozen=True)
class Unit:
    """A piece of work. `id` names its outputs and its record; `payload` is plain JSON."""

    id: str
    payload: dict[str, Any]


class UnitWorker(Protocol):
    """What a stage brings: constructed once per actor."""

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Do the work and return the unit's record. Doing it again must write the same bytes."""
        ...


def run_units(
    units: Sequence[Unit],
    worker: type[UnitWorker],
    worker_options: dict[str, Any],
    *,
    ledger: Ledger,
    title: str,
    workers: int,
) -> dict[str, dict[str, Any]]:
    """Run the units that the ledger lacks on a pool of `workers` actors of one CPU each.

    Returns the record of every unit, by unit id in the order of `units`. Raises UserError naming units that
    failed; a few are named, the rest counted.
    """
    done = ledger.done()
    errors: dict[str, str] = {}
    attempts: Counter[str] = Counter()
    passes = barren_passes = 0
    missing_at_first = {unit.id: unit.payload for unit in units if unit.id not in done}
    with stage_progress(title, total=len(units)) as progress, UnitMeter(title, missing_at_first) as meter:
        while barren_passes < MAX_ATTEMPTS:
            missing = [unit for unit in units if unit.id not in done and attempts[unit.id] < MAX_ATTEMPTS]
            if not missing:
                break
            finished = sum(unit.id in done for unit in units)
            progress.update(finished)
            statuses = _one_pass(missing, worker, worker_options, ledger, workers, isolate=passes > 0)
            passes += 1
            for status in statuses:
                if status.error:
                    errors[status.unit] = status.error
                    attempts[status.unit] += MAX_ATTEMPTS if status.is_input_error else 1
                    meter.retried(int(attempts[status.unit] < MAX_ATTEMPTS))
                else:
                    meter.done([status.unit])
                    finished += 1
                    progress.update(finished)
            finished_before, done = len(done), ledger.done()
            barren_passes = barren_passes + 1 if len(done) == finished_before else 0
            meter.done(done)
        failed = {unit.id: errors.get(unit.id, _NO_ERROR) for unit in units if unit.id not in done}
        meter.failed(len(failed))
    if failed:
        raise UserError(_describe(title, failed, len(units)))
    return {unit.id: done[unit.id] for unit in units}


def _one_pass(
    units: Sequence[Unit],
    worker: type[UnitWorker],
    options: dict[str, Any],
    ledger: Ledger,
    workers: int,
    isolate: bool,
) -> Iterator["Status"]:
    """One execution of Ray Data over the units, each tried once.

    When an actor dies, the pass ends early; with `isolate` it goes on without the unit. That Ray Data *drops*
    the block then does no harm here: what is done is what the ledger says.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1 if isolate else 0
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a pass that ends early is no news to the user
    # JSON, for Arrow would give pieces of different shapes one shape, with nulls.
    items = [{"id": unit.id, "payload": json.dumps(unit.payload)} for unit in units]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(units)), max_tasks_in_flight_per_actor=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no other way yet to say max_restarts
        statuses = rows.map_batches(
            _UnitActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=1,
            fn_constructor_kwargs={"worker": worker, "options": options, "ledger": ledger},
            # Ray Data's own defaults are endless. With none at all, a pool whose actors all died would hang.
            max_restarts=len(units) if isolate else 0,
            max_task_retries=0,
        )
    try:
        for row in statuses.iter_rows():
            yield Status(**row)
    except ray.exceptions.RayError:
        return


@dataclass(frozen=True)
class Status:
    """What an actor says of a unit; the record itself is in the ledger."""

    unit: str
    error: str = ""
    is_input_error: bool = False


class _UnitActor:
    """Runs in the pool: unit rows in, status rows out. Does not let an error escape to Ray Data."""

    def __init__(self, worker: type[UnitWorker], options: dict[str, Any], ledger: Ledger) -> None:
        self._worker = worker(**options)
        self._ledger = ledger

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        statuses = [asdict(self._run(row["id"], json.loads(row["payload"]))) for row in batch.to_pylist()]
        return {key: [status[key] for status in statuses] for key in statuses[0]}

    def _run(self, unit_id: str, payload: dict[str, Any]) -> Status:
        try:
            self._ledger.commit(unit_id, self._worker.run(unit_id, payload))
        except InputError as error:
            return Status(unit_id, str(error), is_input_error=True)
        except Exception as error:  # whatever it is, it must come back as a row
            return Status(unit_id, f"{type(error).__name__}: {error}")
        return Status(unit_id)


def _describe(title: str, failures: dict[str, str], total: int) -> str:
    named = [f"{unit}: {error}" for unit, error in list(failures.items())[:_NAMED_FAILURES]]
    more = f"; and {len(failures) - len(named)} more" if len(failures) > len(named) else ""
    return (
        f"{title}: {len(failures)} of {total} units failed ({'; '.join(named)}{more}); "
        f"mend the input and run again: finished units are kept"
    )
