"""The Dockerfile, by hadolint and by what we ask of the images beyond it."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.unit.infra.docker_checks import HADOLINT, lineage, parse, problems, targets
from tests.unit.infra.kubernetes_checks import REPOSITORY

DOCKERFILE = (REPOSITORY / "infra/docker/Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

pytestmark = pytest.mark.skipif(shutil.which(HADOLINT) is None, reason="hadolint is not installed")


def test_the_dockerfile_has_no_problem():
    assert problems(DOCKERFILE, REPOSITORY) == []
    assert targets(parse(DOCKERFILE)) == ["gpu", "cpu"], "the last is what a build without --target makes"


TYPOS = [
    ("COPY pyproject.toml", "COPYY pyproject.toml", "DL1000"),
    ("COPY pyproject.toml", "COPY pyproject.tml", "pyproject.tml"),
    ("--from=environment-gpu", "--from=enviroment-gpu", "DL3022"),
    ("@sha256:b189", "@sha256:b18", "is not pinned"),
    ("python:3.11.15-slim", "python:3-slim", "is not pinned"),
    ("pip install --no-cache-dir --requirement", "pip install --requirement", "DL3042"),
    ("apt-get install --yes", "apt-get install", "DL3014"),
    ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "DL3009"),
    ("USER 1000:1000", "USER root", "runs as root"),
    ("USER 1000:1000", "USER manta", "runs as manta"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=token", "RAY_AUTH_TOKEN"),
]


@pytest.mark.parametrize(("right", "wrong", "named"), TYPOS)
def test_a_planted_typo_is_caught(right, wrong, named):
    assert right in DOCKERFILE
    found = problems(DOCKERFILE.replace(right, wrong), REPOSITORY)
    assert any(named in problem for problem in found), found


def test_the_images_have_what_kuberay_runs_in_them():
    stages = parse(DOCKERFILE)
    for name in targets(stages):
        everything = " ".join(rest for stage in lineage(stages, name) for _, rest in stage.instructions)
        assert "wget" in everything, "the probe of a serving node"
        assert "PATH=/opt/manta/bin:$PATH" in everything, "`ray start` by name"
        assert "ENTRYPOINT" not in [word for stage in lineage(stages, name) for word, _ in stage.instructions]


def test_requirements_are_read_from_the_project(tmp_path):
    """The command in the Dockerfile, run as it stands there."""
    (command,) = re.findall(r'python -c "(import tomllib.*?)"', DOCKERFILE)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    answer = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert answer.stdout.splitlines() == PROJECT["project"]["dependencies"], answer.stderr
    assert [line for line in answer.stdout.splitlines() if line.startswith("torch")] == [
        requirement for requirement in PROJECT["project"]["dependencies"] if "torch" in requirement
    ], "what the CPU image takes from another index"


def test_the_build_sees_the_package_and_nothing_else():
    lines = (REPOSITORY / "infra/docker/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    packages = {
        pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert let_in == packages | {"pyproject.toml", PROJECT["project"]["readme"], "LICENSE"}
