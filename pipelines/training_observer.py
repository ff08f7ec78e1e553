"""What a worker tells of itself besides metrics: steps that hang, workers that are slow, profiles."""

from pathlib import Path

import ray
from ray.train.v2._internal.execution.context import get_train_context

from cluster.errors import UserError
from llm.training.checkpoint_manifest import checkpoints_in
from llm.training.hang import Hang
from llm.training.profile_window import Profile
from llm.training.watch import Observer
from pipelines import profile_desk
from pipelines.checkpoint_mirror import mirror_of
from pipelines.model_folder import LOGS
from pipelines.training_launch import HUNG, SAID, TrainingJob

_SECONDS_TO_TELL = 20.0


def observer(job: TrainingJob) -> Observer:
    """Its words go to the driver, and the files of which it is told to the model's folder."""
    workspace = job.workspace

    def names(paths: list[Path]) -> list[str]:
        return [path.relative_to(workspace.path).as_posix() for path in paths]

    def say(text: str) -> None:
        job.board.post.remote({SAID: text})

    def keep(paths: list[Path]) -> None:
        try:
            workspace.publish(names(paths))
        except (OSError, UserError) as error:
            say(f"{', '.join(names(paths))} stays on its machine: {error}")

    def hung(hang: Hang) -> None:
        (folder,) = names([hang.folder])
        line = f"{hang}; stacks in {workspace.folder}/{folder}"
        told = job.board.post.remote({HUNG: line, "from": _newest_checkpoint(job)})
        ray.get(told, timeout=_SECONDS_TO_TELL)

    def profiled(profile: Profile) -> None:
        say(f"profile: {profile_desk.answer(workspace.folder, profile)}")

    told: set[str] = set()

    def noticed() -> bool:
        # `ray.train.get_preemption_info` would have all workers wait for each other, after every step.
        info = get_train_context().preemption_context.preemption_info
        if info is None:
            return False
        if not told.issuperset(info.preempted_node_ids):
            told.update(info.preempted_node_ids)
            ranks = ", ".join(str(rank) for rank in info.preempted_ranks)
            say(f"nodes of rank {ranks} are to be taken back: checkpoints are written until they are gone")
        return True

    return Observer(
        hang_timeout=job.config.hang_timeout,
        keep=keep,
        hung=hung,
        warn=say,
        profile_wanted=lambda: profile_desk.wanted(workspace.folder),
        profiled=profiled,
        noticed=noticed,
    )


def _newest_checkpoint(job: TrainingJob) -> str | None:
    """By its name alone: to look whether it is whole takes all workers, and these do not answer any more."""
    mirror = mirror_of(job.workspace, LOGS)
    names = mirror.names() if mirror else checkpoints_in(job.workspace.path / "checkpoints")
    return next(iter(names), None)
