"""`manta run`: check the whole file, then make what is missing, one stage after the other, on one cluster."""

import importlib
import time
from typing import Any

from rich.table import Table

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster, connect
from cluster.errors import UserError
from pipelines.jobs.places import places_on_disk
from pipelines.outcome import exit_code, outcome
from pipelines.progress import console
from pipelines.run.config import RunConfig
from pipelines.run.plan import Planned, check, plan
from pipelines.run.read import Pipeline, Step, read_pipeline


def run(config: RunConfig) -> int:
    """Make every artifact of the pipeline that is not there yet, or print which those are.

    Returns 0, or 3 if units of work failed somewhere and were left out, as the user allowed.
    """
    pipeline = read_pipeline(config.pipeline, root=config.root, address=config.address)
    store = ArtifactStore(pipeline.root)
    check(pipeline, store)
    if config.dry_run:
        _print_plan(pipeline, plan(pipeline, store))
        return 0
    code = 0
    places = places_on_disk(*(step.config for step in pipeline.steps))
    with connect(config.address, console.print, places) as cluster:
        for number, step in enumerate(pipeline.steps, 1):
            artifact = _run_step(step, f"[{number}/{len(pipeline.steps)}]", cluster)
            code = max(code, exit_code(artifact))
    return code


def _run_step(step: Step, position: str, cluster: Cluster) -> Artifact:
    began = time.time()
    console.print(f"[bold]{position} {step.stage}[/bold] → {step.makes}")
    module: Any = importlib.import_module(f"pipelines.{step.stage}.stage")
    try:
        artifact: Artifact = module.run(step.config, cluster)
    except UserError as error:
        raise UserError(f"{step.place}: {error}") from error
    console.print(f"      {outcome(artifact, began)}")
    return artifact


def _print_plan(pipeline: Pipeline, planned: list[Planned]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "stage", "makes", "", "reads"):
        table.add_column(column, overflow="fold")
    for number, each in enumerate(planned, 1):
        state = f"exists ({each.artifact.version})" if each.artifact else "to do"
        reads = ", ".join(each.step.reads.values()) or "raw files"
        table.add_row(str(number), each.step.stage, each.step.makes, state, reads)
    console.print(table)
    missing = sum(each.artifact is None for each in planned)
    console.print(f"{missing} of {len(planned)} to do under {pipeline.root}" if missing else "nothing to do")
