"""Run one function in a process of the cluster, and again where the process dies: a few times, not for ever.

Ray's own retries of a task that its memory monitor killed are endless, whatever `max_retries` says. So this
is an actor without any, which also shows in the list of what waits for room (waiting.py).
"""

from collections.abc import Callable
from typing import Any

from cluster.errors import UserError

ATTEMPTS = 3


def run_in_one_process(
    function: Callable[..., Any],
    *arguments: Any,
    cpus: float,
    what: str,
    less_memory: str,
    memory_bytes: int = 0,
) -> Any:
    """`function(*arguments)`, which must do no harm when it is run again; what it raises is raised here.

    Args:
        what: is being done, for messages.
        less_memory: what the user can do to make it need less.
        memory_bytes: to reserve on the node; Ray waits for a node that has them free.

    Raises:
        UserError: memory did not suffice, or the process died `ATTEMPTS` times.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    start = ray.remote(num_cpus=cpus, memory=memory_bytes, max_restarts=0, max_task_retries=0)(_Process)
    ends: list[str] = []
    for _ in range(ATTEMPTS):
        process = start.remote()
        try:
            return ray.get(process.run.remote(function, *arguments))
        except RayTaskError as error:
            if isinstance(error.cause, MemoryError):
                raise UserError(
                    f"{what}: out of memory ({error.cause or 'MemoryError'}); {less_memory}"
                ) from None
            raise
        except OutOfMemoryError as error:
            ends.append(f"its node ran out of memory{node_memory(error)}; {less_memory}")
        except RayActorError as error:  # Also the kernel's way to end a process that takes too much.
            reason = str(error).strip().splitlines()[0].rstrip(".")
            ends.append(f"{reason}; if memory is short, {less_memory}, else run again")
        finally:
            ray.kill(process)
    raise UserError(f"{what}: its process died {ATTEMPTS} times, at last because {ends[-1]}")


def node_memory(error: Exception) -> str:
    """ " (7.8GB used / 8.0GB limit)" out of the text of Ray's OutOfMemoryError; "" if it is not there."""
    _, found, rest = str(error).partition(") was ")
    used = rest.splitlines()[0].rpartition(" (")[0] if found else ""
    return f" ({used})" if used else ""


class _Process:
    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
