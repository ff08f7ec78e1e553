"""What a run tells about itself: metrics, samples and times on disk, a line on the terminal, and what
`run_metrics` makes of the metrics.
"""

from pathlib import Path
from typing import Any

from cluster.artifacts.lease import Ticket
from llm.alignment.rollouts import Rollout
from llm.tokenizer.tokenizer import Tokenizer
from llm.training.metrics_log import JsonLines, read_records
from pipelines.progress import StageProgress
from pipelines.run_metrics import RunMetrics

SAMPLES_SHOWN = 4
"""Responses of each iteration that are written down: numbers alone do not show how a policy cheats."""


class RunLog:
    """`metrics.jsonl` and `samples.jsonl` hold what a repeated run would repeat, `timing.jsonl` the clock
    readings.

    After a resume, what was written about later iterations is cut off; not by a process whose run another has
    taken over, which raises LeaseLost.
    """

    def __init__(
        self,
        folder: Path,
        iteration: int,
        tokenizer: Tokenizer,
        progress: StageProgress,
        run_metrics: RunMetrics,
        ticket: Ticket,
    ) -> None:
        ticket.check()
        self._ticket = ticket
        self._folder, self._tokenizer, self._progress = folder, tokenizer, progress
        self._run_metrics, self._engine_deaths = run_metrics, 0
        self._metrics = JsonLines(folder / "metrics.jsonl", iteration)
        self._samples = JsonLines(folder / "samples.jsonl", iteration)
        self._timing = JsonLines(folder / "timing.jsonl", iteration)

    def record(
        self,
        metrics: dict[str, Any],
        seconds: dict[str, float],
        engine_deaths: int,
        rollouts: list[Rollout],
        scores: list[float],
    ) -> None:
        """One iteration; `metrics` has its number under "step". Deaths are counted since the run was begun or
        continued.
        """
        step = metrics["step"]
        phases = {f"{phase}_seconds": spent for phase, spent in seconds.items()}
        timing = {"step": step, **phases, "engine_deaths": engine_deaths}
        self._metrics.append(metrics)
        self._timing.append(timing)
        self._run_metrics.log(metrics | timing)
        self._run_metrics.count("engine_deaths", engine_deaths - self._engine_deaths)
        self._engine_deaths = engine_deaths
        for rollout, score in list(zip(rollouts, scores, strict=True))[:SAMPLES_SHOWN]:
            self._samples.append(
                {
                    "step": step,
                    "prompt": self._tokenizer.decode(rollout.prompt_ids),
                    "response": self._tokenizer.decode(rollout.response_ids),
                    "finish_reason": rollout.finish_reason,
                    "score": score,
                }
            )
        self.flush()
        shown = ("score", "kl", "entropy", "length", "cut")
        self._progress.update(step, **{name: metrics[name] for name in shown})

    def flush(self, durable: bool = False) -> None:
        """Write what is pending; `durable` waits for the disk, as a checkpoint that follows must.

        Raises:
            LeaseLost: another process has taken the run over.
        """
        self._ticket.check()
        for log in (self._metrics, self._samples, self._timing):
            log.flush(durable)

    def counts(self) -> dict[str, Any]:
        """The first and the last iteration, for the manifest."""
        records = read_records(self._folder / "metrics.jsonl")
        shown = ("score", "kl", "entropy", "length", "cut")
        return {
            "iterations": len(records),
            "first": {name: records[0][name] for name in shown},
            "last": {name: records[-1][name] for name in shown},
        }
