"""Several engine actors behind one call, any of which may die.

Guarantee: every batch of requests comes back once, with the tokens it would have had without a failure. A
request's tokens depend on its own seed, prompt and the weights alone; so when an actor dies, a new one gets
the current weights and the same batch again. A batch that outlives `MAX_DEATHS` actors is what kills them,
and is an error.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from cluster.artifacts.manifest import Artifact
from cluster.errors import UserError
from cluster.placement import Share
from llm.engine.request import Completion, Request
from pipelines.actors.engine import EngineActor
from pipelines.actors.weights import PublishedWeights

MAX_DEATHS = 3


class EnginePool:
    """`count` engines with the weights of `model`, until `update_weights`."""

    def __init__(self, count: int, model: Artifact, *, share: Share, **engine: Any) -> None:
        """Each engine reserves `share`. `engine` goes to each: max_batch, max_seq_len, threads, dtype."""
        reserving = EngineActor.options(num_cpus=share.cpus, num_gpus=share.gpus)  # type: ignore[attr-defined]
        self._spawn = lambda: reserving.remote(model, **engine)
        self._weights: PublishedWeights | None = None
        self.actors = [self._spawn() for _ in range(count)]
        self.deaths = 0

    def update_weights(self, weights: PublishedWeights) -> None:
        """Give every engine, now and after a restart, these weights; returns when all confirm the version."""
        self._weights = weights
        confirmations = [self._send_weights(actor) for actor in self.actors]
        for index, confirmation in enumerate(confirmations):
            try:
                version = ray.get(confirmation)
            except RayActorError:
                self._replace(index)
                continue
            if version != weights.version:
                raise RuntimeError(f"engine {index} serves weights {version}, not {weights.version}")

    def generate(self, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """(index of the batch, its completions in order) as batches finish; one batch at a time an engine."""
        waiting = list(range(len(batches)))[::-1]
        idle = list(range(len(self.actors)))[::-1]
        running: dict[ray.ObjectRef, tuple[int, int]] = {}
        deaths = [0] * len(batches)
        while waiting or running:
            while waiting and idle:
                actor, batch = idle.pop(), waiting.pop()
                running[self.actors[actor].generate.remote(batches[batch])] = (actor, batch)
            (done, *_), _ = ray.wait(list(running))
            actor, batch = running.pop(done)
            idle.append(actor)
            try:
                completions = ray.get(done)
            except RayActorError as error:
                deaths[batch] += 1
                if deaths[batch] >= MAX_DEATHS:
                    raise UserError(
                        f"{MAX_DEATHS} engines died of the same {len(batches[batch])} requests; "
                        "if the machine ran out of memory, lower --max-batch"
                    ) from error
                self._replace(actor)
                waiting.append(batch)
                continue
            yield batch, completions

    def close(self) -> None:
        """Stop all engines."""
        for actor in self.actors:
            ray.kill(actor)

    def __enter__(self) -> "EnginePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace(self, index: int) -> None:
        for _ in range(MAX_DEATHS):
            self.deaths += 1
            self.actors[index] = self._spawn()
            if self._weights is None:
                return
            try:
                ray.get(self._send_weights(self.actors[index]))
                return
            except RayActorError:
                continue
        raise UserError(
            f"{MAX_DEATHS} engines in a row died before they had their weights; see `manta doctor`"
        )

    def _send_weights(self, actor: ray.actor.ActorHandle) -> ray.ObjectRef:
        assert self._weights is not None
        weights = self._weights
        return actor.update_weights.remote(weights.layout, weights.version, *weights.buckets)
