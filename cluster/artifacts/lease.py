"""One writer an artifact: a lease, and a commit that only its holder can make.

The lease is one small object that is changed by compare-and-swap alone:

    (none) ──► held by A ──► held by A (renewed) ──► committed by A
                   └──► held by B (A was silent for `TTL_SECONDS`, or its process is gone)

Renewing writes a new content, so that a contender who sees the same content for `TTL_SECONDS` *of its own
clock* knows that nobody lives behind it: no two clocks are ever compared. To commit is a swap from the
holder's last content to "committed": a holder that was paused meanwhile, and whose lease was taken, finds
another content and is refused. So of two writers one commits, whatever the timing.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster.artifacts.folder import Folder
from cluster.artifacts.holder import is_gone, this_machine, this_process
from cluster.errors import UserError

TTL_SECONDS = 30.0
"""Silence after which a holder counts as dead."""
RENEW_SECONDS = 5.0

LEASES = ".leases"
"""Folder of the leases of a name's versions: KIND/NAME/.leases/VERSION.json."""

_POLL_SECONDS = 0.5
_THREADS = 16


class LeaseLost(UserError):
    """Another process took the lease: what this one made must not be committed."""


@dataclass(frozen=True)
class Ticket:
    """Proof of tenure that travels to workers: they write only while the lease is still of this tenure."""

    folder: Folder
    name: str
    tenure: str

    def is_current(self) -> bool:
        """Whether nobody has taken the lease since."""
        return _parse(_read(self.folder, self.name)).get("tenure") == self.tenure

    def check(self) -> None:
        """Raises LeaseLost if somebody has taken the lease since."""
        if not self.is_current():
            holder = describe_holder(_read(self.folder, self.name))
            raise LeaseLost(f"{holder} has taken this run over; this process stops writing")


class Lease:
    """The lease `name` in `folder`, held from `acquire` to `commit` or `release`; a thread renews it."""

    def __init__(self, folder: Folder, name: str, subject: str, inputs: Sequence[str] = ()) -> None:
        """inputs: what the holder reads, for those who would remove it."""
        self._folder, self._name, self._subject, self._inputs = folder, name, subject, list(inputs)
        self._content: bytes | None = None
        self._tenure = uuid.uuid4().hex
        self._swapping = threading.Lock()
        self._stop = threading.Event()
        self.token = 0
        """Grows with every change of holder."""

    @property
    def ticket(self) -> Ticket:
        return Ticket(self._folder, self._name, self._tenure)

    def acquire(self, announce: Callable[[str], None] = lambda text: None) -> dict[str, Any] | None:
        """Take the lease; waits out a holder that may be dead, and tells `announce` so.

        Returns the note of the holder before, if it committed.

        Raises:
            UserError: somebody is alive behind it; the message says who.
        """
        while True:
            found = _read(self._folder, self._name)
            if found is not None and not self._is_free(found, announce):
                continue  # it changed hands while we looked
            self.token = _parse(found).get("token", 0) + 1
            content = self._state("held")
            if self._folder.storage.swap(self._folder.key(self._name), found, content):
                self._content = content
                threading.Thread(target=self._renew, name=f"lease {self._subject}", daemon=True).start()
                return _note(found)

    def commit(self, note: dict[str, Any]) -> None:
        """End the tenure with success. `note` lets anyone finish what follows if this process dies now.

        Raises:
            LeaseLost: another process took over.
        """
        self._finish("committed", note)

    def release(self) -> None:
        """End the tenure without a result; does nothing if it has ended or was lost."""
        if not self._stop.is_set():
            with contextlib.suppress(LeaseLost):
                self._finish("released", {})

    def _finish(self, state: str, note: dict[str, Any]) -> None:
        self._stop.set()
        with self._swapping:
            if not self._swap(self._state(state, note)):
                holder = describe_holder(_read(self._folder, self._name))
                raise LeaseLost(
                    f"{self._subject}: {holder} took over while this process was silent; "
                    "what this one made is dropped"
                )

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with self._swapping:
                if self._stop.is_set():
                    return
                try:
                    if not self._swap(self._state("held")):
                        return  # lost: the commit will say so
                except Exception:  # storage may be away for a while; the next renewal tries again
                    continue

    def _swap(self, content: bytes) -> bool:
        if self._folder.storage.swap(self._folder.key(self._name), self._content, content):
            self._content = content
            return True
        return False

    def _is_free(self, found: bytes, announce: Callable[[str], None]) -> bool:
        """True if nobody lives behind the content `found`; False if the content changed for a free one."""
        if not _is_held(found):
            return True
        announce(f"{self._subject}: held by {describe_holder(found)}; waiting to see whether it is alive")
        (now,) = watch([(self._folder, self._name, found)])
        if now == found:
            return True
        if _parse(now).get("state") != "held":
            return False
        raise UserError(f"{self._subject} is being made by {describe_holder(now)}; wait for it or stop it")

    def _state(self, state: str, note: dict[str, Any] | None = None) -> bytes:
        content = {
            "state": state,
            "token": self.token,
            "tenure": self._tenure,
            "renewal": uuid.uuid4().hex,
            "holder": this_process(),
            "inputs": self._inputs,
            **({"note": note} if note else {}),
        }
        return json.dumps(content, sort_keys=True).encode()


def is_held(folder: Folder, name: str) -> bool:
    """Whether somebody holds the lease, as far as can be seen without waiting."""
    return _is_held(_read(folder, name))


def held_elsewhere(folder: Folder, name: str) -> bytes | None:
    """The lease's content if another machine's process holds it: only a `watch` shows if that lives."""
    content = _read(folder, name)
    return content if _is_held(content) and _parse(content)["holder"]["machine"] != this_machine() else None


def watch(leases: Sequence[tuple[Folder, str, bytes]]) -> list[bytes | None]:
    """What becomes of the contents of leases; who keeps theirs for TTL_SECONDS of our clock is dead.

    Looks at all together, and no longer than it takes to see every one change, or its process end.
    """
    contents: list[bytes | None] = [seen for _, _, seen in leases]
    silence, looked = 0.0, time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        while silence < TTL_SECONDS:
            waiting = [at for at, (*_, seen) in enumerate(leases) if contents[at] == seen and _is_held(seen)]
            if not waiting:
                break
            time.sleep(_POLL_SECONDS)
            for at, now in zip(waiting, pool.map(lambda at: _read(*leases[at][:2]), waiting), strict=True):
                contents[at] = now
            # Storage that keeps us waiting may keep the holder from renewing too: that is no silence.
            silence += min(time.monotonic() - looked, RENEW_SECONDS)
            looked = time.monotonic()
    return contents


def release_dead(folder: Folder, name: str, content: bytes) -> bool:
    """End the tenure of a holder who was silent in a `watch`. False if it lives: it has renewed since."""
    state = _parse(content)
    released = state | {
        "state": "released",
        "token": state["token"] + 1,
        "tenure": uuid.uuid4().hex,
        "holder": this_process(),
    }
    return folder.storage.swap(folder.key(name), content, json.dumps(released, sort_keys=True).encode())


def note_of_commit(folder: Folder, name: str) -> dict[str, Any] | None:
    """The note of the holder who ended the lease with success; None if nobody did."""
    return _note(_read(folder, name))


def inputs_of(folder: Folder, name: str) -> list[str] | None:
    """What the last holder read; None if the lease does not say."""
    inputs = _parse(_read(folder, name)).get("inputs")
    return inputs if isinstance(inputs, list) else None


def at_work(folder: Folder) -> Iterator[tuple[str, str, list[str]]]:
    """(name, holder, inputs) of every lease in `folder` that is held, as `is_held` sees it."""
    names = [name for name in folder.files() if name.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:  # one that is removed meanwhile is nobody's
        contents = list(pool.map(lambda name: _read(folder, name), names))
    for name, content in zip(names, contents, strict=True):
        if _is_held(content):
            yield name, describe_holder(content), _parse(content).get("inputs", [])


def describe_holder(content: bytes | None) -> str:
    """Who holds a lease, for people."""
    state = _parse(content)
    if not state:
        return "another process"
    return f"process {state['holder']['pid']} on {state['holder']['host']}"


def _note(content: bytes | None) -> dict[str, Any] | None:
    state = _parse(content)
    return state.get("note") if state.get("state") == "committed" else None


def _is_held(content: bytes | None) -> bool:
    state = _parse(content)
    return state.get("state") == "held" and not is_gone(state["holder"])


def _parse(content: bytes | None) -> dict[str, Any]:
    """A lease's content; empty if there is none, or none that was written by this program.

    A lease that is damaged is free: if somebody lives behind it, their next swap finds another content.
    """
    try:
        state = json.loads(content or b"{}")
    except ValueError:
        return {}
    is_whole = isinstance(state, dict) and {"state", "token", "tenure", "holder"} <= state.keys()
    return state if is_whole else {}


def _read(folder: Folder, name: str) -> bytes | None:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None
