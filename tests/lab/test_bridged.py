"""Tests of bridges on both sides whose packets pass netfilter on the bridge (bridge-nf-call-iptables).

Docker, Kubernetes and libvirt enable that setting. The prerouting chains then run before the bridge's own
programs at TC see the packet, and fragments are reassembled.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
from truth import agree, dedicated, families, leaves_from, packets, running

from lab.capture import Capture
from lab.clients import Session, UdpFlow, family_of, tcp_ask, udp_ask
from lab.configuration import ABROAD_PORT, LAX1
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, SHARED, Lab

SETTINGS = {"net.bridge.bridge-nf-call-iptables": 1, "net.bridge.bridge-nf-call-ip6tables": 1}
BRIDGES = {
    "in0": ("br0", {4: f"{GATEWAY[4]}/24", 6: f"{GATEWAY[6]}/64"}),
    "out0": ("br1", {4: f"{SHARED[4]}/24", 6: f"{SHARED[6]}/64"}),
}
DEFAULT = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}
kinds = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    for port, (bridge, addresses) in BRIDGES.items():
        lab.gw.ip(
            f"link add {bridge} type bridge",
            *(f"addr del {address} dev {port}" for address in addresses.values()),
            f"link set {port} master {bridge}",
            f"link set {bridge} up",
            *(f"addr add {address} dev {bridge}" for address in addresses.values()),
        )
    lab.gw.ip(*(f"route replace default via {router}" for router in DEFAULT.values()))
    try:
        lab.gw.sysctls(SETTINGS)
    except (LabError, OSError) as error:
        pytest.skip(f"this kernel has no br_netfilter: {error}")
    with running(lab, lab.config(interfaces={"inside": ["br0", "in1"], "outside": ["br1"]})) as gateway:
        yield gateway


@families
def test_connections(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    for ask in (tcp_ask, udp_ask):
        assert ask(lab.client, ORIGIN1[family]).address == leaves_from(LAX1, family)
        assert ask(lab.client, ORIGIN2[family]).address in dedicated(family)
    with Session(lab.client, ORIGIN1[family]) as session, UdpFlow(lab.client, ORIGIN1[family]) as flow:
        for _ in range(20):
            assert session.ask() == session.seen
            assert flow.ask().address == leaves_from(LAX1, family)
        agree(enforced)


@families
@kinds
def test_refusals_are_answered_at_once(enforced: LabGateway, family: int, kind: int) -> None:
    ask = tcp_ask if kind == socket.SOCK_STREAM else udp_ask
    before, began = packets(enforced), time.monotonic()
    with pytest.raises(OSError) as refused:
        ask(enforced.lab.client, ORIGIN2[family], ABROAD_PORT)
    assert not isinstance(refused.value, TimeoutError)
    assert time.monotonic() - began < 1
    now = packets(enforced)
    assert now["unavailable"] == before["unavailable"] + 1
    assert now["untranslatable"] == before["untranslatable"]


@families
def test_a_mark_that_others_set_on_the_bridge(enforced: LabGateway, family: int) -> None:
    """The route look-up includes the mark: a packet that a rule reroutes is decided for that route."""
    lab = enforced.lab
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 10):
        pytest.skip("this kernel's programs cannot ask for the route of a mark")
    rule = ["ip", f"-{family}", "rule"]
    lab.gw.run(
        "nft",
        "add table inet others; add chain inet others pre { type filter hook prerouting priority -150; }; "
        "add rule inet others pre iifname br0 meta mark set 0x10",
    )
    lab.gw.ip(f"route add default via {CLIENT2[family]} dev in1 table 200")
    lab.gw.run(*rule, "add", "fwmark", "0x10/0xff", "lookup", "200")
    try:
        before = packets(enforced)
        expression = f"dst {ORIGIN2[family]}"
        with (
            Capture(lab.client2, "eth0", lab.directory, direction="in", expression=expression) as seen,
            pytest.raises(TimeoutError),
        ):
            udp_ask(lab.client, ORIGIN2[family], timeout=0.5)
        assert set(seen.sources()) == {CLIENT[family]}  # an inside network: untranslated
        now = packets(enforced)
        assert now["inside"] > before["inside"]
        assert now["astray"] == before["astray"]
    finally:
        lab.gw.run(*rule, "del", "fwmark", "0x10/0xff", "lookup", "200")
        lab.gw.run("ip", f"-{family}", "route", "flush", "table", "200")
        lab.gw.run("nft", "delete table inet others")
    assert udp_ask(lab.client, ORIGIN2[family]).address in dedicated(family)


@families
@pytest.mark.parametrize("size", [1000, 4000, 60000])
def test_large_datagrams(enforced: LabGateway, family: int, size: int) -> None:
    """Fragments pass in both directions."""
    lab = enforced.lab
    with (
        lab.origin1.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM) as server,
        lab.client.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM) as asker,
    ):
        server.bind((ORIGIN1[family], 9100))
        for sock in (server, asker):
            sock.settimeout(2)
        asker.connect((ORIGIN1[family], 9100))
        for number in range(4):
            sent = bytes([number]) * size
            asker.send(sent)
            received, peer = server.recvfrom(65536)
            assert received == sent
            assert peer[0] == leaves_from(LAX1, family)
            server.sendto(received, peer)
            assert asker.recv(65536) == sent
