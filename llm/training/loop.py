"""The training loop: the same for pre-training and fine-tuning, on one process or many, new or resumed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.models.decoder import Trunk
from llm.models.documents import documents_of_pair, seeing_themselves
from llm.models.encoder_decoder import EncoderDecoder, seeing_own_pair
from llm.tokenizer.special import EOS_ID
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.checkpoint import load_checkpoint, newest_checkpoint
from llm.training.checkpoint_mirror import CheckpointMirror
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.checkpoint_writing import CheckpointPlace
from llm.training.ema import average_weights, take_average
from llm.training.expert_load import expert_load
from llm.training.last_checkpoints import LastCheckpoints
from llm.training.loss import IGNORE, summed_cross_entropy, with_z_loss
from llm.training.optimizer import make_optimizer
from llm.training.outliers import Outliers
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.rows import own_part, own_part_of_pair
from llm.training.peak_memory import peak_memory
from llm.training.precision import Precision
from llm.training.recipe import Recipe
from llm.training.recorder import Recorder
from llm.training.step import Backward, LossSum, MicroBatch, NonFiniteError, train_step
from llm.training.step_split import StepSplit
from llm.training.watch import Observer, StepWatch


@dataclass(frozen=True)
class TrainingRun:
    """Everything a run is made of. Functions of a step depend on that step alone, so that any step can be
    redone.
    """

    model: Trunk | EncoderDecoder
    """Sharded, holding its first weights."""
    recipe: Recipe
    precision: Precision
    """What the model was sharded with; its checkpoints say so."""
    folder: Path
    """Gets `checkpoints/`, `metrics.jsonl` and `timing.jsonl`; of a step that hung, `hangs/`; if asked for,
    `profiles/`.
    """
    mirror: CheckpointMirror | None = field(default=None, kw_only=True)
    """Where checkpoints are kept if not in the folder."""
    extended: Callable[[], Path | None] = field(default=lambda: None, kw_only=True)
    """The checkpoint of a finished run to go on from, while this one has none of its own."""
    micro_batches: Callable[[int], Sequence[MicroBatch]]
    """step (0-based) -> this rank's share of that step's global batch."""
    data_state: Callable[[int], dict[str, Any]]
    """steps taken -> the loader's state, for the checkpoint."""
    check_data_state: Callable[[dict[str, Any]], None]
    """Raises if a checkpoint's loader state is not of this data."""
    samples_per_step: int = 0
    """Samples in a global batch, if they are numbered in the order of the data: to say where a bad one is."""
    evaluate: Callable[[], dict[str, float]] = dict
    """Held-out measures of the model as it is now; every rank calls it."""
    attachments: dict[str, bytes] = field(default_factory=dict)
    """Files to copy into each checkpoint, by name."""
    watcher: Callable[[dict[str, Any]], None] = lambda metrics: None
    """Told the latest metrics now and then, on rank 0."""
    may_write: Callable[[], bool] = lambda: True
    """False once another process has taken this run over."""
    copies: int = 1
    """Ranks that are given the same rows (`ParallelLayout.copies`)."""
    loss_sum: LossSum | None = None
    """What a micro-batch costs; by default the cross-entropy of a language model."""
    observer: Observer = field(default_factory=Observer)
    """Told of steps that hang and ranks that are slow; asks for profiles and for checkpoints."""
    backward: Backward | None = None
    """Takes all micro-batches of a step, in place of `loss_sum` one by one (`Pipeline.backward`)."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(run: TrainingRun) -> None:
    """Train from the newest whole checkpoint, or from the beginning, to `recipe.steps`.

    After any interruption the same call gives the same weights and the same `metrics.jsonl`, bit for bit,
    on the same number of ranks and threads. Where a recipe averages the weights, the model is left with the
    average; its checkpoints have both.

    The checkpoint in the making is finished before this returns or raises.

    Raises:
        NonFiniteError: the loss or gradient is NaN or infinite; the newest checkpoint is from before.
        Superseded: another process has taken the run over.
    """
    recipe = run.recipe
    place = CheckpointPlace(
        run.checkpoints, recipe.keep_checkpoints, recipe.keep_every, run.mirror, run.may_write
    )
    device = next(run.model.parameters()).device
    with (
        CheckpointSaver(place, recipe.checkpoint_async) as saver,
        StepWatch(run.observer, run.folder, device) as watch,
    ):
        _train(run, saver, watch)


def _train(run: TrainingRun, saver: CheckpointSaver, watch: StepWatch) -> None:
    recipe, model = run.recipe, run.model
    optimizer = make_optimizer(model, recipe, run.precision)
    if recipe.ema_decay:
        average_weights(optimizer, recipe.ema_decay)
    outliers = Outliers(recipe.outlier_sigmas) if recipe.outlier_sigmas else None
    first_step = _resume(run, optimizer, outliers)
    for block in model.blocks:
        checkpoint_activations(block, recipe.activation_checkpointing)
        if recipe.compile:
            block.compile()
    loss_sum = watch.following(run.loss_sum or language_model_loss(model, compiled=recipe.compile))
    device = next(model.parameters()).device
    split = StepSplit(device)

    def readings() -> dict[str, float]:
        return split.take() | watch.readings() | peak_memory(device)

    recorder = Recorder(run.folder, first_step, recipe.flush_every, run.watcher, run.may_write, readings)
    if recorder.writes:
        loss_sum = split.forward(loss_sum)
        split.optimizer(optimizer)

    last = LastCheckpoints(run.observer.noticed)

    def checkpointed(step: int, held_up: float, committed: float) -> None:
        last.saved(step, held_up)
        recorder.checkpointed(step, held_up, committed)

    for step in range(first_step, recipe.steps):
        watch.begins("data", step)
        started = time.perf_counter()
        rate = recipe.rate(step)
        try:
            micro_batches = run.micro_batches(step)
            data_wait = time.perf_counter() - started
            watch.begins("step", step)
            result = train_step(
                model,
                optimizer,
                micro_batches,
                loss_sum,
                rate,
                recipe.clip_norm,
                run.copies,
                run.backward,
                outliers=outliers,
            )
        except NonFiniteError as error:
            watch.begins("other", step)
            saver.wait()
            raise NonFiniteError(f"step {step + 1}: {error}{_where(run, step)}. {_mend(run)}") from None
        seconds = time.perf_counter() - started
        done = step + 1
        asked_for = last.due(done)  # Still in the step: if rank 0 stands still, this is a hang too.
        watch.begins("other", step)

        metrics = {"step": done, "loss": result.loss, "learning_rate": rate}
        metrics |= {"grad_norm": result.grad_norm, "tokens": result.tokens}
        if result.z_loss:
            metrics["z_loss"] = result.z_loss
        if model.config.n_experts:
            metrics |= expert_load(model)
        if outliers is not None:
            metrics["skipped_steps"] = outliers.skipped
        if recipe.evaluate_every and (done % recipe.evaluate_every == 0 or done == recipe.steps):
            metrics |= run.evaluate()
        recorder.record(metrics, seconds, data_wait)
        saver.check()
        if asked_for or done % recipe.checkpoint_every == 0 or done == recipe.steps:
            last.saving(done)
            recorder.flush(durable=True)
            state = {"data": run.data_state(done), "precision": run.precision}
            if outliers is not None:
                state["outliers"] = outliers.state()
            saver.save(done, model, optimizer, state, run.attachments, checkpointed)
    if recipe.ema_decay:
        saver.wait()
        take_average(optimizer)


def language_model_loss(
    model: Trunk | EncoderDecoder,
    opening_id: int | None = None,
    ranks: Ranks | None = None,
    z_loss: float = 0.0,
    compiled: bool = False,
) -> Callable[..., Any]:
    """The summed cross-entropy of a micro-batch, inside `model`'s forward for FSDP's sake.

    Args:
        opening_id: the token with which each document of a row begins, if they are not to see each other; of
            an encoder-decoder, each that is written: those that are read end with <eos>.
        ranks: how the model is divided. With gradients, the sum is then over this rank's part of each row.
        z_loss: coefficient of the z-loss; above 0 what is returned is both in one, and the z-loss.
        compiled: as of `summed_cross_entropy`.
    """

    def loss_sum(*micro_batch: Tensor) -> Any:
        *given, targets = micro_batch
        row_weights = (targets != IGNORE).sum(1)
        whole = ranks is None or not ranks.layout.divides_rows or not torch.is_grad_enabled()
        divided = None if whole else ranks
        if model.config.family == "encoder-decoder":
            documents = None
            if opening_id is not None:
                documents = documents_of_pair(given[0], given[1], EOS_ID, opening_id)
            if divided is not None:
                *given, targets, inputs = own_part_of_pair(given[0], given[1], targets, documents, divided)
            else:
                inputs = {"sight": seeing_own_pair(*documents)} if documents else {}
        elif divided is not None:
            both_ways = model.config.family == "encoder"
            given[0], targets, inputs = own_part(given[0], targets, opening_id, divided, both_ways)
        else:
            inputs = seeing_themselves(given[0], opening_id)

        def readout(hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None) -> Any:
            predicted = targets
            if model.config.family == "encoder":  # Most tokens are not masked: their logits are not made.
                masked = targets != IGNORE
                hidden, predicted = hidden[masked], targets[masked]
            arguments = hidden, head_weight, predicted, model.config.vocab_size, head_bias, compiled
            return with_z_loss(*arguments, coefficient=z_loss) if z_loss else summed_cross_entropy(*arguments)

        if model.config.n_experts:
            inputs["row_weights"] = row_weights
        return model(*given, **inputs, readout=readout)

    return loss_sum


def _resume(run: TrainingRun, optimizer: torch.optim.Optimizer, outliers: Outliers | None) -> int:
    """Load the newest whole checkpoint, if there is one; returns the number of steps already taken."""
    checkpoint = newest_checkpoint(run.checkpoints, run.mirror) or run.extended()
    if checkpoint is None:
        return 0
    state = load_checkpoint(checkpoint, run.model, optimizer)
    run.check_data_state(state["data"])
    if outliers is not None and "outliers" in state:  # not if a run is extended that took all steps
        outliers.load(state["outliers"])
    return int(state["step"])


def _where(run: TrainingRun, step: int) -> str:
    """Which samples the step was to learn from."""
    count = run.samples_per_step
    return f", in samples {step * count} to {(step + 1) * count - 1}" if count else ""


def _mend(run: TrainingRun) -> str:
    good = newest_checkpoint(run.checkpoints, run.mirror)
    kept = f"{good.name} is unharmed" if good else "no checkpoint had been written yet"
    return f"The step was not taken; {kept}. Lower the learning rate or lengthen the warm-up"
