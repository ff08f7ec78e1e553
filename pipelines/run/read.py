"""The file that `manta run` reads, and its stages in the order in which they can run.

root: runs/mine
stages:
  - stage: corpus
    name: mine
    paths: [data/*.jsonl]
  - stage: tokenizer
    name: mine
    corpus: mine
"""

import difflib
import graphlib
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from pipelines.command_line import from_values, read_yaml
from pipelines.run.signatures import SIGNATURES, makes, reads
from pipelines.stage_config import StageConfig

DEFAULT_ROOT = "runs/default"
_ABOVE = ("root", "address", "force")
"""Fields of every stage that a pipeline does not set one by one."""


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline."""

    place: str
    """Where it stands, for messages: ``pipeline.yaml: stage 2 (tokenizer)``."""
    stage: str
    config: StageConfig

    @property
    def makes(self) -> str:
        """``KIND/NAME``."""
        return makes(self.stage, self.config)

    @property
    def reads(self) -> dict[str, str]:
        """Field → ``KIND/NAME`` or ``KIND/NAME/VERSION``."""
        return reads(self.stage, self.config)


@dataclass(frozen=True)
class Pipeline:
    """A file of stages, each after those that make what it reads."""

    file: str
    root: str
    steps: tuple[Step, ...]

    def made_by(self, reference: str) -> Step | None:
        """The step that makes the artifact of this name; None if the name has to be there already."""
        return next((step for step in self.steps if step.makes == reference), None)


def read_pipeline(file: str, *, root: str | None = None, address: str | None = None) -> Pipeline:
    """Read and order a pipeline. Whether names that it does not make exist is for `plan` to say.

    root, address: go before what the file says.

    Raises:
        UserError: not such a file, an unknown stage or field, an impossible value, two stages that make the
            same name, or stages that wait for each other.
    """
    content = read_yaml(file, f"manta run {file}")
    unknown = sorted(set(content) - {"root", "stages"}, key=str)
    if unknown:
        raise UserError(f"{file}: unknown field {unknown[0]!r}; fields are root and stages")
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{file}: `stages` must be a list of stages, each with `stage: NAME` and its options")
    root = root or content.get("root") or DEFAULT_ROOT
    if not isinstance(root, str):
        raise UserError(f"{file}: root: {root!r} is no text")
    common = {"root": root, "address": address}
    steps = [_step(file, number, values, common) for number, values in enumerate(stages, 1)]
    return Pipeline(file, root, tuple(_in_order(file, steps)))


def as_yaml(pipeline: Pipeline) -> dict[str, Any]:
    """The file that says the same, every default spelled out."""
    return {
        "root": pipeline.root,
        "stages": [
            {"stage": step.stage, **step.config.model_dump(mode="json", exclude=set(_ABOVE))}
            for step in pipeline.steps
        ],
    }


def _step(file: str, number: int, values: Any, common: dict[str, Any]) -> Step:
    from pipelines.cli import STAGES, config_class

    place = f"{file}: stage {number}"
    if not isinstance(values, dict) or not isinstance(values.get("stage"), str):
        raise UserError(f"{place}: expected `stage: NAME` and its options, found {values!r}")
    stage = values["stage"]
    if stage not in SIGNATURES:
        nearest = difflib.get_close_matches(stage, SIGNATURES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"stages are {', '.join(SIGNATURES)}"
        problem = "makes no artifact" if stage in STAGES else "is no stage"
        raise UserError(f"{place}: {stage!r} {problem}; {hint}")
    place = f"{place} ({stage})"
    options = {name: value for name, value in values.items() if name != "stage"}
    if above := [name for name in _ABOVE if name in options]:
        raise UserError(
            f"{place}: {above[0]!r} is the same for all stages: "
            + ("leave it out" if above[0] == "force" else f"give `manta run` --{above[0]}")
        )
    return Step(place, stage, from_values(config_class(STAGES[stage]), {**options, **common}, place))


def _in_order(file: str, steps: list[Step]) -> list[Step]:
    """The steps, each after those that make what it reads; otherwise as they stand in the file."""
    makers: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.makes in makers:
            first = steps[makers[step.makes]].place
            raise UserError(f"{step.place}: {step.makes} is made by {first} already: give one another name")
        makers[step.makes] = number
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for number, step in enumerate(steps):
        sorter.add(number, *(makers[name] for name in step.reads.values() if name in makers))
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(steps[number].makes for number in error.args[1])
        raise UserError(
            f"{file}: stages wait for each other: {circle}; one of them must read something else"
        ) from None
    order: list[Step] = []
    ready: list[int] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        order.append(steps[ready[0]])
        sorter.done(ready.pop(0))
    return order
