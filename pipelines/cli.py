"""The ``manta`` command: one subcommand a stage, and a few that look at artifacts and at the machine.

Importing this module, ``manta --help`` and ``manta STAGE --help`` load neither torch nor Ray.
"""

import difflib
import importlib
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from cluster.errors import UserError
from pipelines.interruption import Interrupted, watched_signals

EXIT_USER_ERROR = 2
_SIGNALLED = 128
"""A shell's exit code of a process that a signal ended is this and the signal's number."""


@dataclass(frozen=True)
class Command:
    """A subcommand: the module of its configuration and program, and one line of help."""

    package: str
    config: str
    help: str
    uses_ray: bool = True


STAGES = {
    "quickstart": Command("pipelines.quickstart", "QuickstartConfig", "The whole chain on this machine"),
    "corpus": Command("pipelines.corpus", "CorpusConfig", "Clean text or conversations into Parquet"),
    "tokenizer": Command("pipelines.tokenizer", "TokenizerConfig", "Train a SentencePiece tokenizer"),
    "tokens": Command("pipelines.tokens", "TokensConfig", "Tokenize a corpus into shards"),
    "pretrain": Command("pipelines.pretrain", "PretrainConfig", "Train a base model on tokens"),
    "finetune": Command("pipelines.finetune", "FinetuneConfig", "Fine-tune it on conversations"),
    "preferences": Command("pipelines.preferences", "PreferencesConfig", "Sample and rank its responses"),
    "reward": Command("pipelines.reward", "RewardConfig", "Train a reward model on rankings"),
    "rlhf": Command("pipelines.rlhf", "RLHFConfig", "Align the model with PPO"),
    "evaluate": Command("pipelines.evaluate", "EvaluateConfig", "Bits per byte and win rates"),
    "serve": Command("pipelines.serve", "ServeConfig", "Serve a model with the OpenAI API"),
}
JOBS = {
    "run": Command("pipelines.run", "RunConfig", "Several stages, listed in a file", uses_ray=False),
    "up": Command("pipelines.jobs.up", "UpConfig", "Start a Ray cluster on this machine", uses_ray=False),
    "down": Command("pipelines.jobs.down", "DownConfig", "Stop it", uses_ray=False),
    "submit": Command("pipelines.jobs.submit", "SubmitConfig", "Run a stage as a job", uses_ray=False),
    "jobs": Command("pipelines.jobs.jobs", "JobsConfig", "List a cluster's jobs", uses_ray=False),
    "logs": Command("pipelines.jobs.logs", "LogsConfig", "What a job printed", uses_ray=False),
    "stop": Command("pipelines.jobs.stop", "StopConfig", "End a job", uses_ray=False),
}
TOOLS = {
    "import": Command(
        "pipelines.import_model", "ImportConfig", "Make a model of a Hugging Face directory", False
    ),
    "export": Command("pipelines.export_model", "ExportConfig", "Write a model as one", False),
    "chat": Command("pipelines.chat", "ChatConfig", "Talk to a served model", uses_ray=False),
    "models": Command("pipelines.inspect.models", "ModelsConfig", "Model presets", uses_ray=False),
    "ls": Command("pipelines.inspect.ls", "LsConfig", "List artifacts", uses_ray=False),
    "show": Command("pipelines.inspect.show", "ShowConfig", "One artifact: lineage, counts", uses_ray=False),
    "diff": Command("pipelines.inspect.diff", "DiffConfig", "Where two artifacts differ", uses_ray=False),
    "profile": Command(
        "pipelines.inspect.profile", "ProfileConfig", "Trace steps of a run under way", uses_ray=False
    ),
    "rm": Command("pipelines.inspect.rm", "RmConfig", "Remove artifacts", uses_ray=False),
    "gc": Command("pipelines.inspect.gc", "GcConfig", "Remove what finished work left", uses_ray=False),
    "verify": Command("pipelines.inspect.verify", "VerifyConfig", "Check every byte", uses_ray=False),
    "doctor": Command(
        "pipelines.inspect.doctor", "DoctorConfig", "What this machine can run", uses_ray=False
    ),
}
COMMANDS = STAGES | JOBS | TOOLS


def main() -> None:
    """Entry point of the ``manta`` command."""
    leave(run(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """End the process with an exit code."""
    if code > _SIGNALLED:
        # Everything of ours is closed. The interpreter's own end is Ray's too, which takes time or aborts.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    A user's mistake is one line and exit code 2; Ctrl-C and SIGTERM are one line and 130 and 143.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(_version())
        return 0
    with watched_signals() as ended_by:
        try:
            code = _run_command(arguments[0], arguments[1:])
            sys.stdout.flush()
            return code
        except BaseException as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return _SIGNALLED + signal.SIGPIPE
            number = ended_by()
            if number is None and isinstance(error, KeyboardInterrupt):
                number = signal.SIGINT
            if number is not None:
                said = (
                    str(error) if isinstance(error, Interrupted) else "the same command continues from here"
                )
                print(f"manta: ended by {number.name}; {said}", file=sys.stderr)
                return _SIGNALLED + number
            if not isinstance(error, UserError):
                raise
            # One that was raised in an actor comes back in Ray's wrapping, whose text is a traceback.
            print(f"manta: error: {getattr(error, 'cause', error)}", file=sys.stderr)
            return EXIT_USER_ERROR


def _nobody_reads() -> bool:
    """Whether what is printed goes nowhere, as in `manta ls | head`; from then on it is thrown away."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # for a pipe whose other end is closed, which is always told
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def overview() -> str:
    """The help of ``manta`` itself."""
    lines = [
        "usage: manta COMMAND [OPTIONS]",
        "",
        "From raw text to an aligned language model behind an API.",
    ]
    for title, commands in (("Stages, in order", STAGES), ("Jobs and clusters", JOBS), ("Tools", TOOLS)):
        lines += ["", f"{title}:"]
        lines += [f"  {name:<12} {command.help}" for name, command in commands.items()]
    lines += [
        "",
        "`manta COMMAND --help` lists a command's options; `--config FILE.yaml` reads them from a file.",
    ]
    return "\n".join(lines)


def _run_command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `manta {nearest[0]}`?" if nearest else "see `manta --help`"
        raise UserError(f"no command {name!r}; {hint}")
    from pipelines.command_line import parse

    command = COMMANDS[name]
    if name == "submit":  # Its arguments hold those of another command.
        return int(importlib.import_module(command.package).main(arguments))
    config = parse(config_class(command), name, arguments)
    if not command.uses_ray:
        return 0 if config is None else int(_program(command).run(config) or 0)
    if config is not None:
        return run_stage(importlib.import_module(f"{command.package}.stage"), config)
    return 0


def config_class(command: Command) -> Any:
    """The class of a command's configuration."""
    place = command.package if _is_one_module(command) else f"{command.package}.config"
    return getattr(importlib.import_module(place), command.config)


def _program(command: Command) -> Any:
    return importlib.import_module(command.package if _is_one_module(command) else f"{command.package}.stage")


def _is_one_module(command: Command) -> bool:
    """Whether a command is one module; else it is a package with ``config`` and ``stage``."""
    return command.package.startswith(("pipelines.inspect.", "pipelines.jobs."))


def run_stage(stage: Any, config: Any) -> int:
    """Check a stage's inputs, connect to Ray, and run it. Mistakes surface before Ray starts.

    Returns 0, or 3 if units of work failed and were left out, as the user allowed.
    """
    from cluster.artifacts.manifest import Artifact
    from cluster.artifacts.store import ArtifactStore
    from cluster.connect import connect
    from pipelines.jobs.places import places_on_disk
    from pipelines.outcome import exit_code, outcome
    from pipelines.progress import console

    began = time.time()
    stage.resolve_inputs(config, ArtifactStore(config.root))
    with connect(config.address, console.print, places_on_disk(config)) as cluster:
        result = stage.run(config, cluster)
    if not isinstance(result, Artifact):
        return 0
    console.print(outcome(result, began))
    return exit_code(result)


def _version() -> str:
    import importlib.metadata

    return f"manta {importlib.metadata.version('manta-llm')}"


if __name__ == "__main__":
    main()
