"""The one unit runner: plan → Ray Data map over units → ledger → the list of failures.

A stage over a corpus plans units of work whose outputs depend on nothing but the unit. Ray Data maps over
*units*, one per block, never over documents. The actor that worked on a unit commits its record to the
ledger, so that a stage that dies goes on with the units that are missing.

Errors are caught in the actor and come back as rows. Bad input (`InputError`) fails a unit at once, for it
would fail again; anything else, an actor that dies included, is tried again up to `MAX_ATTEMPTS` times in
all. What still fails is quarantined: the other units are finished first, then one UserError names it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cluster.artifacts.ledger import Ledger
from cluster.errors import UserError
from pipelines.progress import StageProgress, stage_progress

MAX_ATTEMPTS = 3

_ACTOR_RESTARTS = 2  # Ray Data's own defaults are to restart actors and retry tasks without end.
_NAMED_FAILURES = 3


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
    failed; their number is bounded, the rest are counted.
    """
    done = ledger.done()
    pending = [unit for unit in units if unit.id not in done]
    failures: dict[str, str] = {}
    with stage_progress(title, total=len(units)) as progress:
        progress.update(len(units) - len(pending))
        for _ in range(MAX_ATTEMPTS):
            retryable = {unit.id for unit in pending} - failures.keys()
            if not retryable:
                break
            attempt = [unit for unit in pending if unit.id in retryable]
            transient = _run_once(attempt, worker, worker_options, ledger, workers, failures, progress)
            done = ledger.done()
            pending = [unit for unit in pending if unit.id not in done]
    failures = {
        unit.id: failures.get(unit.id) or transient.get(unit.id, "its actor died") for unit in pending
    }
    if failures:
        raise UserError(_describe(title, failures, len(units)))
    return {unit.id: done[unit.id] for unit in units}


def _run_once(
    units: Sequence[Unit],
    worker: type[UnitWorker],
    worker_options: dict[str, Any],
    ledger: Ledger,
    workers: int,
    failures: dict[str, str],
    progress: StageProgress,
) -> dict[str, str]:
    """One pass of Ray Data over the units. Adds bad input to `failures`, returns errors worth a retry."""
    import ray

    transient: dict[str, str] = {}
    finished = progress.total - len(units)
    try:
        for row in _map(units, worker, worker_options, ledger, workers):
            if not row["error"]:
                finished += 1
                progress.update(finished)
            elif row["is_input_error"]:
                failures[row["unit"]] = row["error"]
            else:
                transient[row["unit"]] = row["error"]
    except ray.exceptions.RayError as error:  # the pool itself broke: the units it held are tried again
        first_line = str(error).strip().splitlines()[0]
        transient = {unit.id: first_line for unit in units} | transient
    return transient


def _map(
    units: Sequence[Unit], worker: type[UnitWorker], options: dict[str, Any], ledger: Ledger, workers: int
) -> Iterable[dict[str, Any]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units))
    statuses = rows.map_batches(
        _UnitActor,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(units)), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        fn_constructor_kwargs={"worker": worker, "options": options, "ledger": ledger},
        ray_remote_args_fn=_finite_retries,
    )
    return statuses.iter_rows()


def _finite_retries() -> dict[str, Any]:
    return {"max_restarts": _ACTOR_RESTARTS, "max_task_retries": _ACTOR_RESTARTS}


class _UnitActor:
    """Runs in the pool: unit rows in, status rows out. Does not let an error escape to Ray Data."""

    def __init__(self, worker: type[UnitWorker], options: dict[str, Any], ledger: Ledger) -> None:
        self._worker = worker(**options)
        self._ledger = ledger

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        statuses = [self._run(row["id"], row["payload"]) for row in batch.to_pylist()]
        return {key: [status[key] for status in statuses] for key in statuses[0]}

    def _run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        try:
            self._ledger.commit(unit_id, self._worker.run(unit_id, payload))
        except InputError as error:
            return {"unit": unit_id, "error": str(error), "is_input_error": True}
        except Exception as error:  # whatever it is, it must come back as a row
            return {"unit": unit_id, "error": f"{type(error).__name__}: {error}", "is_input_error": False}
        return {"unit": unit_id, "error": "", "is_input_error": False}


def _describe(title: str, failures: dict[str, str], total: int) -> str:
    named = [f"{unit}: {error}" for unit, error in list(failures.items())[:_NAMED_FAILURES]]
    more = f"; and {len(failures) - len(named)} more" if len(failures) > len(named) else ""
    return (
        f"{title}: {len(failures)} of {total} units failed ({'; '.join(named)}{more}); "
        f"mend the input and run again: finished units are kept"
    )
