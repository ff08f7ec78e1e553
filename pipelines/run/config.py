"""Configuration of `manta run`."""

from typing import Annotated

import tyro

from pipelines.stage_config import Frozen


class RunConfig(Frozen):
    """Run the stages that a YAML file lists, each after those that make what it reads.

    The file is checked as a whole before anything starts. Finished stages are kept: run it again after
    anything, and it goes on.
    """

    pipeline: Annotated[str, tyro.conf.Positional]
    """The file: `stages`, a list of stages with their options, and `root` if --root is not given."""
    root: str | None = None
    """Where artifacts live; by default what the file says, else runs/default."""
    address: str | None = None
    """Ray cluster to join, HOST:PORT; by default one that runs on this machine, else one is started."""
    dry_run: bool = False
    """Print the plan: each stage, whether what it makes exists, and what it reads."""
