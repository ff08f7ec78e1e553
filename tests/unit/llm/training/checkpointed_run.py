"""A training run of seconds that is checkpointed every four steps, and a mirror in a folder."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.loop import TrainingRun
from llm.training.loss import next_token_targets
from llm.training.metrics_log import read_records
from llm.training.recipe import Recipe
from llm.training.step import MicroBatch

CONFIG = model_config("tiny-100k", vocab_size=64, d_model=32, n_layers=1, d_ff=48)
RECIPE = Recipe(
    steps=12,
    peak_learning_rate=1e-2,
    minimum_learning_rate=1e-3,
    warmup_steps=3,
    decay="linear",
    embedding_scale=3.0,
    head_scale=2.0,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    clip_norm=1.0,
    evaluate_every=4,
    checkpoint_every=4,
    keep_checkpoints=2,
    flush_every=3,
)


def micro_batches(step: int, rank: int = 0, world: int = 1) -> list[MicroBatch]:
    """A rank's share of four sequences."""
    tokens = torch.randint(CONFIG.vocab_size, (4, 10), generator=torch.Generator().manual_seed(step))
    mine = tokens[rank * 4 // world : (rank + 1) * 4 // world]
    return [(mine, next_token_targets(mine))]


def a_run(folder: Path, **changes: Any) -> TrainingRun:
    """On one process, from new weights."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    run = TrainingRun(
        model=model,
        precision="fp32",
        recipe=RECIPE,
        folder=folder,
        micro_batches=micro_batches,
        data_state=lambda steps: {"samples_consumed": 4 * steps},
        check_data_state=lambda state: None,
        evaluate=lambda: {"heldout": model.embed.weight.sum().item()},
        attachments={"config.json": b"{}\n"},
    )
    return dataclasses.replace(run, **changes)


def assert_same(run: TrainingRun, undisturbed: TrainingRun) -> None:
    """Weights and metrics, bit for bit."""
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    ours, theirs = (r.folder / "metrics.jsonl" for r in (run, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(read_records(ours)) == RECIPE.steps


@dataclasses.dataclass(frozen=True)
class FolderMirror:
    """A `CheckpointMirror` that copies to another folder."""

    root: Path
    before_upload: Callable[[str], None] = lambda name: None
    """Told the checkpoint's name by each rank that comes with files."""

    def names(self) -> list[str]:
        return sorted((path.parent.name for path in self.root.glob("*/manifest.json")), reverse=True)

    def manifest(self, name: str) -> bytes:
        return (self.root / name / "manifest.json").read_bytes()

    def download(self, name: str, files: list[str], folder: Path) -> None:
        _copy(self.root / name, files, folder)

    def upload(self, name: str, files: list[str], folder: Path) -> None:
        self.before_upload(name)
        _copy(folder, files, self.root / name)

    def seal(self, name: str, manifest: bytes) -> None:
        (self.root / name / "manifest.json").write_bytes(manifest)

    def remove(self, name: str) -> None:
        (self.root / name / "manifest.json").unlink()
        shutil.rmtree(self.root / name)


def _copy(source: Path, files: list[str], target: Path) -> None:
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
