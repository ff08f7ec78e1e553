"""Which machine an address means, and clusters that listen on this machine alone.

Ray replaces 127.0.0.1 by the machine's outward address, when it starts and when it joins, so that other
machines may join too. One switch keeps it at 127.0.0.1: seen with Ray 2.60, every port of a head that is
started with it is on loopback, and who joins such a head must set it too or waits for a minute in vain.
"""

import ipaddress
import os
import socket

import psutil

KEEP_TO_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch, for the environment; Ray reads it when it is imported."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of the loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(host: str) -> bool:
    """Whether a host name or address belongs to this machine; False if it cannot be resolved."""
    own = {entry.address.split("%")[0] for each in psutil.net_if_addrs().values() for entry in each}
    try:
        meant = {str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(is_loopback(address) or address in own for address in meant)


def answers(host: str, port: int) -> bool:
    """Whether anybody accepts a connection there, within two seconds."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def join_where_it_listens(address: str) -> None:
    """Let Ray join a head that listens on loopback alone. Does nothing for any other."""
    host, _, port = address.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdigit():
        return
    from ray._private import ray_constants, services

    if answers(host, int(port)) and not answers(services.get_node_ip_address(), int(port)):
        os.environ.update(KEEP_TO_LOOPBACK)
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray has been imported, and has read the old value.
