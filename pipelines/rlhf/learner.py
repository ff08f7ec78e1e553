"""The learner: policy, critic and their optimizer, sharded over one or more actors.

Every actor gets all rollouts and takes part in every collective; `update.py` says who does what of the work.
They learn on while a checkpoint is written.
"""

from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.artifacts.files import explain_full_disk
from cluster.artifacts.lease import Ticket
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.workspace import Workspace
from llm.alignment.rollouts import Rollout, Scored
from llm.training.checkpoint import load_checkpoint, newest_checkpoint
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.checkpoint_writing import CheckpointPlace
from llm.training.cpu_memory import keep_freed_memory
from llm.training.parallel.weights import gather_weights
from pipelines.actors.weights import PublishedWeights, publish
from pipelines.checkpoint_mirror import mirror_of
from pipelines.model_folder import CONFIG, WEIGHTS
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.models import load_sharded, make_optimizer
from pipelines.rlhf.update import learn


@ray.remote
class Learner:
    """One rank. `open_store` on rank 0, then `join` on all; every later call goes to all ranks alike."""

    def __init__(
        self,
        config: RLHFConfig,
        rank: int,
        policy: Artifact,
        reward_model: Artifact,
        workspace: Workspace,
        ticket: Ticket,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._config, self._rank = config, rank
        self._policy, self._reward_model = policy, reward_model
        mirror = mirror_of(workspace, logs=())
        self._place = CheckpointPlace(
            workspace.path / "checkpoints",
            config.keep_checkpoints,
            mirror=mirror,
            may_write=ticket.is_current,
        )
        self._store: dist.Store | None = None

    def node(self) -> str:
        """Where it is, by Ray's id."""
        return str(ray.get_runtime_context().get_node_id())

    def open_store(self) -> tuple[str, int]:
        """(host, port) at which the learners meet."""
        host = ray.util.get_node_ip_address()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self._store = store
        return host, store.port

    def join(self, address: tuple[str, int]) -> dict[str, Any] | None:
        """Load the models; returns the state of the checkpoint to go on from, None if there is none."""
        store = self._store or dist.TCPStore(*address, is_master=False)
        dist.init_process_group("gloo", store=store, rank=self._rank, world_size=self._config.learners)
        self._models = load_sharded(
            self._policy.fetch(CONFIG, WEIGHTS), self._reward_model.fetch(CONFIG, WEIGHTS), self._config
        )
        self._optimizer = make_optimizer(self._models, self._config)
        self._saver = CheckpointSaver(self._place, self._config.checkpoint_async)
        checkpoint = newest_checkpoint(self._place.folder, self._place.mirror)
        return load_checkpoint(checkpoint, self._models, self._optimizer) if checkpoint else None

    def learn(self, rollouts: list[Rollout], scored: Scored, beta: float, iteration: int) -> dict[str, float]:
        """One iteration of PPO; returns its metrics, equal on every rank. What went wrong with a checkpoint
        meanwhile comes up here.
        """
        with explain_full_disk(self._place.folder):
            self._saver.check()
        return learn(self._models, self._optimizer, rollouts, scored, beta, iteration, self._config)

    def publish(self, version: int) -> PublishedWeights | None:
        """The policy's whole weights in the object store, by rank 0."""
        weights = gather_weights(self._models.policy)
        return publish(weights, version) if self._rank == 0 else None

    def weights(self) -> dict[str, Tensor]:
        """The policy's whole weights, from rank 0; empty on the others."""
        return gather_weights(self._models.policy)

    def save(self, iteration: int, state: dict[str, Any], attachments: dict[str, bytes]) -> None:
        """Write checkpoints/step-`iteration`: policy, critic, their optimizer and `state`, as they are now.
        Returns when they are copied, and the checkpoint before is whole.
        """
        with explain_full_disk(self._place.folder):
            self._saver.save(iteration, self._models, self._optimizer, state, attachments)

    def finish_checkpoint(self) -> None:
        """Return when no checkpoint is in the making."""
        with explain_full_disk(self._place.folder):
            self._saver.wait()
