"""The whole chain in one command, disturbed: on object storage with its driver killed, and as a job that is
stopped. Every manifest must equal the undisturbed run's on a local disk.

    python -m tests.faults.whole_chain ROOT [--scale full]     against a finished quickstart under ROOT
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from tests.faults.killing import Outcome, end
from tests.faults.steps import NAMES_OF_FAMILIES
from tests.object_storage import BUCKET, serve

KILLS = 3
_ROOT = Path(__file__).resolve().parents[2]
_MOST_SECONDS = 3600.0


def killed_on_object_storage(undisturbed: Path, scale: str, seed: int, scratch: Path) -> Outcome:
    """The quickstart in a bucket; its driver is killed three times at random moments, then left alone."""
    choice = random.Random(f"chain/{seed}")
    expected = _manifests(undisturbed)
    whole = sum(float(artifact.run()["seconds"]) for artifact in _artifacts(undisturbed))
    folder = Path(tempfile.mkdtemp(dir=scratch))
    problems: list[str] = []
    for server in serve(folder):
        prefix = uuid.uuid4().hex
        environment = os.environ | server.environment() | {"MANTA_CACHE": str(folder / "cache")}
        command = ["quickstart", "--scale", scale, "--root", f"s3://{BUCKET}/{prefix}"]
        for run in range(1, KILLS + 2):
            process = _start(command, environment)
            try:
                if run <= KILLS:
                    # Shares that add up to less than the whole, so that there is always something to kill.
                    process.communicate(timeout=whole * choice.uniform(0.05, 0.3))
                    problems.append(f"run {run} ended before it was killed")
                else:
                    output, _ = process.communicate(timeout=_MOST_SECONDS)
                    problems += [] if process.returncode == 0 else [output.strip()[-300:]]
                    problems += ["a traceback"] if "Traceback" in output else []
            except subprocess.TimeoutExpired:
                process.kill()
            finally:
                end(process)

        def read(ref: str, server=server, prefix: str = prefix) -> bytes:  # type: ignore[no-untyped-def]
            found: bytes = server.client.get_object(Bucket=BUCKET, Key=f"{prefix}/{ref}/manifest.json")[
                "Body"
            ].read()
            return found

        same = not problems and all(read(ref) == manifest for ref, manifest in expected.items())
    return Outcome(KILLS + 1, same=same, problems=problems)


def stopped_as_a_job(undisturbed: Path, scale: str, seed: int, scratch: Path) -> Outcome:
    """The quickstart as a job on a cluster that wants a token: stopped at some moment, submitted again."""
    choice = random.Random(f"job/{seed}")
    expected = _manifests(undisturbed)
    whole = sum(float(artifact.run()["seconds"]) for artifact in _artifacts(undisturbed))
    problems: list[str] = []
    # A short name: Ray's sockets are below it.
    with tempfile.TemporaryDirectory(prefix="manta-", ignore_cleanup_errors=True) as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"HOME": home, "RAY_TMPDIR": home, "PYTHONPATH": str(_ROOT)}

        def manta(*arguments: str) -> str:
            command = [sys.executable, "-m", "pipelines.cli", *arguments]
            answer = subprocess.run(
                command,
                env=environment,
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_MOST_SECONDS,
            )
            if answer.returncode:
                problems.append(f"manta {arguments[0]}: {answer.stdout.strip()[-300:]}")
            return answer.stdout

        chain = ("quickstart", "--scale", scale, "--root", "chain")
        try:
            manta("up", "--port=0", "--dashboard-port=0", "--metrics-port=0", "--cpus=2")
            submitted = re.search(r"submitted (\S+) to", manta("submit", "--detach", *chain))
            time.sleep(whole * choice.uniform(0.2, 0.8))
            said = manta("stop", submitted[1] if submitted else "?")
            problems += [] if "submit the same again" in said else [f"it was not stopped: {said.strip()}"]
            manta("submit", *chain)
        finally:
            manta("down")
        made = Path(home, "chain")
        same = not problems and all(
            (made / ref / "manifest.json").read_bytes() == manifest for ref, manifest in expected.items()
        )
    return Outcome(2, same=same, problems=problems)


CASES: dict[str, Callable[[Path, str, int, Path], Outcome]] = {
    f"on S3, driver killed {KILLS} times": killed_on_object_storage,
    "as a job, stopped and submitted again": stopped_as_a_job,
}


def _manifests(root: Path) -> dict[str, bytes]:
    return {each.ref: each.folder.read("manifest.json") for each in _artifacts(root)}


def _start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.faults.whole_chain", description=__doc__)
    options.add_argument("root", type=Path, help="holds one finished quickstart and nothing else")
    options.add_argument("--scale", default="smoke")
    options.add_argument("--case", choices=sorted(CASES), action="append", help="only this one")
    chosen = options.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="manta-chain-") as scratch:
        for name, case in CASES.items():
            if chosen.case and name not in chosen.case:
                continue
            began = time.monotonic()
            outcome = case(chosen.root, chosen.scale, 0, Path(scratch))
            good &= outcome.same
            said = "the same" if outcome.same else "; ".join(outcome.problems or ["it came out different"])
            print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())


def _artifacts(root: Path | str) -> list[Artifact]:
    """Those of the chain."""
    return [each for each in ArtifactStore(root).artifacts() if each.name not in NAMES_OF_FAMILIES]
