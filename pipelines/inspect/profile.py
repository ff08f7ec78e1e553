"""``manta profile``: a trace of the next steps of a run under way, wherever it runs."""

import time
from typing import Annotated

import tyro
from pydantic import Field

from cluster.artifacts.folder import Folder
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines import profile_desk
from pipelines.progress import console
from pipelines.stage_config import Frozen

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 10.0
"""Between looks whether the run is still at work."""


class ProfileConfig(Frozen):
    """Trace steps of a model that pretrain, finetune or reward is training; the run goes on."""

    model: Annotated[str, tyro.conf.Positional]
    """NAME or NAME/VERSION of the model that is being made; the start of a version is enough."""
    steps: int = Field(default=5, gt=0)
    """How many, from the next one on."""
    all_workers: bool = False
    """Trace every worker, in the same steps; by default the first alone."""
    root: str = "runs/default"
    """Where the artifacts are."""


def run(config: ProfileConfig) -> None:
    """Ask the run, wait for the trace, and say where it is."""
    store = ArtifactStore(config.root)
    ref = _in_the_making(store, config.model)
    folder = Folder(store.storage, ref)
    request = profile_desk.ask(folder, config.steps, config.all_workers)
    console.print(f"{ref}: {config.steps} steps are traced as soon as they are taken", markup=False)
    looked = time.monotonic()
    try:
        while (said := profile_desk.answered(folder, request)) is None:
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - looked > _LOOK_SECONDS:
                _in_the_making(store, ref)
                looked = time.monotonic()
    except BaseException:
        profile_desk.withdraw(folder)
        raise
    console.print(f"{said}; open them with chrome://tracing or ui.perfetto.dev", markup=False)


def _in_the_making(store: ArtifactStore, model: str) -> str:
    """The ref of a model that somebody is making now. Raises UserError if nobody is, or it is not clear."""
    wanted = f"models/{model.removeprefix('models/')}"
    there = [each.ref for each in store.at_work() if each.ref.startswith("models/")]
    found = [ref for ref in there if ref.startswith(wanted) and "/" in ref[len("models/") : len(wanted) + 1]]
    if len(found) == 1:
        return found[0]
    at_work = ", ".join(there) or "nothing"
    if found:
        raise UserError(f"{model} may be any of {', '.join(found)}: give NAME/VERSION")
    raise UserError(f"no run is making {wanted} under {store.root}; at work is {at_work}")
