"""A job that needs variables of the environment: ``python -m pipelines.jobs.entry NAME,NAME STAGE …``

Only their names travel with a job. If one is missing on the cluster, that is said before any work is done.
"""

import os
import sys

from pipelines import cli


def main(arguments: list[str]) -> int:
    """Run the command line after the names, if they are all set; returns its exit code."""
    needed, *command = arguments
    missing = [name for name in needed.split(",") if not os.environ.get(name)]
    if missing:
        print(
            f"manta: error: the job needs {', '.join(missing)}, which is not in the environment of the "
            "cluster's nodes: set it where the cluster is started",
            file=sys.stderr,
        )
        return cli.EXIT_USER_ERROR
    return cli.run(command)


if __name__ == "__main__":
    cli.leave(main(sys.argv[1:]))
