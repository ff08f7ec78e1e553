"""One run of a stage in which something is killed at a random moment, and what came of it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from tests.faults.driver import ray_folder
from tests.faults.steps import kind_of, steps

Victim = Literal["worker", "one of two workers", "driver", "node"]

_WORKERS = ("ray::MapWorker", "ray::RayTrainWorker", "ray::EngineActor", "ray::Learner", "ray::Scorer")
_LONGEST_RUN_SECONDS = 300.0
MOST_RUNS = 4


@dataclass
class Outcome:
    """How a case ended."""

    runs: int
    """Of the command, until it succeeded."""
    same: bool
    """Whether the artifact equals the undisturbed one in every byte of its manifest."""
    refused: bool = False
    """Whether there is none, and one clear error instead."""
    problems: list[str] = field(default_factory=list)
    missed: bool = False
    """Whether the run had ended, or had no such process, when it was to be killed."""


@dataclass(frozen=True)
class Reference:
    """All steps finished, and how long each works."""

    root: Path
    seconds: dict[int, float]

    def artifact(self, index: int) -> Artifact:
        """What the step made."""
        step = steps(str(self.root))[index]
        kind = kind_of(step)
        assert kind is not None
        return ArtifactStore(self.root).resolve(kind, step.config.name)


def kill_once(
    reference: Reference, index: int, victim: Victim, seed: int, attempt: int, scratch: Path
) -> Outcome:
    """Run a step on a copy of the reference that lacks its artifact; kill `victim` once, at a random moment;
    then run the same command until it succeeds. Two workers round differently from one: their result is
    compared with that of two that were left alone.

    attempt: how often a run had ended before the moment that was drawn; each time it is drawn earlier.
    """
    choice = random.Random(f"{index}/{victim}/{seed}/{attempt}")
    expected = reference.artifact(index)
    root = link_tree(reference.root, scratch / f"{index}-{victim.replace(' ', '-')}-{seed}-{attempt}")
    draft = root / expected.kind / expected.name / expected.version
    shutil.rmtree(draft)
    flags = ["--two-workers"] if victim == "one of two workers" else []
    problems: list[str] = []
    if flags:
        alone = start(root, index, *flags)
        said = finish(alone)
        if alone.returncode:
            return Outcome(1, same=False, problems=[f"left alone: {said.strip()[-2000:]}"])
        result = _result(draft)
        shutil.rmtree(draft)
    else:
        result = _result(reference.root / expected.ref)
    delay = choice.uniform(0, reference.seconds[index]) / 2**attempt
    killed = False
    for run in range(1, MOST_RUNS + 1):
        nodes = ["--nodes"] if victim == "node" and run == 1 else []
        process = start(root, index, *flags, *nodes)
        try:
            if run == 1:
                wait_for(draft, process)
                killed = _kill(victim, process, choice, delay)
            _, errors = process.communicate(timeout=_LONGEST_RUN_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append("it hung")
            errors = ""
        finally:
            end(process)
        if "Traceback" in errors:
            problems.append(f"a traceback: {errors.strip().splitlines()[-1]}")
        if process.returncode == 0:
            break
        if victim != "driver" and run == 1 and "manta: error:" not in errors:
            problems.append(f"exit code {process.returncode} without an error")
    made = ArtifactStore(root).resolve(expected.kind, expected.name)
    problems += verify(made)
    manifest, log = _result(draft)
    same = manifest == result[0]
    if log != result[1]:
        problems.append("metrics.jsonl differs")
    shutil.rmtree(root)
    return Outcome(run, same, problems=problems, missed=not killed)


def _result(artifact: Path) -> tuple[bytes, bytes]:
    """Manifest, and the log of a training; both must be the same."""
    log = artifact / "metrics.jsonl"
    return (artifact / "manifest.json").read_bytes(), log.read_bytes() if log.exists() else b""


def link_tree(source: Path, target: Path) -> Path:
    """A copy that shares the files: artifacts are replaced, never written to."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def start(
    root: Path | str, index: int, *flags: str, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """The driver of a step, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.driver", str(root), str(index), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(draft: Path, process: "subprocess.Popen[str]") -> None:
    """Until the folder is there, or the process has ended."""
    deadline = time.monotonic() + _LONGEST_RUN_SECONDS
    while not draft.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def wait_for_workers(driver: "subprocess.Popen[str]", kind: Victim = "worker") -> None:
    """Until the run has processes of a kind, or has ended."""
    deadline = time.monotonic() + _LONGEST_RUN_SECONDS
    while not _processes(kind, driver) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _kill(victim: Victim, driver: "subprocess.Popen[str]", choice: random.Random, delay: float) -> bool:
    """Kill one process after `delay` seconds; if it comes up later (on a busy machine workers start late),
    so long after that. False if the run ended before.
    """
    time.sleep(delay)
    if not _processes(victim, driver):
        wait_for_workers(driver, victim)
        time.sleep(delay)
    return kill_now(victim, driver, choice)


def kill_now(victim: Victim, driver: "subprocess.Popen[str]", choice: random.Random) -> bool:
    """Kill one such process. False if the run has ended, or has none."""
    found = _processes(victim, driver)
    if driver.poll() is not None or not found:
        return False
    try:
        os.kill(choice.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _processes(victim: Victim, driver: "subprocess.Popen[str]") -> list[int]:
    """Process ids of what is to be killed: the driver, two nodes that are not the head, or workers."""
    if victim == "driver":
        return [driver.pid]
    found = []
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in below:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        is_node = "raylet/raylet" in command and "--head" not in command
        if is_node if victim == "node" else command.startswith(_WORKERS):
            found.append(process.pid)
    return sorted(found)[-2:] if victim == "node" else sorted(found)


def finish(process: "subprocess.Popen[str]", seconds: float = _LONGEST_RUN_SECONDS) -> str:
    """Wait for a driver; what it wrote to stderr, or that it hung. Nothing of it is left behind."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        errors = "it hung"
    finally:
        end(process)
    return errors


def end(process: "subprocess.Popen[str]") -> None:
    """Leave nothing of the run behind: its processes are of one group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(ray_folder(process.pid), ignore_errors=True)
