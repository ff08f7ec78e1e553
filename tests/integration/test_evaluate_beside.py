"""Evaluation beside the training leaves the model as it is, and says what the loop would have said."""

import contextlib
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from cluster.connect import Cluster, start_local
from llm.training.metrics_log import read_records
from pipelines import evaluation_beside
from pipelines.pretrain import stage
from pipelines.pretrain.config import PretrainConfig
from tests.integration.small_artifacts import small_store

FIELDS = {
    "name": "base",
    "tokens": "small",
    "model": {"preset": "tiny-100k"},
    "seq_len": 32,
    "global_batch": 8,
    "micro_batch": 4,
    "precision": "fp32",
    "log_every": 5,
    "threads_per_worker": 1,
    "wandb": "disabled",
}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Of the end of a run, on a machine that is busy."""
    monkeypatch.setattr(evaluation_beside, "_LAST_SECONDS", 600.0)


@pytest.fixture(scope="module")
def local_ray():
    start_local(num_cpus=2)
    yield
    ray.shutdown()


def kill_the_first_evaluation(killed: list[int], ended: threading.Event) -> None:
    while not killed and not ended.is_set():
        for process in psutil.Process().children(recursive=True):  # Ray's, whom this process has started
            with contextlib.suppress(psutil.NoSuchProcess):
                if (process.cmdline() or [""])[0].startswith("ray::_evaluation"):
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.02)


def test_a_killed_evaluation_changes_nothing_of_the_model(local_ray, tmp_path: Path, capfd) -> None:
    fields = FIELDS | {"steps": 100, "checkpoint_every": 50}
    roots = [tmp_path / "loop", tmp_path / "beside"]
    for root in roots:
        small_store(root)
    loop = stage.run(PretrainConfig(root=str(roots[0]), **fields, evaluate_every=50), Cluster())

    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_the_first_evaluation, args=(killed, ended))
    killer.start()
    try:
        beside = stage.run(PretrainConfig(root=str(roots[1]), **fields, evaluate_beside=True), Cluster())
    finally:
        ended.set()
        killer.join()
    assert killed
    assert "an evaluation beside the training failed: The worker died" in capfd.readouterr().out
    assert beside.manifest == loop.manifest  # The SHA-256 of the weights is in it.

    records = {name: read_records(a.fetch() / "metrics.jsonl") for name, a in (("l", loop), ("b", beside))}
    heldout = {r["step"]: r["heldout_bits_per_byte"] for r in records["l"] if "heldout_bits_per_byte" in r}
    without = [{key: r[key] for key in r if key != "heldout_bits_per_byte"} for r in records["l"]]
    assert records["b"] == without
    evaluations = read_records(beside.fetch() / "evaluations.jsonl")
    assert evaluations[-1] == {"step": 100, "heldout_bits_per_byte": heldout[100]}
    assert all(record["heldout_bits_per_byte"] == heldout[record["step"]] for record in evaluations)


def test_a_model_that_stages_divide_is_evaluated_whole(local_ray, tmp_path: Path) -> None:
    small_store(tmp_path)
    divided = {"workers": 2, "parallel": {"pipeline": 2}, "steps": 10, "evaluate_windows": 10**6}
    artifact = stage.run(
        PretrainConfig(root=str(tmp_path), **FIELDS | divided, evaluate_beside=True), Cluster()
    )
    (last,) = read_records(artifact.fetch() / "evaluations.jsonl")
    expected = artifact.counts["heldout_bits_per_byte"]
    assert last == {"step": 10, "heldout_bits_per_byte": pytest.approx(expected, rel=1e-5)}
