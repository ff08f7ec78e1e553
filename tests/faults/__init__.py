"""Faults, and what they must not change. `python -m tests.faults` prints a table of all of them."""
