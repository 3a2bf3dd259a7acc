"""Tests of the source address of all kinds of traffic: the origin sees what `explain` predicts."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from truth import (
    agree,
    dedicated,
    egresses,
    families,
    foretold,
    leaves_from,
    packets,
    running,
    total,
    uncounted,
    wait_for,
)

from lab.capture import Capture
from lab.clients import (
    IcmpError,
    Session,
    UdpFlow,
    curl,
    dig,
    family_of,
    fate,
    ping,
    quic_ask,
    ssh_banner,
    tcp_ask,
    ttl_probe,
    udp_ask,
    url,
)
from lab.configuration import ABROAD_PORT, LAX1, LAX2, SHOP_PORT, TRAVEL_PORT, added, changed
from lab.gateway import LabGateway
from lab.load import client_sources
from lab.netns import Namespace
from lab.servers import logged
from lab.services import Services
from lab.topology import (
    CLIENT,
    CLIENT2,
    GATEWAY,
    ORIGIN1,
    ORIGIN2,
    PRIVATE,
    RESOLVER,
    SHARED,
    Lab,
)

ELSEWHERE = {4: "198.18.2.66", 6: "2001:db8:a2::66"}  # on origin2's link, not assigned to a host


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def by_http(client: Namespace, address: str, port: int) -> str:
    status, body = curl(client, url(address, port, "https" if port in (443, SHOP_PORT) else "http"))
    assert status == 200, body
    return body.split()[0]


def by_tcp(client: Namespace, address: str, port: int) -> str:
    return tcp_ask(client, address, port).address


def by_udp(client: Namespace, address: str, port: int) -> str:
    return udp_ask(client, address, port).address


def by_quic(client: Namespace, address: str, port: int) -> str:
    return quic_ask(client, address, port).address


@dataclass(frozen=True)
class Row:
    """A connection and its expected source: an egress IP's addresses, or None for the nearest egress IP."""

    ask: Callable[[Namespace, str, int], str]
    origin: dict[int, str]
    port: int
    reason: str
    egress: dict[int, str] | None
    policy: str | None = None

    @property
    def protocol(self) -> str:
        return "udp" if self.ask in (by_udp, by_quic) else "tcp"

    def holds(self, gateway: LabGateway, family: int) -> None:
        told = foretold(gateway, self.origin[family], self.protocol, self.port)
        seen = self.ask(gateway.lab.client, self.origin[family], self.port)
        if self.egress is None:
            assert seen in dedicated(family)
        else:
            assert seen == leaves_from(self.egress, family)
        assert told["source_ip"] == seen
        assert (told["reason"], told["policy"]) == (self.reason, self.policy)
        assert told["verdict"] == ("shared" if self.egress is SHARED else "dedicated")
        assert told["egress"] == (
            "shared" if self.egress is SHARED else "lax-1" if seen == leaves_from(LAX1, family) else "lax-2"
        )


ROWS = {
    "policy, TCP": Row(by_tcp, ORIGIN1, 9000, "policy", LAX1, "bank"),
    "policy, http": Row(by_http, ORIGIN1, 80, "policy", LAX1, "bank"),
    "policy, https": Row(by_http, ORIGIN1, 443, "policy", LAX1, "bank"),
    "policy, UDP": Row(by_udp, ORIGIN1, 9000, "policy", LAX1, "bank"),
    "policy, QUIC": Row(by_quic, ORIGIN1, 443, "policy", LAX1, "bank"),
    "no policy, TCP": Row(by_tcp, ORIGIN2, 9000, "nearest", None),
    "no policy, http": Row(by_http, ORIGIN2, 80, "nearest", None),
    "no policy, UDP": Row(by_udp, ORIGIN2, 9000, "nearest", None),
    "no policy, QUIC": Row(by_quic, ORIGIN2, 443, "nearest", None),
    "egress: default, TCP": Row(by_http, ORIGIN2, SHOP_PORT, "default", SHARED, "shop"),
    "egress: default, UDP": Row(by_udp, ORIGIN2, SHOP_PORT, "default", SHARED, "shop"),
    "primary elsewhere, TCP": Row(by_http, ORIGIN2, TRAVEL_PORT, "fallback", LAX2, "travel"),
    "primary elsewhere, UDP": Row(by_udp, ORIGIN2, TRAVEL_PORT, "fallback", LAX2, "travel"),
    "DNS to an origin, TCP": Row(by_tcp, ORIGIN1, 53, "dns", SHARED),
    "DNS to an origin, UDP": Row(by_udp, ORIGIN1, 53, "dns", SHARED),
    "private network, TCP": Row(by_tcp, PRIVATE, 9000, "tunnel", SHARED),
    "private network, http": Row(by_http, PRIVATE, 80, "tunnel", SHARED),
    "private network, UDP": Row(by_udp, PRIVATE, 9000, "tunnel", SHARED),
    "private network, QUIC": Row(by_quic, PRIVATE, 443, "tunnel", SHARED),
}


@families
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_row(enforced: LabGateway, family: int, row: Row) -> None:
    row.holds(enforced, family)


def test_the_command_says_what_the_view_does(enforced: LabGateway) -> None:
    question = ["--src", CLIENT[6], "--dst", ORIGIN1[6], "--protocol", "udp", "--dport", "443"]
    assert enforced.json("explain", *question) == foretold(enforced, ORIGIN1[6], "udp", 443)


@families
def test_servers_logs_say_the_same(enforced: LabGateway, services: Services, family: int) -> None:
    nginx = services.nginx["origin1"]
    (seen,) = logged(nginx.seen, lambda: by_http(enforced.lab.client, ORIGIN1[family], 443))
    assert seen.address == leaves_from(LAX1, family)
    by_udp(enforced.lab.client, ORIGIN2[family], TRAVEL_PORT)
    assert services.reporter["origin2"].seen("udp")[-1].address == leaves_from(LAX2, family)


@families
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_dns_to_a_resolver_is_shared(
    enforced: LabGateway, services: Services, family: int, tcp: bool
) -> None:
    told = foretold(enforced, RESOLVER[family], "tcp" if tcp else "udp", 53)
    assert (told["reason"], told["source_ip"]) == ("dns", SHARED[family])
    assert dig(enforced.lab.client, RESOLVER[family], "bank.lab", "AAAA", tcp=tcp) == [ORIGIN1[6]]
    assert services.resolver.queries()[-1] == (SHARED[family], "bank.lab", "AAAA")


@pytest.mark.rfc5508_req1
@pytest.mark.rfc5508_req10a
@pytest.mark.rfc6888_req2
@families
def test_ping_is_shared(enforced: LabGateway, services: Services, family: int) -> None:
    told = foretold(enforced, ORIGIN1[family], "icmp")
    assert (told["reason"], told["source_ip"]) == ("icmp", SHARED[family])

    def pings() -> None:
        assert ping(enforced.lab.client, ORIGIN1[family], count=3)
        assert ping(enforced.lab.client, ORIGIN1[family], count=2, options=("-s", "4000"))

    seen = logged(lambda: services.reporter["origin1"].seen("icmp"), pings, 5)
    assert [echo.address for echo in seen] == [SHARED[family]] * 5


@families
def test_udp_is_shared_when_it_is_not_proxied(enforced: LabGateway, family: int) -> None:
    config = enforced.lab.config(proxy={"tcp": True, "udp": False})
    with UdpFlow(enforced.lab.client, ORIGIN1[family]) as lasting:
        assert lasting.ask().address == leaves_from(LAX1, family)
        enforced.reload(config)
        try:
            for origin in (ORIGIN1, ORIGIN2):
                Row(by_udp, origin, 9000, "udp-off", SHARED).holds(enforced, family)
                Row(by_quic, origin, 443, "udp-off", SHARED).holds(enforced, family)
            Row(by_tcp, ORIGIN1, 9000, "policy", LAX1, "bank").holds(enforced, family)
            Row(by_udp, ORIGIN1, 53, "dns", SHARED).holds(enforced, family)
            assert lasting.ask().address == leaves_from(LAX1, family)
        finally:
            enforced.reload(enforced.lab.config())
    Row(by_quic, ORIGIN1, 443, "policy", LAX1, "bank").holds(enforced, family)


@families
def test_tcp_is_shared_when_it_is_not_proxied(enforced: LabGateway, family: int) -> None:
    enforced.reload(enforced.lab.config(proxy={"tcp": False, "udp": True}))
    try:
        Row(by_tcp, ORIGIN1, 9000, "tcp-off", SHARED).holds(enforced, family)
        Row(by_udp, ORIGIN1, 9000, "policy", LAX1, "bank").holds(enforced, family)
    finally:
        enforced.reload(enforced.lab.config())


@pytest.mark.rfc4787_req2
@families
def test_clients_without_a_policy_are_spread_and_each_stays(enforced: LabGateway, family: int) -> None:
    client = enforced.lab.client
    sources = client_sources(family) + client_sources(family, network=2)
    namespaces = [client] * 8 + [enforced.lab.client2] * 8
    chosen = {}
    for namespace, source in zip(namespaces, sources, strict=True):
        chosen[source] = tcp_ask(namespace, ORIGIN2[family], source=source).address
        assert chosen[source] in dedicated(family, source)
        assert foretold(enforced, ORIGIN2[family], "tcp", 9000, source)["source_ip"] == chosen[source]
    first = {leaves_from(LAX1, family, source) for source in sources}
    assert {address in first for address in chosen.values()} == {True, False}
    for namespace, source in zip(namespaces, sources, strict=True):
        for ask, port in ((tcp_ask, 9000), (udp_ask, 9000)):
            assert ask(namespace, ORIGIN2[family], port, source).address == chosen[source]


def take(gateway: LabGateway, egress: dict[int, str], family: int) -> None:
    """Remove an egress address without the enforcer."""
    if family == 4:
        gateway.lab.gw.ip(f"addr del {egress[4]}/32 dev out0")
    else:
        gateway.lab.gw.ip(f"route del local {egress[6]} dev lo table local")


def give(gateway: LabGateway, egress: dict[int, str], family: int) -> None:
    if family == 4:
        gateway.lab.gw.ip(f"addr add {egress[4]}/32 dev out0")
        # The neighbour's entry may have failed meanwhile.
        gateway.lab.net.ip(f"neigh flush to {egress[4]} dev gw0")
    else:
        gateway.lab.gw.ip(f"route add local {egress[6]} dev lo table local")


def follows(gateway: LabGateway, address: str, port: int, source_ip: str | None) -> None:
    """Wait until the verdict has this source address (None: no address)."""
    wait_for(
        lambda: foretold(gateway, address, "tcp", port)["source_ip"] == source_ip,
        f"{address} port {port} from {source_ip}",
        patience=10,
    )


@families
def test_a_client_moves_when_its_address_goes_and_then_stays(enforced: LabGateway, family: int) -> None:
    client = enforced.lab.client
    before = tcp_ask(client, ORIGIN2[family]).address
    mine, other = (LAX1, LAX2) if before == leaves_from(LAX1, family) else (LAX2, LAX1)
    take(enforced, mine, family)
    try:
        follows(enforced, ORIGIN2[family], 9000, leaves_from(other, family))
        assert tcp_ask(client, ORIGIN2[family]).address == leaves_from(other, family)
    finally:
        give(enforced, mine, family)
    wait_for(lambda: egresses(enforced)["lax-1"]["available"] and egresses(enforced)["lax-2"]["available"])
    assert tcp_ask(client, ORIGIN2[family]).address == leaves_from(other, family)
    assert udp_ask(client, ORIGIN2[family]).address == leaves_from(other, family)
    # Move the client back to its first egress IP for the following tests.
    take(enforced, other, family)
    follows(enforced, ORIGIN2[family], 9000, before)
    tcp_ask(client, ORIGIN2[family])
    give(enforced, other, family)


@families
def test_a_removed_address_makes_way_for_the_fallback_and_comes_back(
    enforced: LabGateway, family: int
) -> None:
    config = changed(
        enforced.lab.config(), "policies", "bank", egress={"ipv4": LAX1[4], "ipv4_fallback": LAX2[4]}
    )
    enforced.reload(config)
    try:
        Row(by_tcp, ORIGIN1, 9000, "policy", LAX1, "bank").holds(enforced, family)
        take(enforced, LAX1, family)
        try:
            began = time.monotonic()
            follows(enforced, ORIGIN1[family], 9000, leaves_from(LAX2, family))
            print(f"noticed within {time.monotonic() - began:.2f} s")
            Row(by_tcp, ORIGIN1, 9000, "fallback", LAX2, "bank").holds(enforced, family)
            Row(by_udp, ORIGIN1, 9000, "fallback", LAX2, "bank").holds(enforced, family)
            lax1 = egresses(enforced)["lax-1"]
            assert (lax1["available_ipv4"], lax1["available_ipv6"]) == (family == 6, family == 4)
            assert not lax1["available"]
            # The availability of one family's address does not depend on the other's.
            other = 10 - family
            Row(by_tcp, ORIGIN1, 9000, "policy", LAX1, "bank").holds(enforced, other)
        finally:
            give(enforced, LAX1, family)
        follows(enforced, ORIGIN1[family], 9000, leaves_from(LAX1, family))
        Row(by_tcp, ORIGIN1, 9000, "policy", LAX1, "bank").holds(enforced, family)
    finally:
        enforced.reload(enforced.lab.config())


@pytest.mark.rfc5508_req8
@families
def test_without_a_fallback_it_is_refused_and_counted(enforced: LabGateway, family: int) -> None:
    told = foretold(enforced, ORIGIN2[family], "tcp", ABROAD_PORT)
    assert (told["verdict"], told["reason"], told["source_ip"]) == ("refused", "unavailable", None)
    assert (told["policy"], told["egress"]) == ("abroad", "nyc-1")
    assert "nyc-1 is at nyc, this gateway at lax" in told["description"]
    before, admitted = packets(enforced)["unavailable"], total(enforced)
    for ask, word in ((tcp_ask, "refused"), (udp_ask, "prohibited")):
        began = time.monotonic()
        with pytest.raises(OSError, match=r"refused|No route|denied") as refusal:
            ask(enforced.lab.client, ORIGIN2[family], ABROAD_PORT)
        assert fate(refusal.value) == word
        assert time.monotonic() - began < 3
    assert packets(enforced)["unavailable"] == before + 2
    assert total(enforced) == admitted


@families
def test_a_fallback_of_0_0_0_0_is_the_shared_address(enforced: LabGateway, family: int) -> None:
    config = changed(
        enforced.lab.config(),
        "policies",
        "abroad",
        egress={"ipv4": "203.0.113.20", "ipv4_fallback": "0.0.0.0"},
    )
    enforced.reload(config)
    try:
        for ask in (by_http, by_udp):
            Row(ask, ORIGIN2, ABROAD_PORT, "fallback-shared", SHARED, "abroad").holds(enforced, family)
    finally:
        enforced.reload(enforced.lab.config())


@families
def test_the_first_policy_in_precedence_decides(enforced: LabGateway, family: int) -> None:
    source = client_sources(family)[3]
    narrow = {
        "name": "one client",
        "precedence": 5,
        "traffic": f"net.src.ip == {source} and not net.dst.port in {{80 443}}",
        "egress": {"ipv4": LAX2[4]},
    }
    enforced.reload(added(enforced.lab.config(), "policies", narrow))
    try:
        seen = {
            (address, port): (
                tcp_ask(enforced.lab.client, ORIGIN1[family], port, address).address
                if port == 9000
                else curl(enforced.lab.client, url(ORIGIN1[family], port), address)[1].split()[0]
            )
            for address in (CLIENT[family], source)
            for port in (80, 9000)
        }
        assert seen == {
            (CLIENT[family], 80): leaves_from(LAX1, family),
            (CLIENT[family], 9000): leaves_from(LAX1, family),
            (source, 80): leaves_from(LAX1, family, source),
            (source, 9000): leaves_from(LAX2, family, source),
        }
    finally:
        enforced.reload(enforced.lab.config())


@pytest.mark.rfc4787_req12b
@pytest.mark.rfc5508_req4b
@pytest.mark.rfc5508_req10a
@families
@pytest.mark.parametrize("origin", [ORIGIN1, PRIVATE], ids=["dedicated", "shared"])
def test_port_unreachable_reaches_the_client(
    enforced: LabGateway, family: int, origin: dict[int, str]
) -> None:
    """The kernel gives an error to the socket that its inner header names: that header is translated."""
    with UdpFlow(enforced.lab.client, origin[family], 9) as flow:
        with pytest.raises(ConnectionRefusedError):
            flow.ask()
        assert flow.error() == IcmpError(origin[family], *((3, 3) if family == 4 else (1, 4)))


@pytest.mark.rfc5508_req4a
@pytest.mark.rfc5508_req4c
@families
def test_the_inner_header_of_an_error_is_translated_back(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        Capture(
            lab.client, "eth0", lab.directory, expression="icmp or icmp6", direction="in", snap=256
        ) as inside,
        UdpFlow(lab.client, ORIGIN1[family], 9) as flow,
    ):
        port = flow.socket.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            flow.ask(b"x" * 32)
    errors = [frame for frame in inside.frames() if b"x" * 32 in frame]
    assert len(errors) == 1
    inner = errors[0][14 + (20 if family == 4 else 40) + 8 :]
    start, length = (12, 4) if family == 4 else (8, 16)
    number = family_of(CLIENT[family])
    assert inner[start : start + length] == socket.inet_pton(number, CLIENT[family])
    assert inner[start + length : start + 2 * length] == socket.inet_pton(number, ORIGIN1[family])
    ports = 20 if family == 4 else 40
    assert struct.unpack_from("!HH", inner, ports) == (port, 9)


@pytest.mark.rfc5508_req10a
@families
def test_ttl_probes_walk_the_way(enforced: LabGateway, family: int) -> None:
    exceeded = (11, 0) if family == 4 else (3, 0)
    router = "198.51.100.254" if family == 4 else "2001:db8:ffff::fe"
    assert [ttl_probe(enforced.lab.client, ORIGIN1[family], ttl) for ttl in (1, 2, 3)] == [
        IcmpError(GATEWAY[family], *exceeded),
        IcmpError(router, *exceeded),
        IcmpError(ORIGIN1[family], *((3, 3) if family == 4 else (1, 4))),
    ]


@families
def test_a_clients_error_about_a_flow_leaves_with_the_flows_address(
    enforced: LabGateway, family: int
) -> None:
    """RFC 5508, 4.2: the origin answers late, to a client socket that is closed."""
    lab = enforced.lab
    before = packets(enforced)["icmp-error"]
    with closing(lab.origin1.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM)) as late:
        late.bind((ORIGIN1[family], 9100))
        late.settimeout(5)
        with UdpFlow(lab.client, ORIGIN1[family], 9100) as flow:
            flow.socket.send(b"?")
            received, peer = late.recvfrom(64)
        assert (received, peer[0]) == (b"?", leaves_from(LAX1, family))
        late.connect(peer)
        with Capture(lab.net, "gw0", lab.directory, expression="icmp or icmp6", direction="in") as outside:
            late.send(b"too late")
            with pytest.raises(ConnectionRefusedError):
                late.recv(64)
    assert outside.sources() == {leaves_from(LAX1, family): 1}
    assert packets(enforced)["icmp-error"] == before + 1


@pytest.mark.rfc6888_req6
@families
def test_between_inside_networks_nothing_is_touched(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with uncounted(enforced):
        told = foretold(enforced, CLIENT2[family], "tcp", 9000)
        assert (told["verdict"], told["reason"]) == ("untouched", "inside")
        for source in client_sources(family):
            assert tcp_ask(lab.client, CLIENT2[family], source=source).address == source
            assert udp_ask(lab.client, CLIENT2[family], source=source).address == source
        assert ping(lab.client, CLIENT2[family])
        # Port 53 has no special role here: a closed port refuses.
        with pytest.raises(ConnectionRefusedError):
            tcp_ask(lab.client, CLIENT2[family], 53)
        with pytest.raises(ConnectionRefusedError):
            udp_ask(lab.client, CLIENT2[family], 53)


@families
def test_to_the_gateway_itself_nothing_is_touched(
    enforced: LabGateway, services: Services, family: int
) -> None:
    lab = enforced.lab
    told = foretold(enforced, GATEWAY[family], "tcp", 22)
    assert (told["verdict"], told["reason"]) == ("untouched", "local")
    with uncounted(enforced):
        assert ssh_banner(lab.client, GATEWAY[family]).startswith("SSH-2.0")
        assert services.sshd.seen()[-1].address == CLIENT[family]
        for tcp in (False, True):
            assert dig(lab.client, GATEWAY[family], "shop.lab", tcp=tcp) == [ORIGIN2[4]]
            assert services.gateway_resolver.queries()[-1] == (CLIENT[family], "shop.lab", "A")
        assert ping(lab.client, GATEWAY[family])
        # The gateway's address on another link and the shared address are the gateway's own, too.
        assert ssh_banner(lab.client, SHARED[family]).startswith("SSH-2.0")
        assert services.sshd.seen()[-1].address == CLIENT[family]


@families
def test_from_the_gateway_itself_nothing_is_touched(
    enforced: LabGateway, services: Services, family: int
) -> None:
    lab = enforced.lab
    with uncounted(enforced):
        for port, scheme in ((80, "http"), (443, "https")):
            assert curl(lab.gw, url(ORIGIN1[family], port, scheme))[1].split()[0] == SHARED[family]
        assert udp_ask(lab.gw, ORIGIN1[family]).address == SHARED[family]
        assert quic_ask(lab.gw, ORIGIN1[family]).address == SHARED[family]
        assert tcp_ask(lab.gw, CLIENT2[family]).address == ("10.0.2.1" if family == 4 else "fd00:2::1")
        assert ping(lab.gw, ORIGIN1[family])
    # The gateway's resolver queries upstream from the gateway's own address.
    assert {asker for asker, _, _ in services.resolver.queries()} <= {SHARED[4], SHARED[6]}


@pytest.mark.rfc5382_req9
@families
def test_unreachable_destinations_answer_as_a_router_does(enforced: LabGateway, family: int) -> None:
    """A flow to an unreachable destination gives its count back; ICMP errors reach the client."""
    with pytest.raises(OSError, match=r"No route|unreachable|timed out") as failure:
        tcp_ask(enforced.lab.client, ELSEWHERE[family], timeout=10)
    assert fate(failure.value) == "prohibited"  # EHOSTUNREACH, from the internet's router


@families
def test_in_the_end_counts_and_conntrack_agree(enforced: LabGateway, family: int) -> None:
    with Session(enforced.lab.client, ORIGIN1[family]):
        assert agree(enforced)
