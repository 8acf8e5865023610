"""The network on which processes on several machines talk."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from common.train.processes import network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere gloo chooses")


@pytest.fixture
def of_two(monkeypatch):
    """Have this machine be one of two, whose host name is 127.0.1.1 in its own /etc/hosts."""

    def make(number: int) -> None:
        environment = {"GROUP_WORLD_SIZE": 2, "GROUP_RANK": number, "MASTER_PORT": 9}
        environment |= {"MASTER_ADDR": "127.0.0.1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv(network.INTERFACE, "")

    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    return make


def test_gloo_takes_the_network_on_which_the_store_is(of_two):
    told = []
    of_two(1)
    network.choose(told.append, hear=pytest.fail)
    assert os.environ[network.INTERFACE] == "lo" and told == ["127.0.0.1"]


def test_the_machine_of_the_store_takes_the_network_on_which_the_others_find_it(of_two):
    of_two(0)
    network.choose(pytest.fail, hear=lambda: "127.0.0.1")
    assert os.environ[network.INTERFACE] == "lo"


def test_a_network_that_others_cannot_tell_is_left_to_gloo(of_two, monkeypatch):
    told = []
    of_two(1)
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    network.choose(told.append, hear=pytest.fail)
    assert told == [""] and network.interface_of("") == "" == os.environ[network.INTERFACE]


def test_a_network_that_is_named_or_found_by_the_host_name_stands(of_two, monkeypatch):
    of_two(1)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    network.choose(lambda address: None, hear=pytest.fail)
    assert os.environ[network.INTERFACE] == ""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setenv(network.INTERFACE, "ib0")
    network.choose(lambda address: None, hear=pytest.fail)
    assert os.environ[network.INTERFACE] == "ib0"
