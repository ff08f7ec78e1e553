"""Ctrl-C and SIGTERM end every command alike: what is open is closed, and the exit code says which it was.

The code (128 + the signal's number) is not taken from the exception that ends the command, for others replace
signal handlers: when Ray joins a cluster, SIGTERM becomes `sys.exit(15)`, and Ray Train answers Ctrl-C with
`sys.exit(0)`, which looks like success. The interpreter writes the number of every signal to a descriptor,
whoever handles it; that is read at the end.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """An interruption of a command that has more to say than that it continues."""


@contextlib.contextmanager
def watched_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Gives a function that says which signal asked the command to end, if one did."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        previous = signal.getsignal(signal.SIGTERM)
        descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # Without a handler of its own SIGTERM ends the process on the spot, with everything left open.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield lambda: _first_ending(reader)
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGTERM, previous)


def _first_ending(reader: socket.socket) -> signal.Signals | None:
    with contextlib.suppress(BlockingIOError):
        for number in reader.recv(4096):
            if number in _ENDING:
                return signal.Signals(number)
    return None
