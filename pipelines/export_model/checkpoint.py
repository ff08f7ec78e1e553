"""A model as one of its checkpoints has it, whether its training has ended or goes on."""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LEASES, is_held
from cluster.artifacts.manifest import MANIFEST, Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.models.config import ModelConfig
from llm.models.load import Head, load_config, load_state
from llm.models.lora import merge_adapters
from llm.models.lora_config import LoraConfig
from llm.tokenizer.load import find_tokenizer
from llm.tokenizer.special import special_ids
from llm.training.checkpoint_manifest import STATE
from llm.training.checkpoint_weights import read_weights
from pipelines.begin import check_inputs
from pipelines.checkpoint_mirror import kept_checkpoint
from pipelines.model_folder import BEGUN, CONFIG, WEIGHTS

_ATTEMPTS = 5
"""At a checkpoint that stays while it is read."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint says of a model."""

    step: int
    shape: ModelConfig
    head: Head
    weights: dict[str, Tensor]
    tokenizer: bytes
    special_ids: dict[str, Any]
    origin: dict[str, Any]
    """What a manifest says of how the model comes about."""


def unfinished(store: ArtifactStore, reference: str) -> Folder | None:
    """The folder of the model that NAME or NAME/VERSION (or the start of one) will be; None if none is begun.

    Raises:
        UserError: there are several, of which none or more than one is being trained now.
    """
    name, _, version = reference.removeprefix("models/").partition("/")
    siblings = Folder(store.storage, f"models/{name}")
    begun = [each for each in siblings.folders() if each.startswith(version)]
    begun = [each for each in begun if not _has(siblings / each, MANIFEST)]
    if len(begun) > 1:
        at_work = [each for each in begun if is_held(siblings, f"{LEASES}/{each}.json")]
        if len(at_work) != 1:
            several = ", ".join(f"models/{name}/{each}" for each in begun)
            raise UserError(f"{reference} may be any of {several}, which are not finished; give one of them")
        begun = at_work
    return siblings / begun[0] if begun else None


def read_kept(store: ArtifactStore, model: Artifact | Folder, step: int | None) -> Kept:
    """The newest whole checkpoint, or that of `step`, of a model that is finished or not.

    Adapters are merged into their base model. A checkpoint that the run removes while it is read is passed
    over for the next one.

    Raises:
        UserError: there is none; or one was removed before it was read, again and again.
    """
    folder = model.folder if isinstance(model, Artifact) else model
    origin = model.manifest if isinstance(model, Artifact) else _origin(folder)
    for _ in range(_ATTEMPTS):
        path = kept_checkpoint(folder, step)
        try:
            shape, head = load_config(path)
            tokenizer = find_tokenizer(path).read_bytes()
            done = int(json.loads((path / STATE).read_bytes())["step"])
            weights = read_weights(path)
        except (OSError, ValueError):
            continue
        weights = _of_the_model(weights, origin, shape, store)
        ids = special_ids(chats=origin["stage"] != "pretrain" and shape.family == "decoder")
        return Kept(done, shape, head, weights, tokenizer, ids, origin)
    raise UserError(
        f"{folder}: its checkpoints are removed before they can be read; "
        "keep more of them: --keep-checkpoints, --keep-every"
    )


def provenance(kept: Kept, ref: str) -> bytes:
    """What a directory says of the checkpoint that it was made from."""
    origin = {key: kept.origin[key] for key in ("stage", "fingerprint", "what", "inputs")}
    return json.dumps({"model": ref, "step": kept.step} | origin, indent=2).encode() + b"\n"


def _has(folder: Folder, name: str) -> bool:
    try:
        return bool(folder.read(name))
    except FileNotFoundError:
        return False


def _origin(folder: Folder) -> dict[str, Any]:
    try:
        origin: dict[str, Any] = json.loads(folder.read(BEGUN))
    except (FileNotFoundError, ValueError):
        raise UserError(
            f"{folder}: there is no {BEGUN} that says what it is; an earlier version may have begun it: "
            "run its command again"
        ) from None
    return origin


def _of_the_model(
    weights: dict[str, Tensor], origin: dict[str, Any], shape: ModelConfig, store: ArtifactStore
) -> dict[str, Tensor]:
    """Of what a checkpoint holds the language model, whole."""
    if origin["stage"] == "rlhf":  # whose checkpoints hold the critic too
        policy = "policy."
        return {name.removeprefix(policy): w for name, w in weights.items() if name.startswith(policy)}
    lora = LoraConfig(**origin["what"].get("lora", {}))
    if not lora.rank:
        return weights
    base = store.resolve("models", origin["inputs"]["base"]["ref"])
    check_inputs({"base": base})
    return merge_adapters(load_state(base.fetch(CONFIG, WEIGHTS)) | weights, shape, lora)
