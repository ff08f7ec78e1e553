"""Pre-training on Ray Train: killed at any moment, it must end with the same bits as if it had not been."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import ray
import torch
import torch.distributed as dist

from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from llm.models.load import load_model
from llm.training.metrics_log import read_records
from pipelines.cli import run
from pipelines.preferences.config import PreferencesConfig
from pipelines.preferences.stage import resolve_inputs as preferences_inputs
from pipelines.pretrain import stage
from pipelines.pretrain import worker as pretrain_worker_module
from pipelines.pretrain.config import PretrainConfig
from pipelines.token_shards import ranged_shards
from pipelines.training_worker import training_worker
from pipelines.wandb_run import WandbRun
from tests.integration.small_artifacts import VOCAB, make_tokens, small_store

CLUSTER = Cluster()
FIELDS = {
    "name": "base",
    "tokens": "small",
    "model": {"preset": "tiny-100k"},
    "steps": 160,
    "seq_len": 32,
    "global_batch": 8,
    "micro_batch": 4,
    "precision": "fp32",
    "checkpoint_every": 40,
    "evaluate_every": 40,
    "log_every": 5,
    "threads_per_worker": 1,
    "wandb": "disabled",
}


@pytest.fixture(scope="module")
def local_ray():
    start_local(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def logged():
    """What the driver hands to wandb during the undisturbed run, in order."""
    return []


@pytest.fixture(scope="module")
def undisturbed(local_ray, tmp_path_factory, logged):
    root = tmp_path_factory.mktemp("undisturbed")
    small_store(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WandbRun, "log", lambda self, metrics: logged.append(metrics))
        return stage.run(PretrainConfig(root=str(root), **FIELDS), CLUSTER)


def assert_same_bits(artifact, undisturbed) -> None:
    assert artifact.manifest == undisturbed.manifest  # The SHA-256 of the weights is in it.
    ours, theirs = (a.fetch() / "metrics.jsonl" for a in (artifact, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


def wait_for_checkpoint(root: Path, step: int, name: str = "base") -> None:
    deadline = time.monotonic() + 240
    while not list(root.glob(f"models/{name}/*/checkpoints/step-{step:08d}")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


def kill_worker_after_checkpoint(root: Path, step: int, killed: list[int]) -> None:
    wait_for_checkpoint(root, step)
    time.sleep(0.2)  # Into the steps after it.
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)


def test_killed_worker_changes_nothing(undisturbed, tmp_path):
    small_store(tmp_path)
    killed: list[int] = []
    killer = threading.Thread(target=kill_worker_after_checkpoint, args=(tmp_path, 40, killed))
    killer.start()
    artifact = stage.run(PretrainConfig(root=str(tmp_path), **FIELDS), CLUSTER)
    killer.join()
    assert len(killed) == 1
    assert_same_bits(artifact, undisturbed)


def test_killed_driver_changes_nothing(undisturbed, tmp_path):
    small_store(tmp_path)
    config = PretrainConfig(root=str(tmp_path), **FIELDS)
    program = (
        "import json, sys; from cluster.connect import Cluster, start_local; start_local(num_cpus=2);"
        "from pipelines.pretrain import stage; from pipelines.pretrain.config import PretrainConfig;"
        "stage.run(PretrainConfig(**json.loads(sys.argv[1])), Cluster())"
    )
    driver = subprocess.Popen([sys.executable, "-c", program, config.model_dump_json()], cwd=Path.cwd())
    try:
        wait_for_checkpoint(tmp_path, 80)
        assert run(["export", "base", "--to", str(tmp_path / "out"), "--root", str(tmp_path)]) == 0
    finally:
        driver.kill()
        driver.wait()
    assert json.loads((tmp_path / "out" / "manta.json").read_text())["step"] in (80, 120, 160)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list(tmp_path.glob("models/base/*/manifest.json"))
    assert_same_bits(stage.run(config, CLUSTER), undisturbed)


def test_a_mixture_whose_documents_are_kept_apart_on_two_workers(local_ray, tmp_path):
    store = small_store(tmp_path)
    make_tokens(store, store.resolve("tokenizers", "small"), name="other", seed=5)
    mixed = {"tokens": "small=3,other=1; 4096: other=1", "document_mask": True, "steps": 40, "workers": 2}
    artifact = stage.run(PretrainConfig(root=str(tmp_path), **FIELDS | mixed), CLUSTER)
    counts = artifact.counts
    assert artifact.manifest["inputs"].keys() == {"tokens", "tokens-2"}
    samples = {
        name: sum(count // 32 for count in ranged_shards(store.resolve("tokens", name), "train").shard_tokens)
        for name in ("small", "other")
    }
    taken = {"small": 96, "other": 32 + 40 * 8 - 128}
    assert counts["epochs"] == {name: round(taken[name] / samples[name], 4) for name in samples}
    by_name = counts["heldout_bits_per_byte_of"]
    assert by_name.keys() == {"small", "other"}
    assert min(by_name.values()) < counts["heldout_bits_per_byte"] < max(by_name.values())
    assert counts["heldout_bits_per_byte"] < counts["unigram_heldout_bits_per_byte"] * 1.5


@pytest.mark.parametrize("preset", ["t5-tiny", "bert-tiny"])
def test_the_other_families_learn_and_are_not_taken_for_decoders(undisturbed, preset):
    store = ArtifactStore(undisturbed.fetch().parents[2])
    changes = {"name": preset, "model": {"preset": preset}, "steps": 30, "evaluate_every": 10, "workers": 2}
    artifact = stage.run(PretrainConfig(root=str(store.root), **FIELDS | changes), CLUSTER)
    records = read_records(artifact.fetch() / "metrics.jsonl")
    losses = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    assert losses == sorted(losses, reverse=True)
    assert artifact.counts["heldout_loss"] < losses[0] - 1
    guessed = [record["heldout_accuracy"] for record in records if "heldout_accuracy" in record]
    assert (len(losses), len(guessed)) == (3, 3 if preset == "bert-tiny" else 0)

    from transformers import AutoTokenizer

    model, config = load_model(artifact.fetch())
    assert config.vocab_size == VOCAB + (100 if preset == "t5-tiny" else 1)
    assert artifact.counts["parameters"] == sum(p.numel() for p in model.parameters())
    exported = AutoTokenizer.from_pretrained(artifact.fetch() / "export")
    assert len(exported) == config.vocab_size
    if preset == "t5-tiny":
        first, last = exported.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"])
        assert (first, last) == (config.vocab_size - 1, VOCAB)
    else:
        assert exported.mask_token_id == VOCAB
    with pytest.raises(UserError, match=f"--model {artifact.ref} is an encoder.*takes a decoder") as error:
        preferences_inputs(PreferencesConfig(root=str(store.root), model=preset, corpus="small"), store)
    assert "\n" not in str(error.value)


def test_finished_run_is_not_run_again(undisturbed, monkeypatch):
    config = PretrainConfig(
        root=str(undisturbed.fetch().parents[2]), **FIELDS | {"micro_batch": 8, "log_every": 1}
    )
    started = time.monotonic()
    again = stage.run(config, CLUSTER)
    assert again.version == undisturbed.version, "how a model is trained must not change its version"
    assert time.monotonic() - started < 1


def test_a_finished_run_is_extended_once(undisturbed):
    """It goes on at the old run's place in the data; the same command again makes nothing."""
    fields = FIELDS | {"steps": 200, "extends": "base", "optimizer": {"learning_rate": 1e-3}}
    config = PretrainConfig(root=str(undisturbed.fetch().parents[2]), **fields)
    extended = stage.run(config, CLUSTER)
    assert extended.manifest["inputs"]["extends"]["ref"] == undisturbed.ref
    records = read_records(extended.fetch() / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(161, 201))
    assert records[0]["loss"] < 0.7 * read_records(undisturbed.fetch() / "metrics.jsonl")[0]["loss"]
    assert stage.run(config, CLUSTER).ref == extended.ref


def test_what_was_learned_and_what_was_written(undisturbed):
    counts = undisturbed.counts
    assert counts["heldout_bits_per_byte"] < 0.5 * counts["unigram_heldout_bits_per_byte"]
    records = read_records(undisturbed.fetch() / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, FIELDS["steps"] + 1))
    assert [r["step"] for r in records if "heldout_bits_per_byte" in r] == [40, 80, 120, 160]

    from transformers import LlamaForCausalLM

    ours, config = load_model(undisturbed.fetch())
    theirs = LlamaForCausalLM.from_pretrained(undisturbed.fetch() / "export")
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(tokens).logits, ours(tokens)[..., : config.vocab_size], rtol=1e-3, atol=1e-4
        )


def test_each_record_is_logged_once_and_with_its_own_step(undisturbed, logged):
    """However seldom the driver looks: 160 steps take less time than ten of its looks."""
    written = read_records(undisturbed.fetch() / "metrics.jsonl")
    losses = [(record["step"], record["loss"]) for record in logged if "loss" in record]
    assert losses == [(record["step"], record["loss"]) for record in written if record["step"] % 5 == 0]
    assert [r["step"] for r in logged if "heldout_bits_per_byte" in r] == [40, 80, 120, 160]


def test_divergence_comes_back_as_one_line(undisturbed):
    fields = FIELDS | {
        "name": "diverges",
        "optimizer": {"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 0},
    }
    with pytest.raises(UserError, match=r"pretrain: step \d+: the .* is .* Lower the learning rate") as error:
        stage.run(PretrainConfig(root=str(undisturbed.fetch().parents[2]), **fields), CLUSTER)
    assert "\n" not in str(error.value)


def test_what_one_worker_alone_cannot_read_ends_the_run_for_all(local_ray, tmp_path, monkeypatch):
    """The other one waits for it, and is not to wait for long; nor is it tried again."""
    small_store(tmp_path)
    starts = tmp_path / "starts"

    def worker(arguments):
        with training_worker(arguments["job"]):
            if dist.get_rank() == 1:
                with starts.open("a") as file:
                    file.write("started\n")
                raise UserError("part-00000.tok is not as recorded: copy it again")
            dist.monitored_barrier(timeout=timedelta(seconds=100))

    monkeypatch.setattr(pretrain_worker_module, "pretrain_worker", worker)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        stage.run(PretrainConfig(root=str(tmp_path), **FIELDS | {"workers": 2}), CLUSTER)
    assert str(error.value) == "pretrain: part-00000.tok is not as recorded: copy it again"
    assert starts.read_text() == "started\n"
    assert time.monotonic() - began < 60, "the hang limit is ten minutes"


def test_sequences_longer_than_the_data_are_refused_before_anything_starts(undisturbed):
    fields = FIELDS | {
        "seq_len": 10_000,
        "model": {"preset": "tiny-100k", "max_seq_len": 100_000},
        "name": "long",
    }
    root = undisturbed.fetch().parents[2]
    tokens = json.loads((next(root.glob("tokens/small/*/shards.json"))).read_text())
    assert tokens["splits"]["train"]["tokens"][0] < 100_000
    config = PretrainConfig(root=str(root), **fields | {"seq_len": 100_000})
    with pytest.raises(UserError, match="--seq-len 100000: the largest shard"):
        stage.run(config, CLUSTER)
    assert not (root / "models" / "long").exists()


def test_a_worker_that_stands_still_is_named_and_the_run_goes_on(local_ray, tmp_path, capfd):
    """Stopped as it stands, it does not even answer; the other one tells."""
    small_store(tmp_path)
    changes = {"workers": 2, "hang_timeout": 4.0, "steps": 80, "name": "stands"}
    stopped: list[int] = []

    def stop_a_worker() -> None:
        wait_for_checkpoint(tmp_path, 40, "stands")
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(process.cmdline())
        ]
        os.kill(workers[0].pid, signal.SIGSTOP)
        stopped.append(workers[0].pid)

    stopper = threading.Thread(target=stop_a_worker)
    stopper.start()
    artifact = stage.run(PretrainConfig(root=str(tmp_path), **FIELDS | changes), CLUSTER)
    stopper.join()
    assert stopped
    (said,) = [
        line for line in capfd.readouterr().out.splitlines() if " hung, " in line and "pretrain" in line
    ]
    assert re.search(r"pretrain: step \d+ hung, no progress for \d+ s: rank [01] does not answer", said)
    assert said.endswith("the workers start again from step-00000040")
    assert [record["step"] for record in read_records(artifact.fetch() / "metrics.jsonl")] == list(
        range(1, 81)
    )
    stacks = list(artifact.fetch().glob("hangs/step-000000*/rank-*.txt"))
    assert len(stacks) == 1
    training = stacks[0].read_text().split("\n\nThread ")[1]
    files = re.findall(r'File ".*/(\w+\.py)"', training)
    assert files[-1] in ("distributed_c10d.py", "_fsdp_collectives.py", "overlap.py", "noticeboard.py")
