"""Which process holds a lease, and whether it has ended."""

import os
import socket
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """What a lease says of the process that holds it."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": this_machine(),
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
    }


def this_machine() -> str:
    """One start of one machine: process ids mean something within it."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended, or this very process.

    (This process: a stage that raised in a notebook leaves its lease behind. Taking it makes the old draft a
    stranger to it, as it would any other process.)
    """
    if holder["machine"] != this_machine():
        return False
    if holder["pid"] == os.getpid():
        return True
    try:
        process = psutil.Process(holder["pid"])
        is_another = abs(process.create_time() - holder["started"]) > 1.0
        return is_another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
