"""Tests of a client that uses another network's addresses: it gets nothing out, as the origin sees."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from truth import families, leaves_from, look, packets, running

from enforcer.inspect.explain import Question, explain
from lab.capture import Capture
from lab.clients import family_of, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, SERVERS, SHARED, Lab

ANN = CLIENT
"""Her egress IP is lax-1; all others leave by lax-2."""
BEHIND = {4: "10.9.0.5", 6: "fd09::5"}
"""A client behind a router on client2's network."""
PORT = 9000


def document(lab: Lab, **changes: object) -> Document:
    ann = f"net.src.ip in {{{ANN[4]} {ANN[6]}}}"
    policies = [
        {"name": "ann", "precedence": 1, "traffic": ann, "egress": {"ipv4": LAX1[4], "ipv6": LAX1[6]}},
        {"name": "rest", "precedence": 2, "egress": {"ipv4": LAX2[4], "ipv6": LAX2[6]}},
    ]
    return lab.config(policies=policies, **changes)


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    """client2 has ann's addresses besides its own, and those of a client behind it."""
    for family, bits in ((4, 32), (6, 128)):
        lab.client2.ip(*(f"addr add {one[family]}/{bits} dev lo" for one in (ANN, BEHIND)))
    lab.gw.ip(
        f"route add 10.9.0.0/16 via {CLIENT2[4]} dev in1", f"route add fd09::/32 via {CLIENT2[6]} dev in1"
    )
    with running(lab, document(lab)) as gateway:
        yield gateway


def forge(lab: Lab, family: int) -> Capture:
    """A capture at origin1 while client2 sends from ann's address: a SYN, a datagram, an echo request."""
    address, sockets = ORIGIN1[family], []
    expression = (
        f"dst {address} and not src {SERVERS['origin1'][1 if family == 4 else 2]}"  # the router's own
    )
    with Capture(lab.origin1, "eth0", lab.directory, direction="in", expression=expression) as seen:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = lab.client2.socket(family_of(address), kind)
            one.setblocking(False)
            one.bind((ANN[family], 0))
            one.connect_ex((address, PORT))
            if kind == socket.SOCK_DGRAM:
                one.send(b"in ann's name\n")
            sockets.append(one)
        ping(lab.client2, address, ANN[family])
        # This answer comes after everything that the gateway forwards of the packets above.
        assert udp_ask(lab.client2, address, PORT, CLIENT2[family]).address == leaves_from(
            LAX2, family, CLIENT2[family]
        )
        for one in sockets:
            one.close()
    return seen


@families
def test_another_network_s_address_gets_nothing_out(lab: Lab, enforced: LabGateway, family: int) -> None:
    own, anns = leaves_from(LAX2, family, CLIENT2[family]), leaves_from(LAX1, family)
    before = packets(enforced)
    assert set(forge(lab, family).sources()) == {own}
    assert packets(enforced)["spoofed"] - before["spoofed"] >= 3
    assert tcp_ask(lab.client, ORIGIN1[family], PORT).address == anns
    assert tcp_ask(lab.client2, ORIGIN1[family], PORT, CLIENT2[family]).address == own


@families
def test_a_client_behind_another_router_is_believed(lab: Lab, enforced: LabGateway, family: int) -> None:
    address, behind = ORIGIN1[family], BEHIND[family]
    for ask in (tcp_ask, udp_ask):
        assert ask(lab.client2, address, PORT, behind).address == leaves_from(LAX2, family, behind)
    assert ping(lab.client2, address, behind)


@families
def test_explain_says_where_a_source_is_believed(enforced: LabGateway, family: int) -> None:
    to = ip_address(ORIGIN1[family])

    def verdict(source: str, interface: str | None = None) -> tuple[str, str, str]:
        question = Question(ip_address(source), to, "tcp", 49152, PORT, interface)
        said = look(enforced, lambda view: explain(view, question))
        return said["interface"], said["verdict"], said["reason"]

    assert verdict(ANN[family]) == ("in0", "dedicated", "policy")
    assert verdict(ANN[family], "in1") == ("in1", "blocked", "spoofed")
    assert verdict(BEHIND[family]) == ("in1", "dedicated", "policy")
    assert verdict(BEHIND[family], "in0") == ("in0", "blocked", "spoofed")
    assert verdict({4: "192.0.2.77", 6: "2001:db8:77::1"}[family])[1:] == ("blocked", "spoofed")
    done = enforced.run(
        *("explain", "--src", ANN[family], "--dst", ORIGIN1[family], "--protocol", "icmp"),
        *("--interface", "out0"),
        check=False,
    )
    assert (done.returncode, "out0 is no inside interface" in done.stderr) == (2, True), done.stderr


@families
@pytest.mark.parametrize("switch", [False, {"in1": False}])
def test_switched_off_for_a_network(
    lab: Lab, enforced: LabGateway, family: int, switch: bool | dict[str, bool]
) -> None:
    """Without the check, client2 gets ann's egress IP; its echo request gets the shared address."""
    try:
        enforced.reload(document(lab, check_source=switch))
        before = packets(enforced)
        seen = set(forge(lab, family).sources())
        assert {leaves_from(LAX1, family), SHARED[family]} <= seen
        assert packets(enforced)["spoofed"] == before["spoofed"]
        enforced.reload(document(lab, check_source={"in0": False}))
        assert leaves_from(LAX1, family) not in forge(lab, family).sources()
    finally:
        enforced.reload(document(lab))
