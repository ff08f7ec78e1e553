"""The Serve application for a config file: what `import_path: pipelines.serve.app:build` names.

`manta serve` needs none of this. It is for clusters whose Serve is told what to run by a file: KubeRay's
RayService, `serve deploy`. Serve turns the file's `args` into the argument of `build` and calls it on the
cluster, so the root must be one that every node can read.
"""

import os

from ray.serve import Application

from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from cluster.placement import Share
from pipelines.serve.config import API_KEY_VARIABLE, ServedModel
from pipelines.serve.deployment import application
from pipelines.serve.stage import find_model


def build(args: ServedModel) -> Application:
    """The application that serves `args.model`.

    There is no cluster to divide: `args.threads` must be said, and replicas have GPUs if `args.gpus` says so.

    Raises:
        UserError: no such model, one that cannot be served, no threads, or no key in MANTA_API_KEY. Whoever
            wrote the file decided where Serve listens, so the key is wanted always.
    """
    if args.threads is None:
        raise UserError("args.threads is missing: give the CPUs of a replica, at most those of one node")
    if not os.environ.get(API_KEY_VARIABLE):
        raise UserError(
            f"{API_KEY_VARIABLE} is not set on the node that builds the application: set it on all"
        )
    share = Share(args.threads, args.gpus or 0)
    return application(args, find_model(args, ArtifactStore(args.root)), share)
