"""The loop of reinforcement learning, on one page.

    engines ──rollouts──► scorer ──scores, reference──► learners ──weights──► engines

Synchronous: rollouts of iteration i are sampled with the weights that i iterations made, version i. Prompts
and seeds are functions of the iteration, so that one that is run again, after whatever died, is the same
again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.errors import UserError
from llm.alignment.kl import AdaptiveKL
from llm.alignment.rollouts import Rollout
from llm.engine.request import Request
from llm.training.step import NonFiniteError
from pipelines.actors.engine_pool import EnginePool
from pipelines.prompts import Prompt
from pipelines.rlhf.config import RLHFConfig
from pipelines.sampling import chat_request


@dataclass(frozen=True)
class Actors:
    """Everything that works for the loop."""

    engines: EnginePool
    scorer: Any
    learners: list[Any]
    nodes: frozenset[str]
    """Whose loss ends the run, by Ray's ids: the learners', and this process's."""


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on."""

    iteration: int
    """Iterations done, which is also the version of the learners' weights."""
    kl: AdaptiveKL


Record = Callable[[dict[str, Any], dict[str, float], int, list[Rollout], list[float]], None]
"""(metrics, seconds of each phase, engines that died so far, rollouts, scores) of one iteration."""


def align(
    actors: Actors,
    prompts: Sequence[Prompt],
    start: Start,
    config: RLHFConfig,
    record: Record,
    checkpoint: Callable[[int, AdaptiveKL], None],
    asked_for: Callable[[], bool],
) -> None:
    """Run the iterations from `start` on; `checkpoint(iterations done, kl)` is called now and then, at the
    end, and after an iteration in which it was `asked_for`.
    """
    kl = start.kl
    send_weights(actors, start.iteration)
    for iteration in range(start.iteration, config.iterations):
        clock = Clock()
        rollouts = collect(actors.engines, requests_of(iteration, prompts, config))
        clock.lap("generate")
        shared = ray.put(rollouts)
        scoring = actors.scorer.score.remote(shared)
        scores = ray.get(scoring).scores.tolist()
        clock.lap("score")
        learning = [learner.learn.remote(shared, scoring, kl.beta, iteration) for learner in actors.learners]
        metrics = learned(learning, iteration)
        clock.lap("learn")
        done = iteration + 1
        send_weights(actors, done)
        clock.lap("send")

        values = {"step": done, "beta": kl.beta, **metrics}
        record(values, clock.laps, actors.engines.deaths, rollouts, scores)
        kl = kl.updated(metrics["kl"], len(rollouts))
        if asked_for() or done % config.checkpoint_every == 0 or done == config.iterations:
            checkpoint(done, kl)


def requests_of(iteration: int, prompts: Sequence[Prompt], config: RLHFConfig) -> list[Request]:
    """One request for each prompt of the iteration's share of the endless stream of prompts."""
    first = iteration * config.rollouts
    return [
        chat_request(
            prompts[index % len(prompts)],
            sample=iteration,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        for index in range(first, first + config.rollouts)
    ]


def collect(engines: EnginePool, requests: list[Request]) -> list[Rollout]:
    """One rollout a request, in their order, sampled by all engines together."""
    share = -(-len(requests) // len(engines.actors))
    batches = [requests[start : start + share] for start in range(0, len(requests), share)]
    finished = dict(engines.generate(batches))
    return [
        Rollout(
            prompt_id=request.id.rpartition("-")[0],
            prompt_ids=completion.prompt_ids,
            response_ids=completion.response_ids,
            logprobs=completion.logprobs,
            weights_version=completion.weights_version,
            finish_reason=completion.finish_reason,
            seed=request.params.seed,
        )
        for index, batch in enumerate(batches)
        for request, completion in zip(batch, finished[index], strict=True)
    ]


def learned(learning: list[ray.ObjectRef], iteration: int) -> dict[str, float]:
    """The iteration's metrics, which all learners agree on.

    Raises:
        UserError: a step would have ruined the weights. It would again: what is asked for must change.
    """
    try:
        metrics: dict[str, float] = ray.get(learning)[0]
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, NonFiniteError):
            raise
        raise UserError(
            f"rlhf: iteration {iteration + 1}: {error.cause}; the step was not taken. "
            "Lower --ppo.learning-rate or --ppo.critic-learning-rate"
        ) from None
    return metrics


def send_weights(actors: Actors, version: int) -> None:
    """Give all engines the learners' weights, through the object store."""
    published = ray.get([learner.publish.remote(version) for learner in actors.learners])
    actors.engines.update_weights(published[0])


class Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the phase `name`, which began when the one before it ended."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
