"""Fixtures that tests of several folders use, and how threads wait in all of them."""

import os

from cluster.compute_threads import brief_waits
from tests.object_storage import object_storage

__all__ = ["object_storage"]

os.environ.update(brief_waits())  # Before torch is imported: tests share the cores with each other.
