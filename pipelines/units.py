"""The one unit runner: plan → Ray Data map over units → ledger → the list of failures.

A stage over a corpus plans units of work whose outputs depend on nothing but the unit. Ray Data maps over
*units*, one per block, never over documents. The actor that worked on a unit commits its record to the
ledger, so that a stage that dies goes on with the units that are missing.

Errors are caught in the actor and come back as rows. Bad input (`InputError`) fails a unit at once, for it
would fail again; anything else is tried `MAX_ATTEMPTS` times. An actor that dies (of memory, with its
machine) ends the first pass of Ray Data. Later passes take what is missing and isolate it: a death costs the
one unit, its actor is started anew. The ledger counts attempts before they are made, so that a unit that
takes its actors down is given up like any other, and cannot keep the rest from being finished.

What failed is quarantined: the ledger keeps its error, and it is listed at the end. More failures than
`--max-failed-units` end the stage with one UserError; up to that many are left out.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.redact import redact
from cluster.errors import UserError
from pipelines.progress import console, stage_progress
from pipelines.unit_actor import Status, UnitActor, UnitWorker
from pipelines.unit_config import UnitsConfig
from pipelines.unit_meter import UnitMeter

MAX_ATTEMPTS = 3

_NAMED_FAILURES = 3
_WAITING = 1
"""Units that an actor has beside those that it works on. Ray Data takes up to 0.2 s to send one."""


@dataclass(frozen=True)
class Unit:
    """A piece of work. `id` names its outputs and its record; `payload` is plain JSON."""

    id: str
    payload: dict[str, Any]


def run_units(
    units: Sequence[Unit],
    worker: type[UnitWorker],
    worker_options: dict[str, Any],
    *,
    draft: Draft,
    config: UnitsConfig,
    title: str,
    at_once: int = 1,
) -> dict[str, dict[str, Any]]:
    """Run the units that the draft's ledger lacks, on a pool of actors of one CPU each; Ray must be running.

    at_once: units that each actor works on, each in a thread of its own: `worker.run` must allow that. Those
    of an actor that died are tried again one at a time, to tell which it was.

    Returns the records of the units that were done, by unit id in the order of `units`.

    Raises:
        LeaseLost: another process works on the draft now; nothing more is written to it.
        UserError: more units failed than `config.max_failed_units`; a few are named, the rest counted.
    """
    ledger = draft.ledger
    done = ledger.done()
    run = _Run(draft, worker, worker_options, config, at_once)
    missing_at_first = {unit.id: unit.payload for unit in units if unit.id not in done}
    with (
        stage_progress(title, total=len(units)) as progress,
        closing(UnitMeter(title, missing_at_first)) as meter,
    ):
        for isolate in run.passes():
            missing = [unit for unit in units if unit.id not in done and run.may_try(unit.id)]
            if not missing:
                break
            finished = sum(unit.id in done for unit in units)
            progress.update(finished)
            for status in run.one_pass(missing, isolate):
                if status.error:
                    meter.retried(int(run.may_try(status.unit)))
                else:
                    meter.done([status.unit])
                    finished += 1
                    progress.update(finished, **meter.rate())
            done = ledger.done()
            run.count_deaths(unit.id for unit in missing if unit.id not in done)
            meter.done(done)
        failed = {unit.id: run.error(unit.id) for unit in units if unit.id not in done}
        meter.failed(len(failed))
        if missing_at_first:
            draft.note(units={**draft.facts.get("units", {}), title: meter.summary()})
    # Whoever took over may have removed what our units read: no fault of theirs.
    draft.ticket.check()
    _report(title, failed, len(units), draft, config.max_failed_units)
    return {unit.id: done[unit.id] for unit in units if unit.id in done}


class _Run:
    """Passes over units until all are done or given up."""

    def __init__(
        self,
        draft: Draft,
        worker: type[UnitWorker],
        options: dict[str, Any],
        config: UnitsConfig,
        at_once: int,
    ) -> None:
        self._draft, self._worker, self._options, self._config = draft, worker, options, config
        self._at_once = at_once
        self._attempts: Counter[str] = Counter()
        self._given_up: set[str] = set()
        self._errors: dict[str, str] = {}
        self._pass_error = ""

    def passes(self) -> Iterator[bool]:
        """One item a pass: whether it isolates deaths. Ends when passes come to nothing: no actor starts."""
        barren = 0
        isolate = False
        while barren < MAX_ATTEMPTS:
            before = self._attempts.total()
            yield isolate
            barren = barren + 1 if self._attempts.total() == before else 0
            isolate = True

    def may_try(self, unit_id: str) -> bool:
        return unit_id not in self._given_up and self._attempts[unit_id] < MAX_ATTEMPTS

    def error(self, unit_id: str) -> str:
        """Why the unit is not done."""
        died = f"the actor that ran it died {self._attempts[unit_id]} times; it may need more memory"
        not_tried = f"no actor could run it: {self._pass_error}"
        return self._errors.get(unit_id) or (died if self._attempts[unit_id] else not_tried)

    def count_deaths(self, unfinished: Iterator[str]) -> None:
        """Take the attempts from the ledger, where those that ended in a death are too."""
        if any(True for _ in unfinished):
            self._attempts = Counter(self._draft.ledger.attempts(self._draft.run_id))

    def one_pass(self, units: Sequence[Unit], isolate: bool) -> Iterator[Status]:
        """One execution of Ray Data over the units, each tried once.

        When an actor dies, the pass ends early; with `isolate` it goes on without the unit. That Ray Data
        *drops* the block then does no harm here: what is done is what the ledger says.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = -1 if isolate else 0
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a pass that ends early is no news
        # JSON, for Arrow would give pieces of different shapes one shape, with nulls.
        items = [
            {"id": unit.id, "payload": json.dumps(unit.payload), "attempt": self._attempts[unit.id]}
            for unit in units
        ]
        rows = ray.data.from_items(items, override_num_blocks=len(items))
        memory = int(self._config.memory_per_worker * 2**30)
        size = min(_most_workers(self._config, memory), len(units))
        at_once = 1 if isolate else self._at_once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no other way yet to say max_restarts
            statuses = rows.map_batches(
                UnitActor,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    size=size,
                    max_tasks_in_flight_per_actor=at_once + _WAITING,
                    max_concurrent_calls_per_actor=at_once,
                    enable_true_multi_threading=at_once > 1,
                ),
                num_cpus=1,
                memory=memory,
                fn_constructor_kwargs={
                    "worker": self._worker,
                    "options": self._options,
                    "ledger": self._draft.ledger,
                    "run_id": self._draft.run_id,
                    "ticket": self._draft.ticket,
                    "memory_bytes": memory,
                },
                # Ray Data's own defaults are endless. With none, a pool whose actors all died would hang.
                max_restarts=len(units) if isolate else 0,
                max_task_retries=0,
            )
        try:
            for row in statuses.iter_rows():
                status = Status(**row)
                self._attempts[status.unit] += 1
                if status.error:
                    self._errors[status.unit] = status.error
                if status.is_input_error:
                    self._given_up.add(status.unit)
                yield status
        except ray.exceptions.RayError as error:
            self._pass_error = (str(error).strip() or type(error).__name__).splitlines()[-1]


def _most_workers(config: UnitsConfig, memory: int) -> int:
    """As many actors as were asked for, and as the cluster has memory for: Ray would wait for the others."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    by_memory = sum(int(node.get("memory", 0) // memory) for node in resources)
    if by_memory < 1:
        most = max(node.get("memory", 0) for node in resources) / 2**30
        raise UserError(
            f"--memory-per-worker {config.memory_per_worker:g}: no node has more than {most:.1f} GiB of "
            "memory for Ray's workers; lower it"
        )
    return min(config.workers or int(ray.cluster_resources().get("CPU", 1)), by_memory)


def _report(title: str, failures: dict[str, str], total: int, draft: Draft, allowed: int) -> None:
    """Quarantine what failed, and list it. Raises UserError if it is more than `allowed`."""
    if not failures:
        return
    failures = redact(failures)
    draft.ledger.quarantine(failures)
    if len(failures) <= allowed:
        console.print(f"{title}: {len(failures)} of {total} units failed and are left out:")
        for unit, error in failures.items():
            console.print(f"  {unit}: {error}", markup=False)
        draft.note(failed_units={**draft.facts.get("failed_units", {}), **failures})
        return
    raise UserError(
        f"{title}: {len(failures)} of {total} units failed ({_named(failures)}); "
        f"mend the input and run again (finished units are kept), or allow some with --max-failed-units; "
        f"all are listed in {draft.ledger.folder}/quarantine.json"
    )


def _named(failures: dict[str, str]) -> str:
    """A few failures; those with the same error as one."""
    units: dict[str, list[str]] = {}
    for unit, error in failures.items():
        units.setdefault(error, []).append(unit)
    named = [
        f"{same[0]}{f' and {len(same) - 1} more' if same[1:] else ''}: {error}"
        for error, same in list(units.items())[:_NAMED_FAILURES]
    ]
    return "; ".join(named + ["and others"] * (len(units) > len(named)))
