"""What ends a training at once, where any other failure of a worker has Ray Train start all of them again."""

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError


class Final(Exception):
    """Raised by a worker for what another attempt would meet again."""


class Retries(DefaultFailurePolicy):
    """Ray Train's own, `max_failures` among it, but for a worker that raises `Final`: then no more."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if isinstance(training_failed_error, WorkerGroupError):
            failures = training_failed_error.worker_failures.values()
            if any(isinstance(failure, Final) for failure in failures):
                return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
