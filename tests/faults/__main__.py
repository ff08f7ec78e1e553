"""Every fault against every stage, pre-training of every family among them, and a table of what came of it.

    python -m tests.faults [--quick] [--keep FOLDER] [--stage STAGE] [--fault TEXT] [--at-once N]

All of it takes hours. With --keep, what has run well is written down in FOLDER/results.jsonl, and the same
command goes on from there; delete the folder to begin anew. Exit code 1 if anything was lost or came out
different.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.compute_threads import brief_waits
from tests.faults.damage import (
    DAMAGES,
    damage_checkpoint,
    damage_draft,
    damage_input,
    damage_input_in_bucket,
    damage_manifest,
    fill_disk,
)
from tests.faults.killing import Outcome, Reference, Victim, kill_once
from tests.faults.object_storage_faults import faulty_storage
from tests.faults.reference import is_whole, prepare, reference
from tests.faults.resizing import shrink_and_grow
from tests.faults.results import Results
from tests.faults.steps import DISTURBED, PRETRAINED, TRAINED, index_of
from tests.faults.two_drivers import at_once_in_bucket, at_once_on_disk, paused
from tests.faults.whole_chain import CASES

_KILLS = {"pretrain": 20}
_KILLS_OF_OTHERS = 10
_ATTEMPTS = 4
"""At a run that has something to strike at the moment that was drawn."""
ANOTHER_ATTEMPT = 1000
"""Added to the seed of a case for each attempt after the first."""
_VICTIMS: tuple[Victim, ...] = ("worker", "driver", "node")

Damage = Callable[[Reference, int, str, int, Path], Outcome]
Disturbance = Callable[[Reference, int, int, Path], Outcome]
Case = tuple[str, str, Callable[[int], Outcome], int]
"""Stage, fault, the case by its seed, and how many of them."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    options.add_argument("--quick", action="store_true", help="one run a case")
    options.add_argument(
        "--keep", type=Path, help="keep the undisturbed run and the results here, or use these"
    )
    options.add_argument("--stage", action="append", help="only this stage")
    options.add_argument("--fault", default="", help="only faults with this in their name")
    options.add_argument("--at-once", type=int, default=1, help="runs that go on beside each other")
    chosen = options.parse_args()
    os.environ.update(brief_waits())
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="manta-faults-") as scratch,
        ThreadPoolExecutor(chosen.at_once) as at_once,
    ):
        root = (chosen.keep or Path(scratch)) / "reference"
        console.print("the undisturbed run …")
        undisturbed = reference(root) if is_whole(root) else prepare(root)
        table = Table("stage", "fault", "runs", "result")
        lost = 0
        results = Results(chosen.keep / "results.jsonl" if chosen.keep else None)

        def begin(stage: str, fault: str, seed: int, case: Callable[[int], Outcome]) -> Future[Outcome]:
            return at_once.submit(
                results.known_or_new, (stage, fault, seed), partial(until_it_strikes, case, seed)
            )

        running = [
            (stage, fault, [begin(stage, fault, seed, case) for seed in range(1 if chosen.quick else count)])
            for stage, fault, case, count in cases(undisturbed, Path(scratch))
            if (not chosen.stage or stage in chosen.stage) and chosen.fault in fault
        ]
        for stage, fault, runs in running:
            result, bad = summary([run.result() for run in runs])
            lost += bad
            table.add_row(stage, fault, str(len(runs)), result)
            console.print(f"{stage}, {fault}, {len(runs)} times: {result}", markup=False)
        console.print(table)
    console.print("none lost, none different" if not lost else f"{lost} lost or different")
    return 1 if lost else 0


def cases(undisturbed: Reference, scratch: Path) -> Iterator[Case]:
    """All of them, in the order of the chain."""
    for stage in DISTURBED:
        index = index_of(stage)
        kills = _KILLS.get(stage, _KILLS_OF_OTHERS)
        of_each = {
            victim: kills // len(_VICTIMS) + (place < kills % len(_VICTIMS))
            for place, victim in enumerate(_VICTIMS)
        }
        if stage == "pretrain":
            of_each["one of two workers"] = 2
        for victim, count in of_each.items():

            def kill(seed: int, index: int = index, victim: Victim = victim) -> Outcome:
                attempt, seed = divmod(seed, ANOTHER_ATTEMPT)
                return kill_once(undisturbed, index, victim, seed, attempt, scratch)

            yield stage, f"{victim} killed", kill, count
    for stage in DISTURBED:
        damages = [(f"checkpoint {name}", damage_checkpoint, name) for name in DAMAGES if stage in TRAINED]
        damages += [(f"unit's file {name}", damage_draft, name) for name in DAMAGES if stage not in TRAINED]
        if stage != "corpus":  # whose inputs are no artifacts
            damages += [(f"input {name}", damage_input, name) for name in DAMAGES]
            damages += [(f"input's manifest {name}", damage_manifest, name) for name in ("truncated", "lost")]
            damages += [(f"S3: input {name}", damage_input_in_bucket, name) for name in DAMAGES]
        for fault, damage, name in damages:

            def damaged(
                seed: int, index: int = index_of(stage), damage: Damage = damage, name: str = name
            ) -> Outcome:
                return damage(undisturbed, index, name, seed, scratch)

            yield stage, fault, damaged, 1
    others = {
        "disk full": fill_disk,
        "two drivers at once": at_once_on_disk,
        "S3: two drivers at once": at_once_in_bucket,
        "driver paused and taken over": paused,
    }
    for stage in DISTURBED:
        for fault, case in others.items():

            def disturbed(seed: int, index: int = index_of(stage), case: Disturbance = case) -> Outcome:
                return case(undisturbed, index, seed, scratch)

            yield stage, fault, disturbed, 1

    for stage in PRETRAINED:

        def resize(seed: int, index: int = index_of(stage)) -> Outcome:
            return shrink_and_grow(undisturbed, index, scratch / f"resizing-{index}")

        yield stage, "a node taken back after a notice, another added", resize, 1
    yield from faulty_storage(undisturbed, scratch)
    for name, case in CASES.items():

        def chain(seed: int, case: Callable[..., Outcome] = case) -> Outcome:
            return case(undisturbed.root, "smoke", seed, scratch)

        yield "quickstart", name, chain, 1


def until_it_strikes(case: Callable[[int], Outcome], seed: int) -> Outcome:
    """The case; again at another moment if the run had ended before."""
    for attempt in range(_ATTEMPTS):
        try:
            outcome = case(seed + ANOTHER_ATTEMPT * attempt)
        except Exception as error:  # The other cases still have something to say.
            return Outcome(1, same=False, problems=[f"{type(error).__name__}: {error}"])
        if not outcome.missed or outcome.problems or not outcome.same:
            break
    return outcome


def summary(outcomes: list[Outcome]) -> tuple[str, int]:
    """What came of some runs, in a few words, and how many are lost or different."""
    bad = [each for each in outcomes if each.problems or not (each.same or each.refused)]
    if bad:
        why = "; ".join(bad[0].problems or ["it came out different"])
        return f"{len(bad)} of {len(outcomes)}: {why}", len(bad)
    if all(each.refused for each in outcomes):
        return "refused in one line", 0
    again = sum(each.runs > 1 for each in outcomes)
    missed = sum(each.missed for each in outcomes)
    notes = [f"{again} needed the command a second time"] * bool(again)
    notes += [f"{missed} found nothing to strike"] * bool(missed)
    return "the same" + (f" ({', '.join(notes)})" if notes else ""), 0


if __name__ == "__main__":
    sys.exit(main())
