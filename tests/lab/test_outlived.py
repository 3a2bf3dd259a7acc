"""Tests of connections that conntrack judges wrongly: picked up midway, or reset after fast-path packets."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from socket import IPPROTO_RAW, SOCK_RAW

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from transfer import PORT, Transfer
from truth import counted, families, inject, look, running, stopped, total, tracked, wait_for
from versions import impatient

from enforcer.gateway.reader import GatewayReader
from enforcer.inspect.flows import flows
from lab.clients import family_of
from lab.gateway import LabGateway
from lab.topology import CLIENT, ORIGIN1, Lab

NOBODY = {4: "198.18.1.99", 6: "2001:db8:a1::99"}
TRANSITORY, CLOSE = 1, 5
_ports = itertools.count(40000)


@pytest.fixture(scope="module")
def enforced(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGateway]:
    """A gateway whose conntrack forgets soon what is not established."""
    version = impatient(tmp_path_factory.mktemp("version"))
    with running(
        lab, lab.config(timers={"tcp_transitory": TRANSITORY, "tcp_close": CLOSE}), version
    ) as gateway:
        yield gateway


def acknowledge(gateway: LabGateway, family: int, port: int, number: int) -> None:
    network = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=NOBODY[family])
    segment = TCP(sport=port, dport=7000, flags="A", seq=number, ack=number)
    mac = look(gateway, lambda source: _mac(source, "in0"))
    inject(gateway.lab, [bytes(Ether(dst=mac) / network / segment)])


def _mac(reader: GatewayReader, interface: str) -> str:
    row = reader.maps.interfaces.get(socket.if_nametoindex(interface))
    assert row is not None
    return bytes(row["mac"]).hex(":")


@families
def test_picked_up_midway_and_nobody_answers(enforced: LabGateway, family: int) -> None:
    """conntrack takes it for established and would hold its port for hours after its count is given back."""
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
def test_picked_up_midway_and_the_client_goes_on(enforced: LabGateway, family: int) -> None:
    """The flow is not idle, so it stays counted and tracked."""
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


@families
def test_a_reset_of_a_fast_connection(enforced: LabGateway, family: int) -> None:
    """conntrack rejects the reset, and a late segment would extend its entry by hours."""
    lab = enforced.lab
    with ExitStack() as stack:
        with Transfer(lab.client, lab.origin1, ORIGIN1[family], 1 << 20) as transfer:
            wait_for(lambda: any(row["fast_packets"] > 100 for row in look(enforced, flows)), "the fast path")
            (row,) = (row for row in look(enforced, flows) if row["client_port"] == transfer.client_port)
            stack.enter_context(stopped(enforced.pid))  # a sweep could end conntrack's entry first
        wait_for(lambda: not counted(enforced), "the count given back")
        paused = stack.pop_all()
    with silent(lab), closing(lab.origin1.socket(family_of(ORIGIN1[family]), SOCK_RAW, IPPROTO_RAW)) as raw:
        network = (IP if family == 4 else IPv6)(src=ORIGIN1[family], dst=row["source_ip"])
        late = TCP(sport=PORT, dport=row["source_port"], flags="A", seq=1, ack=1)
        with paused:
            raw.sendto(bytes(network / late), (row["source_ip"], 0))
            said = lab.gw.run("conntrack", "-L", "-f", f"ipv{family}", "-p", "tcp").stdout
        assert "ESTABLISHED" in said and int(said.split()[2]) > 7000
        wait_for(lambda: not tracked(lab), "its port free")


@contextmanager
def silent(lab: Lab) -> Iterator[None]:
    """Drop all resets that the client sends."""
    lab.client.run("nft", "add table inet silence")
    lab.client.run("nft", "add chain inet silence output { type filter hook output priority 0; }")
    lab.client.run("nft", "add rule inet silence output tcp flags rst drop")
    yield
    lab.client.run("nft", "delete table inet silence")
