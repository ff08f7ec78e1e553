"""What has run well, on disk, so that a table of hours can be made in parts."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.faults.killing import Outcome

Key = tuple[str, str, int]
"""Stage, fault and seed of a run."""


class Results:
    """Outcomes by key. Those that are neither lost nor different, and struck, are not run again."""

    def __init__(self, file: Path | None):
        self._file, self._lock = file, threading.Lock()
        self._known: dict[Key, Outcome] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                stage, fault, seed, outcome = json.loads(line)
                self._known[stage, fault, seed] = Outcome(**outcome)

    def known_or_new(self, key: Key, run: Callable[[], Outcome]) -> Outcome:
        """The outcome that is written down, or that of a run, which is written down if it is good."""
        if key in self._known:
            return self._known[key]
        outcome = run()
        is_good = (outcome.same or outcome.refused) and not outcome.problems and not outcome.missed
        if is_good and self._file is not None:
            with self._lock, self._file.open("a") as stream:
                stream.write(json.dumps([*key, asdict(outcome)]) + "\n")
        return outcome
