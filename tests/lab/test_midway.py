"""Connections that are picked up midway: a client goes on with one that nobody here has seen begin."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from truth import counted, families, inject, look, running, total, tracked, wait_for
from versions import impatient

from enforcer.lab.gateway import Gateway
from enforcer.lab.topology import CLIENT, Lab
from enforcer.views.source import Source

NOBODY = {4: "198.18.1.99", 6: "2001:db8:a1::99"}
TRANSITORY = 1
_ports = itertools.count(40000)


@pytest.fixture(scope="module")
def enforced(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Only what is not established is forgotten soon."""
    version = impatient(tmp_path_factory.mktemp("version"))
    with running(lab, lab.config(timers={"tcp_transitory": TRANSITORY}), version) as gateway:
        yield gateway


def acknowledge(gateway: Gateway, family: int, port: int, number: int) -> None:
    network = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=NOBODY[family])
    segment = TCP(sport=port, dport=7000, flags="A", seq=number, ack=number)
    mac = look(gateway, lambda source: _mac(source, "in0"))
    inject(gateway.lab, [bytes(Ether(dst=mac) / network / segment)])


def _mac(source: Source, interface: str) -> str:
    row = source.maps.interfaces.get(socket.if_nametoindex(interface))
    assert row is not None
    return bytes(row["mac"]).hex(":")


@families
def test_nobody_answers(enforced: Gateway, family: int) -> None:
    """To conntrack it is established, and would hold its port for hours although it counts no more."""
    lab, port, before = enforced.lab, next(_ports), total(enforced)
    acknowledge(enforced, family, port, 1000)
    wait_for(lambda: total(enforced) == before + 1, "the connection admitted")
    assert list(counted(enforced).values()) == [1]
    assert list(tracked(lab).values()) == [1]
    said = lab.gw.run("conntrack", "-L", "-f", f"ipv{family}", "-p", "tcp").stdout
    assert "ESTABLISHED" in said and "UNREPLIED" in said
    wait_for(lambda: not counted(enforced), "the count given back")
    wait_for(lambda: not tracked(lab), "its port free")


@families
def test_the_client_goes_on(enforced: Gateway, family: int) -> None:
    """What is not idle is not forgotten."""
    lab, port, before = enforced.lab, next(_ports), total(enforced)
    acknowledge(enforced, family, port, 1000)
    wait_for(lambda: bool(tracked(lab)), "the connection tracked")
    (entry,) = tracked(lab)
    end = time.monotonic() + 4 * TRANSITORY
    while time.monotonic() < end:
        acknowledge(enforced, family, port, 1000)
        assert set(tracked(lab)) == set(counted(enforced)) == {entry}
        time.sleep(0.2)
    assert total(enforced) == before + 1
    wait_for(lambda: not counted(enforced) and not tracked(lab), "both forgotten")
