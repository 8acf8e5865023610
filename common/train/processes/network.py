"""Which network the processes of a run talk over, where they are on several machines.

gloo takes the address that a machine's own host name has. As Debian and Ubuntu write /etc/hosts
that is 127.0.1.1, under which no other machine finds it. GLOO_SOCKET_IFNAME says otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Variable of the environment with the name of the network's interface, such as eth0."""


def choose(tell: Callable[[str], None], hear: Callable[[], str]) -> None:
    """Set INTERFACE, if need be, to where the machines of a run see each other.

    Of a machine that does not hold torchrun's store that is the way to the store; of the one that
    holds it, the address by which the others find it.

    Args:
        tell: takes the address of the machine with the store, for `hear`.
        hear: waits for what any machine told.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE") or 1) == 1:
        return
    own, of_store = _way_to((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    if os.environ.get("GROUP_RANK") != "0":
        tell(of_store)
    if os.environ.get(INTERFACE) or _is_found_by_name():
        return
    address = own if os.environ.get("GROUP_RANK") != "0" else hear()
    name = interface_of(address)
    if name:
        os.environ[INTERFACE] = name


def _way_to(place: tuple[str, int]) -> tuple[str, str]:
    """Return the IPv4 addresses of this machine and of the other one, on the way to a port there.

    Each is "" where there is no such way.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(place)  # of datagrams nothing is sent until one is written
        except OSError:
            return "", ""
        return way.getsockname()[0], way.getpeername()[0]


def _is_found_by_name() -> bool:
    """Return whether this machine's host name has an address of a network."""
    with contextlib.suppress(OSError):
        return not ipaddress.ip_address(socket.gethostbyname(socket.gethostname())).is_loopback
    return False


def interface_of(address: str) -> str:
    """Return the interface of this machine that has an IPv4 address; "" where that is not known."""
    if sys.platform != "linux":
        return ""
    import fcntl

    get_address = 0x8915  # SIOCGIFADDR of linux/sockios.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an IPv4 address
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket.fileno(), get_address, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
