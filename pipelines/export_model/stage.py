"""Export: models/NAME → a Hugging Face directory, on this machine and without Ray."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact, DamagedManifest
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.config import ModelConfig
from llm.models.hugging_face.directory import export_model
from llm.models.hugging_face.fields import Unsupported
from llm.models.hugging_face.names import Read
from llm.models.load import Head, load_config
from llm.tokenizer.special import ADDED_PIECES, special_ids
from pipelines.begin import check_inputs
from pipelines.export_model.checkpoint import provenance, read_kept, unfinished
from pipelines.export_model.config import ExportConfig
from pipelines.inspect.format import format_bytes
from pipelines.model_folder import CONFIG, EXPORT, GENERATION, IMPORTED, WEIGHTS
from pipelines.progress import console
from pipelines.tokenizer_artifact import read_tokenizer, tokenizer_file

PROVENANCE = "manta.json"
"""In a directory made from a checkpoint: model, step, and what the model is made from."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(config: ExportConfig) -> int:
    """Write the directory, whole or not at all."""
    store = ArtifactStore(config.root)
    model = find(store, config.model)
    target = _free_place(config.to)
    what = model.ref if isinstance(model, Artifact) else model.prefix
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        written = Path(scratch, "export")
        try:
            if isinstance(model, Artifact) and config.step is None:
                check_inputs({"model": model})
                _write_finished(model, written, _DTYPES[config.dtype])
            else:
                kept = read_kept(store, model, config.step)
                _write(
                    kept.weights.__getitem__,
                    kept.shape,
                    kept.head,
                    written,
                    kept.tokenizer,
                    kept.special_ids,
                    _DTYPES[config.dtype],
                )
                (written / PROVENANCE).write_bytes(provenance(kept, what))
                what = f"{what} after step {kept.step:,}"
        except Unsupported as error:
            raise UserError(f"{what}: {error}") from None
        size = sum(file.stat().st_size for file in written.iterdir())
        os.replace(written, target)  # which an empty folder does not keep from happening
    console.print(f"{what}: written to {target}, {format_bytes(size)}", markup=False)
    return 0


def find(store: ArtifactStore, reference: str) -> Artifact | Folder:
    """The finished model; where there is none, the folder of the one that will be. Raises UserError."""
    try:
        return store.resolve("models", reference)
    except DamagedManifest:
        raise
    except UserError:
        run = unfinished(store, reference)
        if run is None:
            raise
        return run


def _free_place(to: str) -> Path:
    if "://" in to:
        raise UserError(f"--to {to}: give a folder on this machine, and copy it from there")
    target = Path(to).expanduser().absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--to {to}: there is something already; give a new folder, or empty this one")
    return target


def _write_finished(model: Artifact, directory: Path, dtype: torch.dtype) -> None:
    kept = [name for name in model.files if name.startswith(f"{IMPORTED}/")]
    folder = model.fetch(CONFIG, WEIGHTS, *kept)
    shape, head = load_config(folder)
    tokenizer = read_tokenizer(model) if tokenizer_file(model.files) else None
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        _write(weights.get_tensor, shape, head, directory, tokenizer, _special_ids(model), dtype)
    for name in kept:
        if not (directory / Path(name).name).exists():
            shutil.copyfile(folder / name, directory / Path(name).name)


def _write(
    read: Read,
    shape: ModelConfig,
    head: Head,
    directory: Path,
    tokenizer: bytes | None,
    special_ids: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    if head != "lm":
        raise Unsupported(
            "a reward model has no counterpart: the head of LlamaForSequenceClassification has no bias"
        )
    export_model(
        read,
        shape,
        directory,
        tokenizer_model=tokenizer,
        added_pieces=ADDED_PIECES[shape.family],
        special_ids=special_ids,
        dtype=dtype,
    )


def _special_ids(model: Artifact) -> dict[str, Any]:
    """Those that were written, or imported, with the model."""
    for folder in (EXPORT, IMPORTED):
        if f"{folder}/{GENERATION}" in model.files:
            found: dict[str, Any] = json.loads(model.read(f"{folder}/{GENERATION}"))
            return found
    return special_ids(chats=False)
