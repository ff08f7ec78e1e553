"""`manta pretrain --extends`: which finished run to go on from, and whether this one is the same, longer."""

from typing import Any

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.pretrain.config import PretrainConfig

_MAY_DIFFER = ("steps", "optimizer")
_MUST_AGREE = ("optimizer.algorithm", "optimizer.ema_decay")
"""But these, by which it is decided what the optimizer's state consists of."""


def finished_run(config: PretrainConfig, store: ArtifactStore, tokens: dict[str, Artifact]) -> Artifact:
    """The model to extend.

    tokens: what this run learns from, by role.

    Raises:
        UserError: it is no pre-trained model, has no checkpoint left, is as long already, or differs in what
            the weights and the order of the data go by; the message names both values.
    """
    flag = f"--extends {config.extends}"
    model = store.resolve("models", config.extends or "")
    asked, done = config.what(), model.manifest["what"]
    if asked == done and "extends" in model.manifest["inputs"]:
        # The name stands for the very result that is asked for: this is the same command once more.
        model = store.resolve("models", model.manifest["inputs"]["extends"]["ref"])
        done = model.manifest["what"]
    stage = model.manifest["stage"]
    if stage != "pretrain":
        raise UserError(f"{flag}: {model.ref} was made by `manta {stage}`; give a model of `manta pretrain`")
    for role, mine in tokens.items():
        learned_from = model.manifest["inputs"].get(role)  # if there is none, the mixtures differ too
        if learned_from is not None and learned_from["fingerprint"] != mine.fingerprint:
            raise UserError(
                f"{flag}: {model.ref} was trained on {learned_from['ref']}, not on {mine.ref}; give --tokens "
                f"{learned_from['ref'].removeprefix('tokens/')} in its place"
            )
    for name, wanted, its in _differences(_flat(asked), _flat(done)):
        except_for = f", but for {name}" if name in _MUST_AGREE else ""
        raise UserError(
            f"{flag}: {model.ref} was trained with {name} {its}, not {wanted}; "
            f"only {' and '.join(_MAY_DIFFER)} may differ{except_for}"
        )
    if config.steps <= done["steps"]:
        raise UserError(
            f"{flag}: --steps {config.steps} in all, and {model.ref} has {done['steps']} already; "
            "ask for more"
        )
    if not any(name.startswith("checkpoints/") for name in model.folder.files()):
        raise UserError(
            f"{flag}: {model.ref} has no checkpoint left to go on from; train it again with --force"
        )
    return model


def _differences(asked: dict[str, Any], done: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value asked for, value there) of each setting that may not differ and does."""
    return [
        (name, asked.get(name, "at its default"), done.get(name, "at its default"))
        for name in [*asked, *(name for name in done if name not in asked)]
        if asked.get(name) != done.get(name) and (name in _MUST_AGREE or not name.startswith(_MAY_DIFFER))
    ]


def _flat(what: dict[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names, such as ``model.d_model``."""
    flat: dict[str, Any] = {}
    for name, value in what.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in _flat(value).items()}
        else:
            flat[name] = value
    return flat
