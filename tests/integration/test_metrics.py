"""During a run Ray's Prometheus endpoint has our metrics, with the values that the run's own files have."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from wandb.proto.wandb_internal_pb2 import Record

from cluster.artifacts.manifest import Artifact
from cluster.connect import Cluster, start_local
from cluster.metrics import METRICS, declared
from llm.training.metrics_log import read_records
from pipelines.corpus import stage as corpus
from pipelines.corpus.config import CorpusConfig
from pipelines.pretrain import stage as pretrain
from pipelines.pretrain.config import PretrainConfig
from pipelines.rlhf import stage as rlhf
from pipelines.rlhf.config import RLHFConfig
from tests.integration.endpoint import REPORT_EVERY_SECOND, Watch, scrape, wait_for
from tests.integration.small_chat import chat_store

CLUSTER = Cluster()


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start_local(num_cpus=2, **REPORT_EVERY_SECOND)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return chat_store(tmp_path_factory.mktemp("root")).root


def run_label(artifact: Artifact) -> dict[str, str]:
    return {"stage": artifact.manifest["stage"], "run": f"{artifact.name}-{artifact.version}"}


def history(artifact: Artifact) -> list[dict[str, float]]:
    """What an offline run of wandb wrote down."""
    (path,) = (artifact.fetch() / "wandb").glob("offline-run-*/run-*.wandb")
    rows = []
    for data in leveldb_log(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return rows


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format behind 7 bytes of wandb's.

    Blocks of 32 KiB, in which each piece of a record has a header: checksum (4 bytes), length (2,
    little-endian) and type (1 is a whole record, 2 its first piece, 4 its last).
    """
    at, record = 7, b""
    while at + 7 < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # No room for a header: padding.
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record = (b"" if kind in (1, 2) else record) + content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record


def merged(records: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    """Records by step."""
    by_step: dict[int, dict[str, float]] = {}
    for record in records:
        by_step.setdefault(int(record["step"]), {}).update(record)
    return by_step


def test_units_of_work(root: Path, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"document number {number} says so\n" * 20)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    with Watch() as seen:
        corpus.run(CorpusConfig(root=str(root), name="said", paths=(str(tmp_path),)), CLUSTER)
    read, write = {"work": "said: read"}, {"work": "said: write"}
    assert seen.last("units_done_total", **read) == seen.last("units_done_total", **write) > 0
    assert seen.last("units_done_total", work="said: find duplicates") == 1
    assert seen.last("units_bytes_total", **read) == size
    assert seen.values("units_failed_total") == []


def test_pretraining(root: Path) -> None:
    config = PretrainConfig(
        root=str(root),
        name="base",
        tokens="small",
        model={"preset": "tiny-100k"},
        steps=60,
        seq_len=32,
        global_batch=8,
        evaluate_every=30,
        checkpoint_every=30,
        threads_per_worker=1,
        wandb="offline",
    )
    with Watch() as seen:
        artifact = pretrain.run(config, CLUSTER)
    label = run_label(artifact)
    assert label["run"].startswith("base-")
    records = read_records(artifact.fetch() / "metrics.jsonl")
    for name in ("step", "loss", "learning_rate", "grad_norm", "heldout_bits_per_byte"):
        logged = [pytest.approx(record[name]) for record in records if name in record]
        values = seen.values(f"training_{name}", **label)
        assert values, name
        assert all(value in logged for value in values), f"{name}: {values}"
    assert seen.last("training_step", **label) == 60
    assert seen.last("training_loss", **label) == pytest.approx(records[-1]["loss"])
    assert 0 < seen.last("training_mfu", **label) < 1
    assert seen.last("training_tokens_per_s", **label) > 8 * 32
    assert 0 < seen.last("training_checkpoint_seconds", **label) < 60
    assert 0 < seen.last("training_data_wait_seconds", **label) < seen.last("training_seconds", **label)

    timing = read_records(artifact.fetch() / "timing.jsonl")
    # A checkpoint that is committed late is told with a later step.
    told, written = (
        [each for each in rows if "checkpoint_seconds" in each] for rows in (history(artifact), timing)
    )
    of_checkpoints = ("checkpoint_seconds", "checkpoint_commit_seconds")
    assert [[row[name] for name in of_checkpoints] for row in told] == [
        [pytest.approx(row[name]) for name in of_checkpoints] for row in written
    ]
    logged, expected = (
        merged([{name: row[name] for name in row if name not in of_checkpoints} for row in rows])
        for rows in (history(artifact), [*records, *timing])
    )
    assert logged.keys() == {step for step in expected if step % config.log_every == 0}
    for step, values in logged.items():
        assert {"mfu"} <= values.keys() <= declared("training").keys()
        assert values == pytest.approx(expected[step] | {"mfu": values["mfu"]}), "wandb and the files agree"
    assert {name for record in expected.values() for name in record} <= declared("training").keys()

    gone = "the gauges of a run that has ended stay"
    wait_for(
        lambda: not any(labels["run"] == label["run"] for labels, _ in scrape()["ray_manta_training_loss"]),
        gone,
    )


def test_alignment(root: Path) -> None:
    config = RLHFConfig(
        root=str(root),
        name="aligned",
        corpus="small",
        iterations=2,
        rollouts=16,
        max_prompt_tokens=16,
        max_tokens=16,
        ppo={"minibatches": 2, "warmup_iterations": 0},
        threads=1,
        wandb="offline",
    )
    with Watch() as seen:
        artifact = rlhf.run(config, CLUSTER)
    label = run_label(artifact)
    records = read_records(artifact.fetch() / "metrics.jsonl")
    timing = read_records(artifact.fetch() / "timing.jsonl")
    expected = merged([*records, *timing])
    gauges = {metric.name for metric in METRICS if metric.group == "rlhf" and metric.kind == "gauge"}
    assert expected[2].keys() == gauges | {"engine_deaths"}, "what is measured is what is declared"
    for name in gauges:
        values = seen.values(f"rlhf_{name}", **label)
        assert values, name
        assert all(value in [pytest.approx(expected[step][name]) for step in (1, 2)] for value in values), (
            name
        )
    assert seen.values("rlhf_engine_deaths_total") == []
    assert merged(history(artifact)) == expected
