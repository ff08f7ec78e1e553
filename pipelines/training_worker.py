"""What training workers have in common besides the loop: device, model, identity, and the way they end."""

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import get_context

from cluster.artifacts.files import explain_full_disk
from cluster.artifacts.folder import FileEntry
from cluster.errors import StorageError, UserError
from cluster.placement import assigned_device
from llm.models.heads import DecoderWithScalar
from llm.models.load import LanguageModel, build, load_state
from llm.models.lora import add_adapters, initial_adapters, merge_adapters
from llm.models.lora_config import LoraConfig
from llm.models.masked_lm import MaskedLM
from llm.planning.peak import PeakFlops
from llm.tokenizer.tokenizer import Tokenizer
from llm.training.checkpoint import newest_state
from llm.training.cpu_memory import keep_freed_memory
from llm.training.deterministic import use_deterministic_algorithms
from llm.training.float8 import use_float8
from llm.training.hang import this_host
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.pipeline import Stage, stage_of
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.weights import gather_weights, scatter_weights
from llm.training.precision import Precision, PrecisionError, keep_precision
from llm.training.step import NonFiniteError
from pipelines.checkpoint_mirror import mirror_of
from pipelines.model_folder import EXPORT, LOGS
from pipelines.parallel_config import ParallelConfig
from pipelines.training_end import Final
from pipelines.training_launch import FATAL, RESULT, TrainingJob
from pipelines.write_model import write_adapter, write_language_model

_MARK = "checkpoints/writer"


@contextmanager
def training_worker(job: TrainingJob) -> Iterator[torch.device]:
    """Set this process up and give it its device. What the user must mend goes to the driver as one line.

    It ends the run, of the workers that do not meet it too. Any other error passes, a failing disk or object
    storage among them: Ray Train then starts all workers again.
    """
    torch.set_num_threads(job.threads)
    if job.config.deterministic:
        use_deterministic_algorithms()
    try:
        with explain_full_disk(job.workspace.path):
            if dist.get_rank() == 0:
                job.workspace.restore(list(LOGS))
            # Ray Train has made the worker's own GPU the current one.
            if assigned_device() == "cuda":
                yield torch.device("cuda", torch.cuda.current_device())
            else:
                keep_freed_memory()
                yield torch.device("cpu")
    except StorageError as error:
        ray.get(job.board.post.remote({FATAL: str(error)}))
        raise
    except (NonFiniteError, PrecisionError) as error:  # on all workers alike
        ray.get(job.board.post.remote({FATAL: str(error)}))
        raise Final(str(error)) from error
    except UserError as error:  # of what all workers share, or of this machine's copy of it
        context = get_context()
        several = context.get_local_world_size() < context.get_world_size()
        where = f"rank {dist.get_rank()} (on {this_host()}): " if several else ""
        ray.get(job.board.post.remote({FATAL: f"{where}{error}"}))
        raise Final(str(error)) from error


def finish(job: TrainingJob, counts: dict[str, Any], files: dict[str, FileEntry]) -> None:
    """Hand the driver what the manifest says of the result, which ends the run. Every worker calls it, last
    of all, with what rank 0 knows of the files.
    """
    dist.barrier()
    if dist.get_rank() == 0:
        job.workspace.publish(list(LOGS))
        ray.get(job.board.post.remote({RESULT: {"counts": counts, "files": files}}))


def run_precision(job: TrainingJob, device: torch.device) -> Precision:
    """What to train in: as the run's checkpoints were, or those of the model that it extends; else as the
    configuration says. Every worker calls it.

    Checkpoints of earlier versions do not tell; such a run goes by the configuration and the devices.

    Raises:
        UserError: it was begun in a precision that the devices here do not have.
    """
    state = newest_state(job.workspace.path / "checkpoints", mirror_of(job.workspace, LOGS))
    begun, ref, extended = state or {}, job.workspace.folder.prefix, job.inputs.get("extends")
    if state is None and extended is not None:
        begun, ref = extended.counts, extended.ref
    try:
        return keep_precision(job.config.precision, begun.get("precision"), device)
    except PrecisionError as error:
        other = "--precision fp32" + (" and without --extends" if extended is not None else "")
        raise UserError(f"{ref} {error}; go on where all do, or start another run with {other}") from error


def sharded_model(
    job: TrainingJob,
    device: torch.device,
    precision: Precision,
    weights: Path | None,
    ranks: Ranks | None = None,
    lora: LoraConfig | None = None,
) -> LanguageModel:
    """The model over all workers, with the weights of a model artifact, or new ones drawn by the seed.

    Args:
        ranks: how it is divided; by default it is sharded over all.
        lora: the adapters to train in place of the weights, of a decoder or an encoder-decoder.
    """
    if ranks is not None and ranks.layout.pipeline > 1:
        with torch.device("meta"):
            model: LanguageModel | DecoderWithScalar = stage_of(job.model, ranks)
    else:
        model = build(job.model)
    assert not isinstance(model, DecoderWithScalar)
    if lora is not None:
        assert not isinstance(model, MaskedLM)
        add_adapters(model, lora)
    if job.config.float8:
        use_float8(model, device)
    if ranks is None:
        shard(model, data_mesh(device), precision)
    else:
        parallelize(model, ranks, precision)
    model.to_empty(device=device)
    if weights is None:
        model.init_weights(job.config.seed)
    else:
        whole = load_state(weights) | initial_adapters(model, job.config.seed)
        if isinstance(model, Stage):
            own = dict(model.named_parameters())
            whole = {name: value for name, value in whole.items() if name in own}
        scatter_weights(model, whole)
    return model


def my_share(count: int, parallel: ParallelConfig | None = None) -> tuple[int, int, int]:
    """(first, number, missing) of this worker's part of `count` sequences, which differ by one at most.

    `missing` rows without a target fill it up to the largest part: under FSDP all workers must make equally
    many passes of equal size. Workers that divide a model or a row between them have the same part.
    """
    layout = (parallel or ParallelConfig()).layout(dist.get_world_size())
    mine, parts = layout.place(dist.get_rank()).data, layout.data
    first, end = mine * count // parts, (mine + 1) * count // parts
    return first, end - first, math.ceil(count / parts) - (end - first)


class Claim:
    """Who writes in a run's folder: workers of the driver that holds the lease, the last that it started.

    A worker whose driver was killed, or that was given up for dead, can go on for a while beside its
    successor. It must not write then. Each rank 0 puts its own mark into a file, and writes only as long as
    the mark is its own and the lease has not changed hands.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._ticket, self._folder, self._mark = job.ticket, job.workspace.folder, uuid.uuid4().hex.encode()
        self._ticket.check()  # A driver that was paused too long starts its workers again in vain.
        if dist.get_rank() == 0:
            self._folder.write(_MARK, self._mark)
        dist.barrier()

    def holds(self) -> bool:
        """Whether nobody came after."""
        return self._ticket.is_current() and self._folder.read(_MARK) == self._mark


class Watcher:
    """Sends the latest metrics to the driver's progress board, with the model FLOPs utilisation:

    mfu = tokens/s · training FLOPs per token / (peak FLOP/s of all workers)

    flops_per_token: of one of the tokens that metrics count, those that are predicted.
    """

    def __init__(
        self,
        job: TrainingJob,
        device: torch.device,
        precision: Precision,
        flops_per_token: float,
    ) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._board = job.board
        self._peak, self._workers = PeakFlops(device, dtype), dist.get_world_size()
        self._flops_per_token = flops_per_token

    def __call__(self, metrics: dict[str, Any]) -> None:
        if "tokens_per_s" in metrics:
            achieved = metrics["tokens_per_s"] * self._flops_per_token / self._workers
            metrics = metrics | {"mfu": achieved / self._peak.now(achieved)}
        self._board.post.remote(metrics)


def write_model(
    job: TrainingJob,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    chats: bool,
    lora: LoraConfig | None = None,
    ranks: Ranks | None = None,
) -> dict[str, FileEntry]:
    """Write the final weights, in our form and in Hugging Face's. Every worker calls it; rank 0 writes.

    Returns what the manifest says of the files, on rank 0.

    Args:
        chats: as of `write_language_model`.
        lora: the adapters that `model` has. They are merged into the weights, and written by themselves too.
        ranks: as of `gather_weights`.
    """
    weights = gather_weights(model, ranks)
    files: dict[str, FileEntry] = {}
    if dist.get_rank() == 0:
        if lora is not None:
            files |= write_adapter(
                job.workspace, weights, job.model, lora, f"{job.inputs['base'].ref}/{EXPORT}"
            )
            weights = merge_adapters(weights, job.model, lora)
        files |= write_language_model(job.workspace, weights, job.model, tokenizer.model, chats=chats)
    dist.barrier()
    return files
