"""``manta submit STAGE ...``: the command that would run here, as a job on a cluster.

The command line is read here, so that a mistake shows at once. What travels is the working tree and the
configuration as it came out, with every place made absolute; the job joins the cluster that it runs on.
"""

import functools
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from pydantic import Field

import pipelines
from cluster.artifacts.redact import redact
from cluster.dashboard import find_dashboard
from cluster.errors import UserError
from cluster.job_package import Package, pack, pinned_requirements
from cluster.jobs import Job, Jobs
from pipelines.command_line import parse
from pipelines.inspect.format import format_bytes, format_seconds
from pipelines.interruption import Interrupted
from pipelines.jobs.places import Move, move_place, move_places
from pipelines.progress import console
from pipelines.run.read import as_yaml, read_pipeline
from pipelines.run.signatures import makes
from pipelines.stage_config import Frozen

_JOB_FILE = "manta-job.yaml"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SubmitConfig(Frozen):
    """Run `manta STAGE ...` or `manta run FILE` as a job: manta submit [OPTIONS] STAGE [ITS OPTIONS].

    Prints what the job prints and ends with its exit code. Ctrl-C leaves the job running. A job that was
    stopped continues when the same is submitted again.
    """

    address: str | None = None
    """The cluster: http://HOST:8265 (its dashboard) or HOST:PORT; by default the one on this machine."""
    detach: bool = False
    """Return when the job is submitted."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name of an environment variable that the job needs. Its value is never sent: it must be set on the
    cluster's nodes, and the job says so if it is not.
    """
    pip: bool = False
    """Let the cluster install the packages that Manta needs, at the versions installed here, where it lacks
    them.
    """
    driver_cpus: float = Field(0, ge=0)
    """CPUs to reserve for the command itself; with 0 it runs on the head."""


@dataclass(frozen=True)
class _Command:
    """What the job runs."""

    name: str
    makes: str
    root: str
    file: dict[str, Any]
    """Its configuration, which travels as `manta-job.yaml`."""
    arguments: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Submit, and follow the job unless asked not to; returns the exit code of `manta submit`."""
    own, command = split(arguments)
    config = parse(SubmitConfig, "submit", own)
    if config is None:
        return 0
    if not command:
        raise UserError("submit what? manta submit [OPTIONS] STAGE [ITS OPTIONS]; see `manta submit --help`")
    _check_names(config.env)
    dashboard = functools.cache(lambda: find_dashboard(config.address))  # Asked for after the command line.
    job_command = _read(command, lambda flag, place: move_place(flag, place, dashboard))
    if job_command is None:
        return 0
    jobs = Jobs(dashboard())
    content = yaml.safe_dump(job_command.file, sort_keys=False, allow_unicode=True).encode()
    package = pack(Path(pipelines.__file__).resolve().parents[1], {_JOB_FILE: content})
    _say_what_travels(package)
    job = jobs.submit(
        _entrypoint(job_command, config.env),
        package,
        name=job_command.name,
        metadata=_metadata(job_command, config.env, package),
        requirements=pinned_requirements() if config.pip else [],
        cpus=config.driver_cpus,
    )
    console.print(f"submitted {job} to {jobs.url}")
    if config.detach:
        console.print(f"`manta logs -f {job}` shows what it prints, `manta stop {job}` ends it")
        return 0
    return _follow(jobs, job)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `manta submit` and, from the stage's name on, the command that it submits."""
    switches = {f"--{name}" for name, field in SubmitConfig.model_fields.items() if field.annotation is bool}
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        option = arguments[position]
        takes_value = "=" not in option and option not in switches | {"-h", "--help", "--print-config"}
        position += 2 if takes_value else 1
    return arguments[:position], arguments[position:]


def _read(command: list[str], move: Move) -> _Command | None:
    """Parse the command that the job runs; None if it only asked for its own configuration."""
    from pipelines.cli import JOBS, STAGES, config_class

    name, arguments = command[0], command[1:]
    if name != "run" and name not in STAGES:
        what = "runs here alone" if name in JOBS else "is no stage"
        raise UserError(f"`{name}` {what}; stages are {', '.join(STAGES)}, and `run` for several of them")
    known = JOBS[name] if name == "run" else STAGES[name]
    config: Any = parse(config_class(known), name, arguments)
    if config is None:
        return None
    if config.address is not None:
        raise UserError(
            f"--address goes before the stage: manta submit --address {config.address} {name} ..."
        )
    if name == "run":
        pipeline = read_pipeline(config.pipeline, root=config.root)
        steps = tuple(replace(step, config=move_places(step.config, move)) for step in pipeline.steps)
        moved = replace(pipeline, root=move("--root", pipeline.root), steps=steps)
        options = ("--dry-run",) if config.dry_run else ()
        label = f"{len(steps)} stages"
        return _checked(_Command(name, label, moved.root, as_yaml(moved), (_JOB_FILE, *options)))
    config = move_places(config, move)
    file = config.model_dump(mode="json", exclude={"address"})
    return _checked(_Command(name, makes(name, config), config.root, file, ("--config", _JOB_FILE)))


def _checked(command: _Command) -> _Command:
    """A configuration may be read by everybody on the cluster, and so must not hold a credential."""
    if redact(command.file) != command.file:
        raise UserError(
            "the configuration holds a credential (in an address, user:password@), and everybody on the "
            "cluster can read what a job is told: set it in the environment of the cluster's nodes instead"
        )
    return command


def _check_names(names: tuple[str, ...]) -> None:
    if not all(_VARIABLE.fullmatch(name) for name in names):
        raise UserError(
            "--env takes the name of a variable alone, for everybody on the cluster can read what a job is "
            "told: set its value in the environment of the cluster's nodes"
        )


def _entrypoint(command: _Command, needed: tuple[str, ...]) -> str:
    module = ["pipelines.jobs.entry", ",".join(needed)] if needed else ["pipelines.cli"]
    return shlex.join(["python", "-m", *module, command.name, *command.arguments])


def _metadata(command: _Command, needed: tuple[str, ...], package: Package) -> dict[str, str]:
    """What `manta jobs` and Ray's dashboard show; values must be texts."""
    return {
        "command": command.name,
        "makes": command.makes,
        "root": command.root,
        "package": package.digest[:16],
        **({"needs": ",".join(needed)} if needed else {}),
    }


def _say_what_travels(package: Package) -> None:
    console.print(
        f"packed {len(package.names)} files, {format_bytes(len(package.content))} ({package.digest[:16]})"
    )


def _follow(jobs: Jobs, job: str) -> int:
    try:
        for text in jobs.follow(job):
            print(text, end="", flush=True)
        ended = jobs.find(job)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job} goes on: `manta logs -f {job}` follows it, `manta stop {job}` ends it"
        ) from None
    _report(ended)
    return ended.exit_code


def _report(job: Job) -> None:
    seconds = format_seconds((job.ended or job.started) - job.started)
    if job.status == "SUCCEEDED":
        console.print(f"{job.id}: succeeded in {seconds}")
    elif job.status == "STOPPED":
        print(f"manta: {job.id} was stopped; submit the same again and it continues", file=sys.stderr)
    else:
        print(
            f"manta: error: {job.id} failed after {seconds} (exit code {job.exit_code}): {job.last_error}",
            file=sys.stderr,
        )
