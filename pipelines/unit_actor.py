"""The worker's side of the unit runner: each unit is committed to the ledger from where it ran."""

import json
import resource
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import psutil

from cluster.artifacts.files import is_disk_full
from cluster.artifacts.lease import Ticket
from cluster.artifacts.ledger import Ledger
from cluster.errors import StorageError, UserError

_SLACK_BYTES = 512 * 2**20
"""Address space for the stacks of threads and the like, which counts although it is never touched."""


class InputError(ValueError):
    """The unit's input is at fault: the message names the file and the place. Never tried again."""


class UnitWorker(Protocol):
    """What a stage brings: constructed once per actor."""

    def run(self, unit_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Do the work and return the unit's record. Doing it again must write the same bytes.

        Called for one unit at a time, unless the stage has asked for more (`run_units`' `at_once`).
        """
        ...


@dataclass(frozen=True)
class Status:
    """What an actor says of a unit; the record itself is in the ledger."""

    unit: str
    error: str = ""
    is_input_error: bool = False


class UnitActor:
    """Runs in the pool: unit rows in, status rows out. Does not let an error escape to Ray Data."""

    def __init__(
        self,
        worker: type[UnitWorker],
        options: dict[str, Any],
        ledger: Ledger,
        run_id: str,
        ticket: Ticket,
        memory_bytes: int,
    ) -> None:
        _hold_to(memory_bytes)
        self._worker = worker(**options)
        self._ledger, self._run_id, self._ticket = ledger, run_id, ticket

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        statuses = [asdict(self._run(**row)) for row in batch.to_pylist()]
        return {key: [status[key] for status in statuses] for key in statuses[0]}

    def _run(self, id: str, payload: str, attempt: int) -> Status:
        try:
            self._ticket.check()
            # Before the work: if it takes this process down, it has been counted.
            self._ledger.attempt(self._run_id, id, attempt)
            self._ledger.commit(id, self._worker.run(id, json.loads(payload)))
        except StorageError as error:
            return Status(id, str(error))
        except (InputError, UserError) as error:
            return Status(id, str(error), is_input_error=True)
        except MemoryError as error:
            return Status(id, f"out of memory ({error or 'MemoryError'}); raise --memory-per-worker")
        except OSError as error:
            full = (
                "the disk is full; make room" if is_disk_full(error) else f"{type(error).__name__}: {error}"
            )
            return Status(id, full)
        except Exception as error:  # whatever it is, it must come back as a row
            return Status(id, f"{type(error).__name__}: {error}")
        return Status(id)


def _hold_to(memory_bytes: int) -> None:
    """Let allocations beyond `memory_bytes` fail in this process, instead of failing others on its machine.

    Ray's `memory` only books what an actor asks for. RLIMIT_DATA counts private writable memory, so that
    files and the object store, which are mapped, are free.
    """
    already = getattr(psutil.Process().memory_info(), "data", 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = already + memory_bytes + _SLACK_BYTES
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
