"""Pre-training on a cluster that is told to give a node back, loses it, and later gets another.

python -m tests.faults.resizing ROOT RECORD STEP           writes into RECORD how many workers there were,
                                                           and the step of a checkpoint for the notice
python -m tests.faults.resizing ROOT STEP NAME [ADDRESS]   one of the two trainings
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cluster.artifacts.store import ArtifactStore
from cluster.auth import enable_where_possible, ensure_token
from llm.training.metrics_log import read_records
from pipelines.pretrain.config import PretrainConfig
from tests.faults.killing import Outcome, Reference, end, link_tree
from tests.faults.steps import steps

_STEPS = 1500
_EVERY = 50
_NOTICE_SECONDS = 15.0
"""Ray Train asks every 5 s whether there is one."""
_SAME_LOSS = 3e-4
"""Relative. Sums over one worker and over two differ in their rounding, and that grows with the steps.

A lost optimizer state moves some loss by 4.9e-4 or more, one wrong batch by 2.9e-3 (at the rate below).
"""
_CALM_LEARNING_RATE = 3e-5
"""At the 2e-3 and 3e-3 of the stages rounding is multiplied. First weights that differ by 1e-7, on one
worker, move losses of the decoder by 6.4e-4 within 700 steps and 2.6e-3 within 1,500, T5's by 7 % within 700
(attention without a scale, ReLU) and those of experts by 6 % (a token that goes to another one). T5 in double
precision that differs by 1e-15 is 1 % away then.
"""


def shrink_and_grow(reference: Reference, index: int, scratch: Path) -> Outcome:
    """Two workers, one after a preemption notice, two again: the losses of one that was left alone, and a
    checkpoint that the notice asked for.
    """
    root = link_tree(reference.root, scratch / "resizing")
    record = scratch / "workers.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.resizing", str(root), str(record), str(index)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        return Outcome(1, same=False, problems=["it hung"])
    finally:
        end(process)
    if process.returncode:
        return Outcome(1, same=False, problems=[errors.strip()[-300:]])
    workers, kept = json.loads(record.read_text())
    store = ArtifactStore(root)
    alone, resized = (
        read_records(store.resolve("models", name).fetch() / "metrics.jsonl") for name in ("alone", "resized")
    )
    problems = [] if workers == [2, 1, 2] else [f"the numbers of workers were {workers}"]
    problems += [] if kept % _EVERY else ["no checkpoint came of the notice"]
    steps = [each["step"] for each in resized]
    problems += [] if steps == list(range(1, _STEPS + 1)) else ["steps are missing or twice there"]
    apart = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(alone, resized, strict=True))
    same = not problems and apart < _SAME_LOSS
    return Outcome(1, same=same, problems=problems if same else [*problems, f"losses are {apart:.1e} apart"])


def main(root: str, record: str, index: int) -> int:
    """Train alone, then on nodes that come and go."""
    train = [sys.executable, "-m", "tests.faults.resizing", root, str(index)]
    subprocess.run([*train, "alone"], check=True, stdout=subprocess.DEVNULL)
    cluster = _TwoNodes(Path(root), Path(record))
    resized = subprocess.Popen([*train, "resized", cluster.address], stdout=subprocess.DEVNULL)
    cluster.resize(resized)
    return resized.wait()


def train(root: str, index: int, name: str, address: str | None) -> int:
    """Pre-train models/NAME: on this machine, or on one or two workers of the cluster at `address`."""
    from pipelines import training_launch
    from pipelines.cli import run_stage
    from pipelines.pretrain import stage

    config = steps(root)[index].config
    assert isinstance(config, PretrainConfig)
    update: dict[str, Any] = {
        "name": name,
        "steps": _STEPS,
        "checkpoint_every": _EVERY,
        "evaluate_every": 0,
        "precision": "fp32",  # whose rounding the bound is for; a CPU may have bf16
        "threads_per_worker": 1,
        "max_failures": 0,  # Losing a node after a notice is no failure.
        "optimizer": config.optimizer.model_copy(update={"learning_rate": _CALM_LEARNING_RATE}),
    }
    if address is not None:
        update |= {"workers": (1, 2), "address": address}
    # Ray looks once a minute whether a cluster has grown.
    training_launch.ScalingConfig = partial(  # type: ignore[misc, assignment]
        training_launch.ScalingConfig, elastic_resize_monitor_interval_s=1.0
    )
    return run_stage(stage, config.model_copy(update=update))


class _TwoNodes:
    """A head without CPUs and two nodes with one each, and what happens to them."""

    def __init__(self, root: Path, record: Path) -> None:
        from ray.cluster_utils import Cluster as SimulatedCluster

        ensure_token()
        enable_where_possible()
        self._root, self._record = root, record
        self._workers: list[int] = []
        self._kept = 0
        self._cluster = SimulatedCluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._first, _ = (self._cluster.add_node(num_cpus=1) for _ in range(2))
        self._cluster.wait_for_nodes()
        self.address: str = self._cluster.address

    def resize(self, training: "subprocess.Popen[bytes]") -> None:
        """Take the first node away after a notice, then add one; stops when the training ends."""
        self._training = training
        self._wait_for_workers(2, _EVERY)
        self._give_notice(self._first)
        time.sleep(_NOTICE_SECONDS)
        self._kept = max((step for step in self._checkpoints() if step % _EVERY), default=0)
        self._cluster.remove_node(self._first, allow_graceful=False)
        self._wait_for_workers(1, self._newest() + _EVERY)
        self._cluster.add_node(num_cpus=1)
        self._wait_for_workers(2, self._newest() + _EVERY)

    def _give_notice(self, node: Any) -> None:
        """What a cloud does some time before it takes a spot machine back."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        deadline = int((time.time() + _NOTICE_SECONDS) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = GcsClient(address=self.address)
        accepted, why = gcs.drain_node(node.node_id, reason, "it is taken back", deadline)
        assert accepted, why

    def _wait_for_workers(self, count: int, step: int) -> None:
        """Until a checkpoint of `step` or later was written by so many workers."""
        deadline = time.monotonic() + 300
        while self._newest() < step or self._count() != count:
            if self._training.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"never {count} workers at step {step}")
            time.sleep(0.1)
        self._workers.append(count)
        self._record.write_text(json.dumps([self._workers, self._kept]))

    def _checkpoints(self) -> list[int]:
        found = self._root.glob("models/resized/*/checkpoints/step-*")
        return [int(path.name.removeprefix("step-")) for path in found]

    def _newest(self) -> int:
        return max(self._checkpoints(), default=0)

    def _count(self) -> int:
        names = []
        for process in psutil.Process().children(recursive=True):
            try:
                names.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return sum(name.startswith("ray::RayTrainWorker") for name in names)


if __name__ == "__main__":
    if sys.argv[3] in ("alone", "resized"):
        sys.exit(train(sys.argv[1], int(sys.argv[2]), sys.argv[3], *sys.argv[4:] or [None]))
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
