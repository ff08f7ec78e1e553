"""A checkpoint, evaluated by a process that has nothing else of the run, says what the run said of itself."""

import contextlib
import shutil
import uuid

import pytest
import torch
import torch.distributed as dist

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from llm.models.load import build
from llm.training.checkpoint_weights import read_weights
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.metrics_log import read_records
from llm.training.parallel.fsdp import data_mesh, shard
from pipelines.checkpoint_mirror import mirror_of
from pipelines.pretrain import evaluate_checkpoint
from pipelines.pretrain.batches import objective_of
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.evaluate_checkpoint import evaluate_newest
from pipelines.pretrain.heldout import held_out
from pipelines.pretrain.token_source import open_source
from pipelines.training_launch import TrainingJob
from tests.integration.small_artifacts import VOCAB, make_tokenizer, make_tokens
from tests.object_storage import BUCKET

CPU = torch.device("cpu")
MODEL = "models/base/1a0a"
DECODER = {"model": {"preset": "tiny-100k"}, "document_mask": True}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    torch.set_num_threads(1)
    store = ArtifactStore(tmp_path_factory.mktemp("tokens"))
    return make_tokens(store, make_tokenizer(store))


def a_job(tokens, folder, **fields) -> TrainingJob:
    common = {"tokens": "small", "steps": 9, "seq_len": 24, "global_batch": 4, "micro_batch": 3}
    rates = {"checkpoint_every": 3, "evaluate_windows": 7, "log_every": 1}
    config = PretrainConfig(**common | rates | {"evaluate_every": 3} | fields)
    shape = config.trained_shape(VOCAB)
    return TrainingJob(
        config, shape, Workspace(folder), None, {"tokens": tokens}, {"x": b""}, threads=1, board=None
    )


def train_until(job, stop=None, precision="fp32"):
    """Leave what a run leaves that stops before the step `stop`; returns how it measures itself."""
    config, source = job.config, open_source(job.config, job.inputs)
    objective = objective_of(config, VOCAB, config.seed)
    model = build(job.model)
    if precision == "bf16":
        shard(model, data_mesh(CPU), precision)
    model.to_empty(device="cpu").init_weights(config.seed)
    opening_id = source.loader.shards.eos_id if config.document_mask else None
    evaluate = held_out(model, source, config, opening_id).in_training

    def micro_batches(step):
        if step == stop:
            raise KeyboardInterrupt
        start = step * config.global_batch
        return [objective(source.loader.batch(start, config.global_batch), start)]

    run = TrainingRun(
        model=model,
        precision=precision,
        recipe=config.recipe(config.steps),
        folder=job.workspace.path,
        mirror=mirror_of(job.workspace, ()),
        micro_batches=micro_batches,
        data_state=lambda steps: {},
        check_data_state=lambda state: None,
        evaluate=evaluate,
        loss_sum=language_model_loss(model, opening_id),
        attachments=job.attachments,
    )
    with contextlib.suppress(KeyboardInterrupt):
        train(run)
    return evaluate


def local(root) -> Folder:
    return Folder(open_storage(root), MODEL)


def said_in_training(job, step):
    (record,) = [r for r in read_records(job.workspace.path / "metrics.jsonl") if r["step"] == step]
    return {"step": step, **{name: value for name, value in record.items() if name.startswith("heldout_")}}


@pytest.mark.parametrize(
    ("fields", "measures"),
    [
        (DECODER, {"heldout_bits_per_byte"}),
        ({"model": {"preset": "t5-tiny"}}, {"heldout_loss"}),
        ({"model": {"preset": "bert-tiny"}}, {"heldout_loss", "heldout_accuracy"}),
    ],
)
def test_every_family_is_measured_as_in_training_to_the_bit(tokens, tmp_path, fields, measures):
    job = a_job(tokens, local(tmp_path), **fields)
    assert evaluate_newest(job, frozenset(), CPU) is None, "there is no checkpoint yet"
    train_until(job, stop=7)
    found = evaluate_newest(job, frozenset({3}), CPU)
    assert found == said_in_training(job, 6)
    assert found.keys() == {"step"} | measures
    assert evaluate_newest(job, frozenset({6}), CPU) is None, "the one before is of no interest any more"


@pytest.mark.parametrize("preset", ["tiny-100k", "t5-tiny", "bert-tiny"])
def test_a_run_in_bf16_is_measured_in_bf16(tokens, tmp_path, monkeypatch, preset):
    monkeypatch.setattr(evaluate_checkpoint, "has_native_bf16", lambda device: True)
    job = a_job(tokens, local(tmp_path), model={"preset": preset})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train_until(job, stop=4, precision="bf16")
    finally:
        dist.destroy_process_group()
    expected = said_in_training(job, 3)
    assert evaluate_newest(job, frozenset(), CPU) == expected
    monkeypatch.setattr(evaluate_checkpoint, "has_native_bf16", lambda device: False)
    in_fp32 = evaluate_newest(job, frozenset(), CPU)
    assert in_fp32 != expected
    assert in_fp32 == pytest.approx(expected, rel=0.03)


def test_an_average_is_measured_in_place_of_the_weights(tokens, tmp_path):
    job = a_job(tokens, local(tmp_path), **DECODER, optimizer={"ema_decay": 0.9})
    evaluate = train_until(job)  # At its end the averages take the weights' place.
    found = evaluate_newest(job, frozenset(), CPU)
    assert found == {"step": 9, **evaluate()}
    assert found != said_in_training(job, 9)


def test_a_checkpoint_that_goes_while_it_is_read_is_passed_over(tokens, tmp_path, monkeypatch):
    job = a_job(tokens, local(tmp_path), **DECODER, keep_checkpoints=1)
    train_until(job, stop=4)

    def overtaken(path):
        if path.name == "step-00000003":
            train_until(job, stop=7)
        return read_weights(path)

    monkeypatch.setattr(evaluate_checkpoint, "read_weights", overtaken)
    assert evaluate_newest(job, frozenset(), CPU) == said_in_training(job, 6)

    def always(path):
        shutil.move(path, path.with_name(f"step-{int(path.name[-8:]) + 1:08d}"))
        return read_weights(path)

    monkeypatch.setattr(evaluate_checkpoint, "read_weights", always)
    with pytest.raises(UserError, match="removed before they can be evaluated; keep more of them"):
        evaluate_newest(job, frozenset(), CPU)


def test_of_a_run_in_a_bucket_one_copy_stays_on_the_machine(object_storage, tokens, tmp_path, monkeypatch):
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    folder = Folder(open_storage(f"s3://{BUCKET}/{uuid.uuid4().hex}"), MODEL)
    job = a_job(tokens, folder, **DECODER)
    for stop, step in ((4, 3), (7, 6)):
        monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "worker"))
        train_until(job, stop)
        expected = said_in_training(job, step)
        monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "beside"))
        assert evaluate_newest(job, frozenset(), CPU) == expected
        assert [path.name for path in (job.workspace.path / "checkpoints").glob("step-*")] == [
            f"step-{step:08d}"
        ]
