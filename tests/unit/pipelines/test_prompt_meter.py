"""Answered prompts are counted under the run's own name, in Prometheus and for run.json."""

from contextlib import closing
from unittest import mock

import pytest

from cluster import prometheus
from pipelines import prompt_meter
from pipelines.prompt_meter import PromptMeter
from tests.unit.cluster.recorded_metrics import Recorded


def test_prompts_and_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch, prometheus)
    clock = mock.Mock(return_value=100.0)
    monkeypatch.setattr(prompt_meter, "time", mock.Mock(monotonic=clock))
    draft = mock.Mock(version="1f")
    draft.name = "ranked"
    with closing(PromptMeter("preferences", draft, 30)) as meter:
        assert recorded.total("manta_prompts_remaining") == 30
        assert meter.rate() == {}
        clock.return_value = 104.0
        meter.answered(10, 800)
        meter.answered(10, 1200)
        assert meter.rate() == {"tokens_per_s": 500.0}
        assert meter.summary() == {"answered": 20, "tokens": 2000, "seconds": 4.0, "tokens_per_s": 500.0}
    run = {"stage": "preferences", "run": "ranked-1f"}
    values = {"answered": 20, "tokens": 2000, "remaining": 10, "tokens_per_s": 500.0}
    for name, value in values.items():
        assert recorded.series(f"manta_prompts_{name}") == [(run, value)]
