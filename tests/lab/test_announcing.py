"""Tests of announcements: new connections work at once although neighbours know our old MAC address.

Without an announcement the internet's router keeps the MAC address that it knows for 15 to 45 seconds
and longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from near import NEAR, with_near
from truth import families, leaves_from, running

from enforcer.kernel import links
from lab.clients import Session, tcp_ask
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import ORIGIN1, ORIGIN2, SHARED, Lab

AT_ONCE = 2.0
"""Seconds: the first packet is lost, its retransmission one second later arrives."""


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab, with_near(lab, on_link=True)) as gateway:
        yield gateway


def mac_of(lab: Lab) -> str:
    return str(lab.gw.call(links.links)["out0"].mac.hex(":"))


def known(lab: Lab, address: str) -> str:
    return lab.net.run("ip", "neigh", "show", address, "dev", "gw0").stdout


def seconds(lab: Lab, family: int, host: int = 2) -> float:
    """The seconds that a new connection of the client takes; asserts its source address."""
    source = f"10.0.1.{host}" if family == 4 else f"fd00:1::{host}"
    began = time.monotonic()
    seen = tcp_ask(lab.client, ORIGIN2[family], source=source, timeout=60)
    assert seen.address == leaves_from(NEAR, family, source)
    return time.monotonic() - began


@families
def test_a_new_mac_address(enforced: LabGateway, family: int) -> None:
    """Covers routed egress addresses (reached through the gateway's own address) and live connections."""
    lab = enforced.lab
    with (
        Session(lab.client, ORIGIN2[family], timeout=30) as near,
        Session(lab.client, ORIGIN1[family]) as routed,
    ):
        before = mac_of(lab)
        for session in (near, routed):
            assert session.ask() == session.seen
        assert before in known(lab, leaves_from(NEAR, family))
        lab.gw.ip(f"link set out0 address 02:00:00:00:01:0{family}")
        began = time.monotonic()
        took = seconds(lab, family)
        for session in (near, routed):
            assert session.ask() == session.seen
        assert tcp_ask(lab.client, ORIGIN1[family], timeout=30).address == leaves_from(LAX1, family)
        print(f"{took:.2f} s, {time.monotonic() - began:.2f} s with all others")
        assert took < AT_ONCE
        assert time.monotonic() - began < 2 * AT_ONCE


@families
def test_another_gateway_had_the_addresses(enforced: LabGateway, family: int) -> None:
    """After the takeover this gateway knows no flow and has another MAC address."""
    lab = enforced.lab
    sources = [leaves_from(NEAR, family, f"fd00:1::{host}") for host in (2, 3)]
    for host in (2, 3):
        seconds(lab, family, host)
    enforced.down()
    before = mac_of(lab)
    lab.gw.ip(f"link set out0 address 02:00:00:00:02:0{family}")
    # Another gateway would have its own address, which the router resolves on first use.
    lab.net.run("ip", "neigh", "del", SHARED[family], "dev", "gw0", check=False)
    enforced.start()
    if family == 6:
        assert all(before in known(lab, source) for source in sources)
    for host in (2, 3):
        took = seconds(lab, family, host)
        print(f"{took:.2f} s")
        assert took < AT_ONCE
