"""How the processes of one command find each other: by whichever address answers."""

from __future__ import annotations

import contextlib
import socket

import pytest

from common import files
from common.errors import NotYet
from common.infer.machines import local_workers, meeting
from common.infer.machines.engine import Engine
from common.stopping import never


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tls://127.0.0.1:{server.getsockname()[1]}"


def closed() -> str:
    with listening() as address:
        return address


def test_every_network_of_a_scheduler_is_told_and_the_loopback_last(monkeypatch):
    psutil = pytest.importorskip("psutil")

    class Address:
        def __init__(self, address, family=socket.AF_INET):
            self.address = address
            self.family = family

    networks = {
        "lo": [Address("127.0.0.1"), Address("::1", socket.AF_INET6)],
        "eth0": [Address("10.0.0.7")],
        "unplugged": [Address("10.0.9.9")],
        "ib0": [Address("10.1.0.7")],
    }

    class State:
        def __init__(self, isup):
            self.isup = isup

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: networks)
    monkeypatch.setattr(
        psutil, "net_if_stats", lambda: {name: State(name != "unplugged") for name in networks}
    )
    # as Dask has it where there is no way to the internet and /etc/hosts is Debian's
    assert local_workers.addresses("tls://127.0.1.1:80") == [
        f"tls://{host}:80" for host in ("10.0.0.7", "10.1.0.7", "127.0.1.1", "127.0.0.1")
    ]
    assert local_workers.addresses("tls://10.1.0.7:80")[0] == "tls://10.1.0.7:80"


def test_the_first_address_that_answers_is_taken():
    with listening() as address:
        assert local_workers.reachable([closed(), address]) == address
    assert not local_workers.reachable([closed()])


def test_a_scheduler_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    address = closed()
    place = meeting.MeetingPlace(tmp_path, "0123456789abcdef")
    monkeypatch.setattr(meeting, "is_held", lambda lock: True)
    monkeypatch.setattr(meeting, "CLOSED_WITHIN_S", 0)
    files.write_json(place.file, {"addresses": [address], "security": {}})
    with pytest.raises(NotYet, match=f"cannot reach at {address}; see that"):
        place._help(Engine(workers=1), "process 17 on box", never)


def test_a_scheduler_that_closes_is_waited_for_until_its_process_lets_go(tmp_path, monkeypatch):
    held = [True, True, True, False]
    place = meeting.MeetingPlace(tmp_path, "0123456789abcdef")
    monkeypatch.setattr(meeting, "is_held", lambda lock: held.pop(0))
    files.write_json(place.file, {"addresses": [closed()], "security": {}})
    place._help(Engine(workers=1), "process 17 on box", never)
    assert not held
