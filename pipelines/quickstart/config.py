"""Configuration of the quickstart."""

from typing import Literal

from pipelines.stage_config import Frozen


class QuickstartConfig(Frozen):
    """Run the whole chain on this machine: Python's standard library in, an aligned model and a report out.

    Nothing is downloaded. Finished stages are kept: run it again after anything, and it goes on.
    """

    root: str = "runs/quickstart"
    """Where artifacts and the report go."""
    address: str | None = None
    """Ray cluster to join, HOST:PORT; by default one that runs on this machine, else one is started."""
    scale: Literal["full", "smoke"] = "full"
    """`full`: 1.1 million parameters, a quarter of an hour on 2 quiet cores. `smoke`: does it run at all? A
    couple of minutes, and numbers that mean nothing.
    """
    source: str = "python-stdlib"
    """Python source files to learn from: the running Python's standard library, or a folder."""
