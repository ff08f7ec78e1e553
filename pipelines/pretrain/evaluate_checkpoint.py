"""What the newest checkpoint of a run makes of held-out text, measured by one process beside the run's."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from cluster.errors import UserError
from llm.models.load import LanguageModel, build
from llm.training.checkpoint_manifest import STATE, checkpoints_in, step_of
from llm.training.checkpoint_weights import read_weights
from llm.training.deterministic import use_deterministic_algorithms
from llm.training.precision import has_native_bf16
from pipelines.checkpoint_mirror import kept_checkpoint, kept_steps
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.heldout import held_out
from pipelines.pretrain.token_source import open_source
from pipelines.training_launch import TrainingJob

_ATTEMPTS = 5
"""At a checkpoint that stays while it is read."""


def evaluate_newest(job: TrainingJob, done: frozenset[int], device: torch.device) -> dict[str, Any] | None:
    """The measures that workers take in training (`HeldOut.in_training`), of the newest whole checkpoint, and
    its `step`; None if that is among `done`, or there is none.

    The weights are those with which the run would end there, averages where it keeps such. They are whole on
    `device`, however the workers divide them. A checkpoint that the run removes while it is read is passed
    over for the next one.

    Raises:
        UserError: one was removed before it was read, again and again.
    """
    config, folder = job.config, job.workspace.folder
    assert isinstance(config, PretrainConfig)
    if config.deterministic:
        use_deterministic_algorithms()
    for _ in range(_ATTEMPTS):
        if not set(kept_steps(folder)[:1]) - done:
            return None
        path = kept_checkpoint(folder)
        if step_of(path.name) in done:
            return None
        try:
            model = _model(job, path, device)
        except (OSError, ValueError):
            if step_of(path.name) in kept_steps(folder) and path.exists():
                raise
            continue
        _remove_older_copies(job, path)
        # Of the training split nothing is read but how large it is.
        source = open_source(config.model_copy(update={"copy_tokens_up_to": 0}), job.inputs)
        opening_id = source.loader.shards.eos_id if config.document_mask else None
        measures = held_out(model, source, config, opening_id).in_training()
        return {"step": step_of(path.name), **measures}
    raise UserError(
        f"{folder}: its checkpoints are removed before they can be evaluated; "
        "keep more of them: --keep-checkpoints, --keep-every"
    )


def _model(job: TrainingJob, path: Path, device: torch.device) -> LanguageModel:
    """In the precision that the run is trained in, where the device multiplies that: with weights that are
    rounded, as those that FSDP gathers are.

    Raises OSError or ValueError if the checkpoint is gone.
    """
    precision = json.loads((path / STATE).read_bytes()).get("precision")
    weights = read_weights(path)
    in_bf16 = precision == "bf16" and has_native_bf16(device)
    model = build(job.model)
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    placed = {name: weights.pop(name).to(device, dtype) for name in list(weights)}  # No second copy of all.
    model.load_state_dict(placed, assign=True)
    return model


def _remove_older_copies(job: TrainingJob, path: Path) -> None:
    """Of checkpoints that are kept in object storage. A run removes its own on one machine alone."""
    if job.workspace.folder.local is None:
        for name in checkpoints_in(path.parent):
            if name < path.name:
                shutil.rmtree(path.parent / name, ignore_errors=True)
