"""Start everything that the loop needs, and stop it again."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cluster.artifacts.lease import Ticket
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.workspace import Workspace
from cluster.connect import Cluster
from cluster.placement import Share
from pipelines.actors.engine_pool import EnginePool
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.learner import Learner
from pipelines.rlhf.loop import Actors
from pipelines.rlhf.scorer import Scorer

_PATIENCE_SECONDS = 10.0
"""With a checkpoint in the making when a run ends early."""
ENGINES, LEARNERS, SCORER = 0.5, 0.25, 0.25
"""Parts of the CPUs. They only say that all fit at once: the phases take turns on the same cores."""


@contextmanager
def start_actors(
    config: RLHFConfig,
    cluster: Cluster,
    policy: Artifact,
    reward_model: Artifact,
    workspace: Workspace,
    ticket: Ticket,
) -> Iterator[tuple[Actors, dict[str, Any] | None]]:
    """(actors, state of the checkpoint that the learners went on from, None for a new run)."""
    # Learners and scorer compute on CPUs; engines take a GPU each where there are enough.
    for_learner = cluster.share(config.learners, use_gpus=False)
    for_scorer = cluster.share(1, use_gpus=False)
    for_engine = cluster.share(config.engines)

    def threads(share: Share) -> int:
        """As many as the share without the other phases, which take turns with this one."""
        return config.threads or max(1, int(share.cpus))

    learners = [
        Learner.options(num_cpus=for_learner.part(LEARNERS).cpus).remote(  # type: ignore[attr-defined]
            config, rank, policy, reward_model, workspace, ticket, threads(for_learner)
        )
        for rank in range(config.learners)
    ]
    scorer = Scorer.options(num_cpus=for_scorer.part(SCORER).cpus).remote(  # type: ignore[attr-defined]
        reward_model, policy, config.temperature, config.micro_batch, threads(for_scorer)
    )
    engines = EnginePool(
        config.engines,
        policy,
        share=for_engine.part(ENGINES),
        max_batch=config.max_batch,
        max_seq_len=config.max_prompt_tokens + config.max_tokens,
        threads=threads(for_engine),
    )
    try:
        address = ray.get(learners[0].open_store.remote())
        states = ray.get([learner.join.remote(address) for learner in learners])
        nodes = {ray.get_runtime_context().get_node_id(), *ray.get([each.node.remote() for each in learners])}
        yield Actors(engines, scorer, learners, frozenset(nodes)), states[0]
    finally:
        engines.close()
        with contextlib.suppress(Exception):  # if they are dead, or busy for long, that one is given up
            ray.get([each.finish_checkpoint.remote() for each in learners], timeout=_PATIENCE_SECONDS)
        for actor in (scorer, *learners):
            ray.kill(actor)
