"""The quickstart: every stage in a row on one Ray cluster, then a report."""

import importlib
import shlex
import time

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from pipelines.inspect.format import format_bytes, format_seconds
from pipelines.invocation import invocation
from pipelines.outcome import made_since, outcome
from pipelines.progress import console
from pipelines.quickstart.chain import ALIGNED, Step, chain
from pipelines.quickstart.config import QuickstartConfig
from pipelines.quickstart.memory import PeakMemory, StagePeaks
from pipelines.quickstart.report import Report, collect, read_report, write_report
from pipelines.quickstart.verdict import ratio, shortcomings


def resolve_inputs(config: QuickstartConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """Checks the source of the first stage; the others read what those before them made."""
    first = chain(config)[0]
    try:
        _stage(first).resolve_inputs(first.config, store)
    except UserError as error:  # That stage knows our --source as its --paths.
        raise UserError(str(error).replace("--paths", "--source")) from error
    return {}


def run(config: QuickstartConfig, cluster: Cluster) -> Report:
    """Make everything that is not there yet, write the report, print it."""
    started = time.time()
    steps = chain(config)
    store = ArtifactStore(config.root)
    peaks = StagePeaks(store.storage)
    artifacts: list[Artifact] = []
    with PeakMemory(cluster) as memory:
        for number, step in enumerate(steps, 1):
            artifacts.append(_run_step(step, f"[{number}/{len(steps)}]", cluster, memory, peaks))
    refs = [artifact.ref for artifact in artifacts]
    report = read_report(store)
    made_something = any(made_since(artifact, started) for artifact in artifacts)
    # A root can hold several chains (another scale, another source): the report may be on another one.
    if report is None or made_something or report.artifacts != refs:
        report = collect(steps, artifacts, peaks.highest(refs))
        write_report(store, report)
    _print_report(report, store, config)
    return report


def _run_step(step: Step, position: str, cluster: Cluster, memory: PeakMemory, peaks: StagePeaks) -> Artifact:
    """Run one stage and say what it made, or that it was made before."""
    began = time.time()
    memory.take()
    console.print(f"[bold]{position} {step.title}[/bold] (`manta {step.stage}`)")
    artifact: Artifact = _stage(step).run(step.config, cluster)
    if made_since(artifact, began):
        peaks.keep(artifact.ref, memory.take())
    console.print(f"      {outcome(artifact, began)}")
    return artifact


def _stage(step: Step):  # type: ignore[no-untyped-def]  # a module
    return importlib.import_module(f"pipelines.{step.stage}.stage")


def _print_report(report: Report, store: ArtifactStore, config: QuickstartConfig) -> None:
    bits, parse, finetuned = report.heldout_bits_per_byte, report.parse_rate, report.parse_rate_finetuned
    win = report.win_rate
    total = sum(report.seconds.values())
    manta, root_option = invocation(), f"--root {shlex.quote(config.root)}"
    lines = [
        "",
        "[bold]From text to an aligned model[/bold]",
        f"  held-out bits per byte   {bits.base:.2f}    ({ratio(report):.0%} of a token unigram's "
        f"{bits.unigram:.2f})",
        f"  completions that parse   {parse.value:.0%}    (fine-tuned: {finetuned.value:.0%}; n = {parse.n})",
        f"  win rate, aligned        {win.value:.0%}    (95 % interval {win.low:.0%} to {win.high:.0%}; "
        f"n = {win.n}, graded by a simulated reviewer)",
        f"  time                     {format_seconds(total)}",
        f"  peak memory              {format_bytes(report.peak_memory_bytes)}",
        *(f"  [yellow]warning[/yellow]  {line}" for line in shortcomings(report, config.scale)),
        "",
        f"  report   {store.root}/report.html",
        f"  serve    {manta} serve {root_option} --model {ALIGNED}",
        f"  look     {manta} show models/{ALIGNED} {root_option}",
    ]
    for line in lines:
        console.print(line)
