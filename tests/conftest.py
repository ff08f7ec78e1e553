"""Fixtures that tests of several folders use."""

from tests.object_storage import object_storage

__all__ = ["object_storage"]
