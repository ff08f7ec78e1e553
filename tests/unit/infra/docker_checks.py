"""What can be wrong with a Dockerfile and be found without building it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BESIDE_PYTHON = Path(sys.executable).with_name("hadolint")
HADOLINT = str(_BESIDE_PYTHON) if _BESIDE_PYTHON.exists() else shutil.which("hadolint") or "hadolint"


@dataclass
class Stage:
    """One FROM and the instructions under it."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def problems(text: str, folder: Path) -> list[str]:
    """One line a problem. `folder` is what the image is built from."""
    found = list(_hadolint(text))
    if any("DL1000" in each for each in found):
        return found  # not a Dockerfile
    stages = parse(text)
    return [*found, *_bases(stages), *_users(stages), *_secrets(stages), *_copies(stages, folder)]


def parse(text: str) -> dict[str, Stage]:
    """The stages by name."""
    stages: dict[str, Stage] = {}
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base)
        elif word:
            list(stages.values())[-1].instructions.append((word, rest.strip()))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and what it is built on, nearest first."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def _hadolint(text: str) -> Iterator[str]:
    answer = subprocess.run(
        [HADOLINT, "--no-color", "--format", "json", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for finding in json.loads(answer.stdout):
        yield f"{finding['line']}: {finding['code']}: {finding['message']}"


def _bases(stages: dict[str, Stage]) -> Iterator[str]:
    pinned = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")
    for stage in stages.values():
        if stage.base not in stages and not pinned.fullmatch(stage.base):
            yield f"{stage.base} is not pinned to a version and a digest"


def _users(stages: dict[str, Stage]) -> Iterator[str]:
    """Kubernetes' runAsNonRoot wants a number: it cannot look into the image for a name."""
    for name in targets(stages):
        instructions = [each for stage in lineage(stages, name) for each in stage.instructions]
        users = [rest for word, rest in instructions if word == "USER"]
        if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0]):
            yield f"{name} runs as {users[0] if users else 'root'}"


def _secrets(stages: dict[str, Stage]) -> Iterator[str]:
    for stage in stages.values():
        for word, rest in stage.instructions:
            for name in re.findall(r"(\w+)=", rest) if word in ("ARG", "ENV") else []:
                if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name):
                    yield f"{stage.name}: {word} {name} would be in the image"


def _copies(stages: dict[str, Stage], folder: Path) -> Iterator[str]:
    for stage in stages.values():
        for word, rest in stage.instructions:
            *sources, _ = rest.split()
            if word == "COPY" and not rest.startswith("--from="):
                for source in sources:
                    if not (folder / source).exists():
                        yield f"{stage.name}: there is no {source} to copy"


def targets(stages: dict[str, Stage]) -> list[str]:
    """The stages that nothing is made from: the images."""
    used = {stage.base for stage in stages.values()}
    for stage in stages.values():
        used |= set(re.findall(r"--from=(\S+)", " ".join(rest for _, rest in stage.instructions)))
    return [name for name in stages if name not in used]
