"""A learner learns on while its checkpoint is written, and another one goes on from that to the same bits."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from llm.models.load import build, save_model
from llm.training import checkpoint_saver
from llm.training.checkpoint_manifest import checkpoints_in
from llm.training.checkpoint_writing import write_checkpoint
from llm.training.recorder import Superseded
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.learner import Learner
from tests.unit.pipelines.rlhf.test_update import CONFIG, PPO, rollouts, whole

Actor = Learner.__ray_metadata__.modified_class  # the class itself, without an actor
SAVED = {"beta": 0.05}, {"config.json": b"{}\n"}


@dataclass
class Saved:
    """What a learner asks of an artifact and of a ticket."""

    folder: Path
    is_ours: bool = True

    def fetch(self, *names: str) -> Path:
        return self.folder

    def is_current(self) -> bool:
        return self.is_ours


@pytest.fixture
def learners(tmp_path: Path):
    """Makes learners of one run, one after another; returns each with the state that it goes on from."""
    torch.set_num_threads(1)
    for seed, head in enumerate(("lm", "scalar")):
        model = build(CONFIG, head).to_empty(device="cpu")
        model.init_weights(seed)
        save_model(tmp_path / head, model.state_dict(), CONFIG, head)
    workspace = Workspace(Folder(open_storage(tmp_path), "models/aligned/1a0a"))
    config = RLHFConfig(rollouts=24, micro_batch=4, ppo=PPO)

    def start(ticket: Any = None) -> tuple[Any, dict[str, Any] | None]:
        end()
        ticket = ticket or Saved(tmp_path)
        learner = Actor(
            config, 0, Saved(tmp_path / "lm"), Saved(tmp_path / "scalar"), workspace, ticket, threads=1
        )
        learner._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        return learner, learner.join(("localhost", learner._store.port))

    def end() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    yield start
    end()


def bits(learner: Any) -> dict[str, torch.Tensor]:
    return {name: whole(value).clone() for name, value in learner._models.state_dict().items()}


def iterate(learner: Any, *iterations: int) -> list[dict[str, float]]:
    return [learner.learn(*rollouts(), 0.05, iteration) for iteration in iterations]


def test_learning_goes_on_while_a_checkpoint_is_written(learners, tmp_path, monkeypatch) -> None:
    learner, state = learners()
    assert state is None
    may_go_on = threading.Event()

    def slowly(*arguments: Any) -> None:
        assert may_go_on.wait(60)
        write_checkpoint(*arguments)

    monkeypatch.setattr(checkpoint_saver, "write_checkpoint", slowly)
    iterate(learner, 0)
    learner.save(1, *SAVED)
    at_1 = bits(learner)
    metrics = iterate(learner, 1, 2)  # would wait for ever
    checkpoints = tmp_path / "models/aligned/1a0a/checkpoints"
    assert checkpoints_in(checkpoints) == []
    may_go_on.set()
    learner.finish_checkpoint()
    assert checkpoints_in(checkpoints) == ["step-00000001"]
    at_3 = bits(learner)
    assert not torch.equal(at_1["policy.embed.weight"], at_3["policy.embed.weight"])

    successor, state = learners()
    assert (state["step"], state["beta"]) == (1, 0.05)
    for name, value in bits(successor).items():
        assert torch.equal(value, at_1[name]), name
    assert iterate(successor, 1, 2) == metrics
    for name, value in bits(successor).items():
        assert torch.equal(value, at_3[name]), name


def test_a_run_that_was_taken_over_keeps_no_checkpoint(learners, tmp_path) -> None:
    learner, _ = learners(Saved(tmp_path, is_ours=False))
    iterate(learner, 0)
    learner.save(1, *SAVED)
    with pytest.raises(Superseded):
        learner.finish_checkpoint()
    assert checkpoints_in(tmp_path / "models/aligned/1a0a/checkpoints") == []
    assert learners()[1] is None
