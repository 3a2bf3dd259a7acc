"""Tests of traffic that would leave by an unlisted interface: none does, unless `interfaces.other` lists it.

The second network, behind in1, is the second uplink here; client2 is its router.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from truth import families, foretold, packets, running, wait_for

from lab.capture import Capture
from lab.clients import Session, UdpFlow, family_of, ping, tcp_ask, udp_ask
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, SHARED, Lab

SIDES = {"inside": ["in0"], "outside": ["out0"]}
NETWORK = {4: "198.18.2.0/24", 6: "2001:db8:a2::/64"}


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab, lab.config(interfaces=SIDES)) as gateway:
        yield gateway


@pytest.fixture
def moved(enforced: LabGateway, family: int) -> Iterator[None]:
    """Route origin 2 by the second uplink."""
    move(enforced, family)
    yield
    enforced.lab.gw.ip(f"route del {NETWORK[family]}")


def move(enforced: LabGateway, family: int) -> None:
    enforced.lab.gw.ip(f"route add {NETWORK[family]} via {CLIENT2[family]} dev in1")


def second_uplink(lab: Lab, family: int) -> Capture:
    """A capture of the packets to origin 2 on the second uplink."""
    expression = f"dst {ORIGIN2[family]}"
    return Capture(lab.client2, "eth0", lab.directory, direction="in", expression=expression)


@families
def test_new_connections_are_dropped_by_name(enforced: LabGateway, family: int, moved: None) -> None:
    lab, before = enforced.lab, packets(enforced)["unlisted"]
    with second_uplink(lab, family) as seen:
        for ask in (tcp_ask, udp_ask):
            with pytest.raises(TimeoutError):
                ask(lab.client, ORIGIN2[family], timeout=0.5)
        ping(lab.client, ORIGIN2[family], CLIENT[family])
    assert not seen.sources()
    assert packets(enforced)["unlisted"] - before >= 3
    for protocol in ("tcp", "udp", "icmp"):
        said = foretold(enforced, ORIGIN2[family], protocol, 9000 if protocol != "icmp" else 0)
        assert (said["verdict"], said["reason"]) == ("blocked", "unlisted"), protocol
    # Other connections work as before.
    assert tcp_ask(lab.client, ORIGIN1[family]).address != CLIENT[family]


def end_of(connection: Session | UdpFlow) -> OSError | None:
    """The error that ends a connection in use; None if it ends with silence."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            connection.ask()
        except TimeoutError:
            return None
        except OSError as error:
            return error
    return None


@families
def test_live_connections_are_refused(enforced: LabGateway, family: int) -> None:
    """A backup line takes over: flows with an egress address do not leave by it."""
    lab, before = enforced.lab, packets(enforced)["astray"]
    with Session(lab.client, ORIGIN2[family]) as session, UdpFlow(lab.client, ORIGIN2[family]) as flow:
        for _ in range(8):  # enough exchanges for the fast path
            session.ask()
            flow.ask()
        move(enforced, family)
        try:
            with second_uplink(lab, family) as seen:
                # Fast-path packets keep their old route until the daemon invalidates the entries.
                assert isinstance(end_of(session), ConnectionError)
                assert end_of(flow) is not None
            assert not seen.sources()
            assert packets(enforced)["astray"] - before >= 2
        finally:
            lab.gw.ip(f"route del {NETWORK[family]}")


@families
def test_where_it_is_meant(enforced: LabGateway, family: int) -> None:
    """Traffic by an interface in `interfaces.other` and its answers are not the enforcer's."""
    lab, before = enforced.lab, packets(enforced)["other"]
    enforced.reload(lab.config(interfaces=SIDES | {"other": ["in1"]}))
    move(enforced, family)
    try:
        # No host on the second uplink has origin 2's address, so no answer arrives.
        with second_uplink(lab, family) as seen, pytest.raises(TimeoutError):
            udp_ask(lab.client, ORIGIN2[family], timeout=0.5)
        assert set(seen.sources()) == {CLIENT[family]}
        assert udp_ask(lab.client, ORIGIN1[family]).address != CLIENT[family]
        assert packets(enforced)["other"] > before
        said = foretold(enforced, ORIGIN2[family], "udp", 9000)
        assert (said["verdict"], said["reason"]) == ("untouched", "other")
    finally:
        lab.gw.ip(f"route del {NETWORK[family]}")
        enforced.reload(lab.config(interfaces=SIDES))


UPLINK = {4: ("192.168.77.1", "192.168.77.2", 30), 6: ("fd77::1", "fd77::2", 64)}


@contextlib.contextmanager
def one_way(enforced: LabGateway, family: int) -> Iterator[None]:
    """The second uplink leads to origin 2, whose answers arrive on the outside interface."""
    lab, (near, far, length) = enforced.lab, UPLINK[family]
    lab.client2.ip(f"link add up0 type veth peer name up0 netns {lab.origin2.name}")
    nodad = "nodad" if family == 6 else ""
    lab.client2.ip(f"addr add {near}/{length} dev up0 {nodad}", "link set up0 up")
    lab.origin2.ip(f"addr add {far}/{length} dev up0 {nodad}", "link set up0 up")
    lab.client2.ip(f"route add {ORIGIN2[family]} via {far} dev up0")
    lab.net.ip(f"route add {CLIENT[family]} via {SHARED[family]} dev gw0")
    lab.client2.sysctls({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    enforced.reload(lab.config(interfaces=SIDES | {"other": ["in1"]}))
    move(enforced, family)
    try:
        yield
    finally:
        lab.gw.run("ip", "route", "flush", "exact", NETWORK[family], "dev", "in1", check=False)
        enforced.reload(lab.config(interfaces=SIDES))
        lab.client2.sysctls({"net.ipv4.ip_forward": 0, "net.ipv6.conf.all.forwarding": 0})
        lab.client2.ip("link del up0")
        lab.net.ip(f"route del {CLIENT[family]}")


@families
def test_answers_that_come_back_by_the_outside_interface(enforced: LabGateway, family: int) -> None:
    """Asymmetric routing: answers pass untranslated while routes lead to an interface in `other`."""
    lab, before = enforced.lab, packets(enforced)["inbound"]
    with one_way(enforced, family), Session(lab.client, ORIGIN2[family]) as session:
        assert session.seen.address == CLIENT[family]
        assert session.ask() == session.seen
        with (
            socket_at(lab.client, CLIENT[family]) as client,
            socket_at(lab.origin2, ORIGIN2[family]) as origin,
        ):
            client.sendto(b"?", origin.getsockname())
            asked, address = origin.recvfrom(10)
            assert (asked, address) == (b"?", client.getsockname())
            origin.sendto(b"!", address)
            assert client.recv(10) == b"!"
            assert packets(enforced)["inbound"] == before
            with socket_at(lab.origin2, ORIGIN2[family]) as stranger:  # not in conntrack
                stranger.sendto(b"stranger", address)
            wait_for(lambda: packets(enforced)["inbound"] == before + 1, "the stranger's packet dropped")
            # In conntrack, but its connection no longer leaves by an interface in `other`.
            lab.gw.ip(f"route del {NETWORK[family]}")
            origin.sendto(b"late", address)
            wait_for(lambda: packets(enforced)["inbound"] == before + 2, "the late answer dropped")
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(10)


def socket_at(namespace: Namespace, address: str) -> socket.socket:
    opened = namespace.socket(family_of(address), socket.SOCK_DGRAM)
    opened.settimeout(5)
    opened.bind((address, 0))
    return opened
