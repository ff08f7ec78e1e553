"""Prometheus' configuration and alerts: valid, about metrics that exist, and alerting when they should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.cluster.promql import check

FOLDER = Path(__file__).resolve().parents[3] / "infra" / "prometheus"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian and Ubuntu: package prometheus)",
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=FOLDER, check=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_are_about_metrics_that_exist(rule: dict) -> None:
    found = check(rule["expr"])
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= found.labels


def test_the_configuration_reads_the_alerts_and_rays_list_of_nodes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


@needs_promtool
def test_prometheus_accepts_its_configuration_and_the_alerts() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml")):
        answer = promtool(*arguments)
        assert answer.returncode == 0, answer.stderr


@needs_promtool
def test_alerts_come_and_go_when_they_should() -> None:
    answer = promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yml")))
    assert answer.returncode == 0, answer.stdout + answer.stderr
