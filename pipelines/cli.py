"""The ``manta`` command: one subcommand a stage, and a few that look at artifacts and at the machine.

Importing this module, ``manta --help`` and ``manta STAGE --help`` load neither torch nor Ray.
"""

import difflib
import importlib
import sys
import time
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


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
TOOLS = {
    "chat": Command("pipelines.chat", "ChatConfig", "Talk to a served model", uses_ray=False),
    "ls": Command("pipelines.inspect.ls", "LsConfig", "List artifacts", uses_ray=False),
    "show": Command("pipelines.inspect.show", "ShowConfig", "One artifact: lineage, counts", uses_ray=False),
    "verify": Command("pipelines.inspect.verify", "VerifyConfig", "Check every byte", uses_ray=False),
    "doctor": Command(
        "pipelines.inspect.doctor", "DoctorConfig", "What this machine can run", uses_ray=False
    ),
}
COMMANDS = STAGES | TOOLS


def main() -> None:
    """Entry point of the ``manta`` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; a user's mistake is one line and exit code 2."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(_version())
        return 0
    try:
        return _run_command(arguments[0], arguments[1:])
    except UserError as error:
        print(f"manta: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("manta: interrupted; the same command continues from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def overview() -> str:
    """The help of ``manta`` itself."""
    lines = [
        "usage: manta COMMAND [OPTIONS]",
        "",
        "From raw text to an aligned language model behind an API.",
    ]
    for title, commands in (("Stages, in order", STAGES), ("Tools", TOOLS)):
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
    if not command.uses_ray:
        module, config_module = _tool_modules(command)
        config = parse(getattr(config_module, command.config), name, arguments)
        return 0 if config is None else int(module.run(config) or 0)
    config_class = getattr(importlib.import_module(f"{command.package}.config"), command.config)
    config = parse(config_class, name, arguments)
    if config is not None:
        run_stage(importlib.import_module(f"{command.package}.stage"), config)
    return 0


def _tool_modules(command: Command) -> tuple[Any, Any]:
    """The program and the configuration of a tool: one module, or a package with ``config`` and ``stage``."""
    if command.package.startswith("pipelines.inspect."):
        module = importlib.import_module(command.package)
        return module, module
    return (
        importlib.import_module(f"{command.package}.stage"),
        importlib.import_module(f"{command.package}.config"),
    )


def run_stage(stage: Any, config: Any) -> None:
    """Check a stage's inputs, connect to Ray, and run it. Mistakes surface before Ray starts."""
    from cluster.artifacts.manifest import Artifact
    from cluster.artifacts.store import ArtifactStore
    from cluster.connect import connect
    from pipelines.outcome import outcome
    from pipelines.progress import console

    began = time.time()
    stage.resolve_inputs(config, ArtifactStore(config.root))
    with connect(config.address, announce=console.print) as cluster:
        result = stage.run(config, cluster)
    if isinstance(result, Artifact):
        console.print(outcome(result, began))


def _version() -> str:
    import importlib.metadata

    return f"manta {importlib.metadata.version('manta-llm')}"


if __name__ == "__main__":
    main()
