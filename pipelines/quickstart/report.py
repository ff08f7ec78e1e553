"""The quickstart's report: the numbers as JSON, and a page with charts and samples."""

import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
from pydantic import ValidationError

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from pipelines.inspect.format import format_bytes, format_seconds
from pipelines.invocation import invocation
from pipelines.quickstart.chain import ALIGNED, CHAT, Step
from pipelines.quickstart.charts import Bar, Series, bar_chart, line_chart
from pipelines.stage_config import Frozen

REPORT, PAGE = "report.json", "report.html"
_SAMPLES = 6


class BitsPerByte(Frozen):
    """On held-out text; lower is better."""

    unigram: float
    base: float


class Rate(Frozen):
    """A share with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int


class Report(Frozen):
    """What `report.json` holds."""

    heldout_bits_per_byte: BitsPerByte
    parse_rate: Rate
    """Of the aligned model's completions on held-out prompts."""
    parse_rate_finetuned: Rate
    win_rate: Rate
    """Of the aligned against the fine-tuned model, graded by a simulated reviewer, ties count one half."""
    seconds: dict[str, float]
    """By stage, without the start of Ray; of the last run where a stage was interrupted."""
    peak_memory_bytes: int
    """The highest that any stage had; of the last run where a stage was interrupted."""
    artifacts: list[str]


def collect(steps: list[Step], artifacts: list[Artifact], peak_memory_bytes: int) -> Report:
    """The report on a finished chain."""
    by_name = {f"{artifact.kind}/{artifact.name}": artifact for artifact in artifacts}
    base = by_name["models/base"].counts
    results = json.loads(artifacts[-1].read("results.json"))
    return Report(
        heldout_bits_per_byte=BitsPerByte(
            unigram=base["unigram_heldout_bits_per_byte"], base=base["heldout_bits_per_byte"]
        ),
        parse_rate=_rate(results["parse_rate"]["model"]),
        parse_rate_finetuned=_rate(results["parse_rate"]["baseline"]),
        win_rate=_rate(results["win_rate"]),
        seconds={
            _label(step): round(artifact.run().get("seconds", 0.0), 2)
            for step, artifact in zip(steps, artifacts, strict=True)
        },
        peak_memory_bytes=peak_memory_bytes,
        artifacts=[artifact.ref for artifact in artifacts],
    )


def read_report(store: ArtifactStore) -> Report | None:
    """The report of an earlier run; None if it has to be made: one half is gone, or of another version."""
    try:
        store.storage.read(PAGE)
        return Report.model_validate_json(store.storage.read(REPORT))
    except (FileNotFoundError, ValidationError):
        return None


def write_report(store: ArtifactStore, report: Report) -> None:
    """Write `report.html`, then `report.json`."""
    store.storage.write(PAGE, render(store, report).encode())
    store.storage.write(REPORT, report.model_dump_json(indent=2).encode() + b"\n")


def render(store: ArtifactStore, report: Report) -> str:
    """The page. Everything is inline: it opens from disk, offline."""
    artifacts: dict[str, Artifact] = {}
    for ref in report.artifacts:
        kind, _, reference = ref.partition("/")
        artifacts[ref.rpartition("/")[0]] = store.resolve(kind, reference)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    base, text = artifacts["models/base"], artifacts["corpora/python-stdlib"]
    return environment.get_template("report.html.jinja").render(
        report=report,
        corpus=f"{text.counts['documents']:,} source files, {format_bytes(text.counts['bytes'])}",
        parameters=base.counts["parameters"],
        total=format_seconds(sum(report.seconds.values())),
        memory=format_bytes(report.peak_memory_bytes),
        charts=_charts(report, artifacts),
        samples=_samples(artifacts),
        stages=[
            {"label": label, "ref": ref, "time": format_seconds(seconds)}
            for (label, seconds), ref in zip(report.seconds.items(), report.artifacts, strict=True)
        ],
        next_steps=_next_steps(store.root),
    )


def _charts(report: Report, artifacts: dict[str, Artifact]) -> list[tuple[str, str]]:
    pretrain = _records(artifacts["models/base"])
    finetune = _records(artifacts[f"models/{CHAT}"])
    rlhf = _records(artifacts[f"models/{ALIGNED}"])
    bits = report.heldout_bits_per_byte
    return [
        ("Pre-training", line_chart([_series(pretrain, "loss", "training loss")], "step", "nats per token")),
        (
            "Held-out text",
            line_chart(
                [_series(pretrain, "heldout_bits_per_byte", "held-out", dots=True)], "step", "bits per byte"
            ),
        ),
        (
            "Fine-tuning",
            line_chart(
                [
                    _series(finetune, "loss", "training loss"),
                    _series(finetune, "heldout_loss", "held-out", dots=True),
                ],
                "step",
                "nats per token",
            ),
        ),
        ("PPO: reward", line_chart([_series(rlhf, "score", "reward model")], "iteration", "mean score")),
        (
            "PPO: distance",
            line_chart([_series(rlhf, "kl", "KL to fine-tuned")], "iteration", "nats a response"),
        ),
        (
            "Bits per byte",
            bar_chart([Bar("token unigram", bits.unigram), Bar("base model", bits.base)], "bits per byte"),
        ),
        (
            "Completions that parse",
            bar_chart(
                [_bar("fine-tuned", report.parse_rate_finetuned), _bar("aligned", report.parse_rate)], "share"
            ),
        ),
        (
            "Aligned against fine-tuned",
            bar_chart([_bar("win rate", report.win_rate)], "share", reference=0.5),
        ),
    ]


def _samples(artifacts: dict[str, Artifact]) -> list[dict[str, Any]]:
    (evaluation,) = (each for name, each in artifacts.items() if name.startswith("evaluations/"))
    lines = evaluation.read("samples.jsonl").decode().splitlines()[:_SAMPLES]
    return [
        {
            "prompt": sample["prompt"],
            "sides": [
                _side("fine-tuned", sample["baseline"]),
                _side("aligned", sample["model"]),
            ],
        }
        for sample in map(json.loads, lines)
    ]


def _side(label: str, answer: dict[str, Any]) -> dict[str, str]:
    parses = "parses" if answer["parses"] else "does not parse"
    finished = "" if answer["finished"] else ", cut off"
    verdict = f"grade {answer['grade']:.2f}, {parses}{finished}"
    return {"label": label, "verdict": verdict, "text": answer["response"]}


def _next_steps(root: str) -> list[tuple[str, str]]:
    manta, option = invocation(), f"--root {shlex.quote(root)}"
    return [
        (f"{manta} serve {option} --model {ALIGNED}", "serve the aligned model with the OpenAI API"),
        (f"{manta} chat", "talk to it, in a second terminal"),
        (f"{manta} ls {option}", "all artifacts, with size and time"),
        (f"{manta} show models/{ALIGNED} {option}", "what it was made from, back to the text"),
        (f"{manta} verify {option}", "check every byte against the manifests"),
        (f"{manta} corpus --paths YOUR/FILES --name mine", "begin with your own data"),
    ]


def _records(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.folder.read("metrics.jsonl").decode().splitlines()]


def _series(records: list[dict[str, Any]], field: str, label: str, dots: bool = False) -> Series:
    points = [(record["step"], record[field]) for record in records if record.get(field) is not None]
    return Series(label, [x for x, _ in points], [y for _, y in points], dots)


def _bar(label: str, rate: Rate) -> Bar:
    return Bar(label, rate.value, rate.low, rate.high)


def _rate(values: dict[str, Any]) -> Rate:
    return Rate(**{name: values[name] for name in ("value", "low", "high", "n")})


def _label(step: Step) -> str:
    """`corpus` runs twice; the second says of what."""
    return "corpus-functions" if step.config.name == "python-functions" else step.stage
