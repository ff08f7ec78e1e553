"""RLHF on a tiny model: it learns, and whatever is killed, the result is the same bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from llm.training.metrics_log import read_records
from pipelines.actors import engine_pool
from pipelines.rlhf import notice
from pipelines.rlhf.config import KLConfig, PPOConfig, RLHFConfig
from pipelines.rlhf.run_log import RunLog
from pipelines.rlhf.stage import run
from tests.integration.small_chat import chat_store

CLUSTER = Cluster()
SEED = 2
"""Of models that are random: what a dozen iterations gain hangs on them."""
DRIVER = """
import sys
from cluster.connect import Cluster, start_local
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.stage import run
start_local(num_cpus=2)
run(RLHFConfig.model_validate_json(sys.argv[1]), Cluster())
"""


def config(root: Path, **changes) -> RLHFConfig:
    options = {
        "root": str(root),
        "name": "aligned",
        "corpus": "small",
        "iterations": 12,
        "prompts": 32,
        "rollouts": 32,  # every iteration asks the same, so that scores can be compared
        "max_prompt_tokens": 16,
        "max_tokens": 16,
        "ppo": PPOConfig(learning_rate=8e-3, critic_learning_rate=2e-3, minibatches=2, epochs=2),
        "kl": KLConfig(beta=0.01, target=5.0, horizon=200),
        "engines": 2,
        "micro_batch": 8,
        "max_batch": 16,
        "threads": 1,
        "checkpoint_every": 2,
        "wandb": "disabled",
    }
    return RLHFConfig(**(options | changes))


def outcome(root: Path) -> tuple[str, str]:
    """(checksum of the weights, metrics) of the aligned model."""
    (manifest,) = (root / "models" / "aligned").glob("*/manifest.json")
    files = json.loads(manifest.read_bytes())["files"]
    return files["weights.safetensors"]["sha256"], (manifest.parent / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run in which nothing died, and its metrics."""
    root = tmp_path_factory.mktemp("undisturbed")
    chat_store(root, SEED)
    start_local(num_cpus=2)
    try:
        run(config(root), CLUSTER)
        yield outcome(root)
    finally:
        ray.shutdown()


def test_the_policy_learns_what_is_rewarded(undisturbed):
    metrics = [json.loads(line) for line in undisturbed[1].splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, 13))
    scores = [record["score"] for record in metrics]
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2 + 0.2, "the policy learns from the second iteration on"
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl"] > 0.05
    assert metrics[-1]["beta"] != metrics[0]["beta"]
    assert all(record["engine_difference"] < 1e-4 for record in metrics), "engine and learner agree"
    assert "policy_grad_norm" in metrics[-1]


def test_engines_that_die_change_nothing(undisturbed, tmp_path, monkeypatch):
    """One engine is killed while it generates, another between two iterations."""
    chat_store(tmp_path, SEED)
    pools, waits = [], 0
    create, wait = engine_pool.EnginePool.__init__, ray.wait

    def remember(self, *arguments, **options):
        create(self, *arguments, **options)
        pools.append(self)

    def wait_and_kill(running):
        nonlocal waits
        waits += 1
        if waits == 3:
            ray.kill(pools[0].actors[0])  # all batches of the second iteration are under way
        answer = wait(running)
        if waits == 8:
            ray.kill(pools[0].actors[1])
        return answer

    monkeypatch.setattr(engine_pool.EnginePool, "__init__", remember)
    monkeypatch.setattr(engine_pool.ray, "wait", wait_and_kill)
    artifact = run(config(tmp_path), CLUSTER)
    assert artifact.run()["engine_deaths"] == 2
    assert outcome(tmp_path) == undisturbed


def test_a_killed_run_goes_on_to_the_same_model(undisturbed, tmp_path):
    """The driver is killed after its second checkpoint; the next one goes on from it."""
    chat_store(tmp_path, SEED)
    asked = config(tmp_path)
    command = [sys.executable, "-c", DRIVER, asked.model_dump_json()]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("models/aligned/*/checkpoints/step-00000004")):
        assert first.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(tmp_path.glob("models/aligned/*/manifest.json")), "it was killed too late"

    artifact = run(asked, CLUSTER)
    assert artifact.run()["resumed"]
    assert outcome(tmp_path) == undisturbed
    assert run(asked, CLUSTER).version == artifact.version, "a finished model is not made again"


def test_a_notice_makes_a_checkpoint_after_the_update_under_way(tmp_path, monkeypatch, capfd, undisturbed):
    """And changes nothing that is learned."""
    chat_store(tmp_path, SEED)
    record = RunLog.record

    def recorded(self, metrics, *arguments):
        record(self, metrics, *arguments)
        if metrics["step"] == 2:
            answers = iter([set(), {ray.get_runtime_context().get_node_id()}])
            monkeypatch.setattr(notice, "draining_nodes", lambda: next(answers, set()))

    monkeypatch.setattr(RunLog, "record", recorded)
    run(config(tmp_path, checkpoint_every=100), CLUSTER)
    checkpoints = [path.name for path in tmp_path.glob("models/aligned/*/checkpoints/step-*")]
    assert sorted(checkpoints) == ["step-00000003", "step-00000012"]
    assert capfd.readouterr().out.count("are to be taken back: checkpoints are written") == 1
    assert outcome(tmp_path) == undisturbed


def test_two_learners_learn_what_one_does(tmp_path, undisturbed):
    """Sharded over two processes, which take the same steps but for rounding."""
    chat_store(tmp_path, SEED)
    ppo = PPOConfig(learning_rate=1e-3, minibatches=4)
    metrics = {}
    for learners in (1, 2):
        asked = config(tmp_path, name=f"by-{learners}", iterations=3, ppo=ppo, learners=learners, engines=1)
        artifact = run(asked, CLUSTER)
        metrics[learners] = read_records(artifact.fetch() / "metrics.jsonl")
    for one, two in zip(metrics[1], metrics[2], strict=True):
        assert one.keys() == two.keys()
        for name in ("score", "kl", "entropy", "value_loss", "critic_grad_norm", "explained_variance"):
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), name
    assert metrics[2][-1]["kl_token"] > 0, "the policy has moved"


def test_a_ruinous_step_is_one_line_that_names_the_iteration(tmp_path, undisturbed):
    chat_store(tmp_path, SEED)
    ruinous = config(tmp_path, ppo=PPOConfig(critic_learning_rate=1e30, minibatches=2), engines=1)
    with pytest.raises(UserError, match=r"rlhf: iteration 1: the critic: .* Lower --ppo\.learning-rate or"):
        run(ruinous, CLUSTER)
