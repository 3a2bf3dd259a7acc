"""Tests for leaks and unsolicited packets: captures on the outside wire while parts of the gateway fail."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from sabotage import sabotage
from truth import wait_for

from lab.capture import Capture
from lab.clients import Session, UdpFlow, family_of, fate, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2, Document, changed, without
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import (
    CLIENT,
    CLIENT2,
    HOSTS,
    ORIGIN1,
    ORIGIN2,
    PRIVATE,
    RESOLVER,
    SHARED,
    Lab,
)

families = pytest.mark.parametrize("family", [4, 6])

PLANNED = [ip_network(address) for owner in (SHARED, LAX1, LAX2) for address in owner.values()]
FIRST = {4: LAX1[4], 6: "2001:db8:1::5"}  # an address of lax-1 in each family
UNUSED_PORTS = range(20000, 60000)


@cache
def frames(gateway: str, count: int = 2000) -> list[bytes]:
    """Valid, malformed and hostile packets of clients, from all their addresses, in both families."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
    from scapy.layers.inet6 import (
        ICMPv6DestUnreach,
        ICMPv6EchoRequest,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
    )
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

    dice = random.Random(1)
    head = Ether(src="02:00:00:00:00:02", dst=gateway)
    made = []
    for _ in range(count):
        family = dice.choice((4, 6))
        host, port = dice.choice(HOSTS), dice.choice(UNUSED_PORTS)
        to = dice.choice((ORIGIN1, ORIGIN2, PRIVATE))[family]
        source = f"10.0.1.{host}" if family == 4 else f"fd00:1::{host:x}"
        ip: Any = IP(src=source, dst=to) if family == 4 else IPv6(src=source, dst=to)
        ping_: Any = ICMP(id=port) if family == 4 else ICMPv6EchoRequest(id=port)
        dport = dice.choice((53, 80, 443, 8081, 8082, 8443, 9000, 9001))
        tcp, udp = TCP(sport=port, dport=dport, seq=port), UDP(sport=port, dport=dport)
        kind = dice.randrange(12)
        if kind < 4:
            tcp.flags = dice.choice(("S", "S", "S", "A", "SA", "R", "RA", "F", "FA", "", "FPU", "SF", "SR"))
            packet = ip / tcp / Raw(bytes(dice.choice((0, 0, 10, 500))))
        elif kind < 7:
            packet = ip / udp / Raw(bytes(dice.choice((0, 1, 500))))
        elif kind == 7:
            packet = ip / ping_
        elif kind == 8:  # an ICMP error about a connection that does not exist
            inner = (IP(src=to, dst=source) if family == 4 else IPv6(src=to, dst=source)) / TCP(
                sport=dport, dport=port
            )
            packet = ip / (ICMP(type=3, code=1) if family == 4 else ICMPv6DestUnreach()) / inner
        elif kind == 9:  # fragments, whose other parts may be missing
            first, offset = dice.choice((True, False)), dice.choice((0, 1, 185))
            if family == 4:
                ip.id, ip.flags, ip.frag = port, int(first), offset
                packet = ip / udp / Raw(bytes(64))
            else:
                packet = (
                    ip
                    / IPv6ExtHdrFragment(id=port, m=int(first), offset=offset, nh=17)
                    / udp
                    / Raw(bytes(64))
                )
        elif kind == 10:
            if family == 4:
                ip.options = [IPOption_NOP()] * 4
                packet = ip / tcp
            else:
                packet = ip / IPv6ExtHdrDestOpt() / tcp
        else:  # protocols without ports, and false headers
            number = dice.choice((6, 17, 41, 47, 50, 51, 89, 132, 136, 253))
            if family == 4:
                ip.proto = number
            else:
                ip.nh = number
            packet = ip / Raw(dice.randbytes(dice.choice((0, 3, 12, 60))))
        made.append(bytes(head / packet))
    return made


class Chatter(threading.Thread):
    """A client that sends some 500 packets a second until the block ends."""

    def __init__(self, lab: Lab):
        super().__init__(daemon=True)
        mac = lab.gw.run("ip", "-br", "link", "show", "in0").stdout.split()[2]
        self._frames = frames(mac)
        self._socket = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind(("eth0", 0))
        self._ended = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):  # a full queue loses the packet
                self._socket.send(self._frames[self.sent % len(self._frames)])
            self.sent += 1
            time.sleep(0.002)

    def __enter__(self) -> Chatter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self._socket.close()

    def for_a_while(self, packets: int = 300) -> None:
        """Wait until the client has sent this number of packets more."""
        goal = self.sent + packets
        deadline = time.monotonic() + 60
        while self.sent < goal and time.monotonic() < deadline:
            time.sleep(0.01)


def unplanned(sources: Counter[str], *more: str) -> dict[str, int]:
    """The sources of a capture that are neither planned nor in ``more``."""
    allowed = [*PLANNED, *map(ip_network, more)]
    return {
        source: count
        for source, count in sources.items()
        if not any(
            ip_address(source) in network
            for network in allowed
            if network.version == ip_address(source).version
        )
    }


@contextlib.contextmanager
def nothing_leaks(lab: Lab, *more: str, silent: bool = False) -> Iterator[None]:
    """Assert that no unplanned source appears outside, and some packet does (unless ``silent``)."""
    capture = Capture(lab.net, "gw0", lab.directory, direction="in").start()
    try:
        yield
    finally:
        capture.stop()
    sources = capture.sources()
    assert unplanned(sources, *more) == {}
    assert silent or sum(sources.values()) > 0


def reasons(gateway: LabGateway) -> Counter[str]:
    """Packets by reason; for a refusal, flows."""
    return Counter({row["reason"]: max(row["packets"], row["flows"]) for row in gateway.json("reasons")})


def fate_of(attempt: Callable[[], object]) -> str:
    """The result of an attempt in one word; "answered" if it succeeds."""
    try:
        attempt()
    except OSError as error:
        return fate(error)
    return "answered"


def eventually(check: Callable[[], bool], patience: float = 20.0) -> bool:
    """Whether ``check`` becomes true within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def forward(lab: Lab, on: bool) -> None:
    lab.gw.sysctls({"net.ipv4.ip_forward": int(on), "net.ipv6.conf.all.forwarding": int(on)})


# --- start and end


def test_nothing_leaks_from_before_the_start_until_after_the_end(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    """Forwarding is off before the start, so every packet that leaves must be translated."""
    forward(lab, False)
    try:
        with Chatter(lab) as chatter, nothing_leaks(lab):
            chatter.for_a_while()
            gateway.start()
            chatter.for_a_while()
            for family in (4, 6):
                assert ip_address(tcp_ask(lab.client, ORIGIN1[family]).address) in ip_network(LAX1[family])
            gateway.run("down")
            chatter.for_a_while()
            for family in (4, 6):
                assert (
                    fate_of(lambda family=family: udp_ask(lab.client, ORIGIN1[family], timeout=0.5))
                    != "answered"
                )
    finally:
        forward(lab, True)


def test_a_gateway_that_forwards_already_is_closed_by_the_first_step(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    """The kernel forwards untranslated packets until the table exists; from then on nothing leaks."""
    with Chatter(lab) as chatter:
        with Capture(lab.net, "gw0", lab.directory, direction="in") as before:
            chatter.for_a_while()
        assert unplanned(before.sources())
        gateway.launch()
        assert eventually(lambda: "inet enforcer" in lab.gw.run("nft", "list", "tables").stdout)
        with nothing_leaks(lab):
            gateway.wait()
            chatter.for_a_while()
            for family in (4, 6):
                assert ip_address(tcp_ask(lab.client, ORIGIN1[family]).address) in ip_network(LAX1[family])
                # conntrack knows connections from before the start as untranslated.
                assert ping(lab.client, ORIGIN2[family])


def storm(config: Document) -> Iterator[Document]:
    """Configurations that differ in every part that a reload can change."""
    yield changed(config, "policies", "bank", egress={"ipv4": LAX2[4], "ipv6": LAX2[6]})
    yield without(without(config, "policies", "bank", "travel"), "egress_ips", "lax-1")
    yield config | {"proxy": {"tcp": True, "udp": False}}
    yield config | {"mark_mask": 0xFFFF00}
    yield config | {"limits": {"connections_per_origin": 5, "flows": 2048, "origins": 2048}}
    yield config | {"private_networks": []}
    yield config


def test_nothing_leaks_through_reloads_a_crash_and_restarts(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.start()
    with Chatter(lab) as chatter, nothing_leaks(lab):
        for config in storm(lab.config()):
            gateway.reload(config)
            chatter.for_a_while(100)
        gateway.kill()
        chatter.for_a_while()
        gateway.start()
        chatter.for_a_while()
        gateway.stop()
        chatter.for_a_while(100)
        gateway.start()
    assert reasons(gateway)["not-ready"] == 0
    assert gateway.run("plan").stdout.startswith("nothing to do")


SABOTAGE = (
    "nft delete table inet enforcer",
    "nft flush chain inet enforcer forward",
    "nft flush chain inet enforcer translate",
    "unhook in0 ingress",
    "unhook out0 egress",
    "unhook out0 ingress",
)


def test_nothing_leaks_while_others_break_something(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    """Table and programs each prevent leaks while the other is missing, with the daemon and without."""
    gateway.start()
    with Chatter(lab) as chatter, nothing_leaks(lab):
        for command in SABOTAGE:
            said = len(gateway.said())
            sabotage(lab.gw, command)
            assert eventually(lambda said=said: "restored" in gateway.said()[said:]), (
                command,
                gateway.said(),
            )
            chatter.for_a_while(100)
        for command in SABOTAGE:
            gateway.kill()
            sabotage(lab.gw, command)
            chatter.for_a_while(200)
            gateway.start()
            chatter.for_a_while(50)
    seen = reasons(gateway)
    # "leak": the table was missing; "unmarked": the program was.
    assert seen["leak"] > 0
    assert seen["unmarked"] > 0
    assert gateway.json("status")["leaks_prevented"] >= seen["leak"] + seen["unmarked"]


def test_nothing_leaks_when_addresses_are_lost(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    with Chatter(lab) as chatter, nothing_leaks(lab):
        chatter.for_a_while(100)
        lab.gw.ip(f"addr del {LAX1[4]}/32 dev out0", f"route del local {LAX1[6]} dev lo")
        chatter.for_a_while(200)
        for family in (4, 6):
            assert fate_of(lambda family=family: tcp_ask(lab.client, ORIGIN1[family])) == "refused"
        lab.gw.ip("addr flush dev out0 scope host", f"route del local {LAX2[6]} dev lo")
        chatter.for_a_while(200)
        for family in (4, 6):
            assert fate_of(lambda family=family: tcp_ask(lab.client, ORIGIN2[family])) == "refused"
            assert ping(lab.client, ORIGIN2[family])
        lab.gw.ip("link set out0 down", "link set out0 up")
        lab.gw.ip(
            "addr replace 2001:db8:ffff::1/64 dev out0 nodad",
            "route replace default via 198.51.100.254",
            "route replace default via 2001:db8:ffff::fe",
        )
        gateway.reload()
        chatter.for_a_while(200)
        for family in (4, 6):
            assert eventually(
                lambda family=family: fate_of(lambda: tcp_ask(lab.client, ORIGIN1[family])) == "answered"
            )
    assert reasons(gateway)["unavailable"] > 0


# --- full tables


@pytest.mark.rfc6888_req5a
@pytest.mark.rfc6888_req11a
@families
def test_a_full_flow_table_refuses_what_is_new_and_leaks_nothing(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    """The table is full of answered flows, none of which is evicted."""
    sizes = {"flows": 1024, "origins": 4096, "flows_per_client": 1024, "unanswered_per_client": 1024}
    gateway.write(lab.config(limits={"connections_per_origin": 40000, **sizes}))
    gateway.start()
    with (
        Session(lab.client, ORIGIN1[family]) as session,
        nothing_leaks(lab),
        contextlib.ExitStack() as held,
    ):
        for _ in range(1023):
            held.enter_context(Session(lab.client, ORIGIN1[family]))
        assert session.ask() == session.seen
        fates = {fate_of(lambda: tcp_ask(lab.client2, ORIGIN2[family])) for _ in range(5)}
        assert fates == {"refused"}
        assert ping(lab.client, ORIGIN1[family])
        wait_for(lambda: "the table of flows is full" in gateway.said(), "the log saying so")
        assert gateway.json("status")["tables"]["flows"]["full"]
    seen = reasons(gateway)
    assert seen["flows-full"] >= 5
    assert len(gateway.json("flows")) <= 1024
    assert gateway.json("status")["refused"] >= seen["flows-full"]


@pytest.mark.rfc6888_req11d
@families
def test_unanswered_flows_make_room_and_live_ones_stay(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    sizes = {"flows": 8192, "origins": 1024, "unanswered_per_client": 4096}
    gateway.write(lab.config(limits={"connections_per_origin": 40000, **sizes}))
    gateway.start()
    with Session(lab.client, ORIGIN1[family]) as session, nothing_leaks(lab):
        for port in range(20000, 22500):
            fate_of(lambda port=port: send(lab.client, family, ORIGIN1, 20000, port))
        assert session.ask() == session.seen
        assert ping(lab.client, ORIGIN1[family])
        # An origin that the gateway has not seen works, too.
        assert tcp_ask(lab.client, ORIGIN2[family]).address
    seen = reasons(gateway)
    assert not seen["origins-full"] and not seen["flows-full"]
    assert gateway.json("status")["tables"]["evicted"] >= 2500 - 1024


def send(client: Namespace, family: int, to: dict[int, str], source_port: int, port: int = 9001) -> None:
    """Send one datagram from a client's port; raises the ICMP error that an earlier one caused."""
    family_number = family_of(to[family])
    sender = _senders.setdefault(
        (client.name, family), client.socket(family_number, socket.SOCK_RAW, socket.IPPROTO_UDP)
    )
    header = source_port.to_bytes(2, "big") + port.to_bytes(2, "big") + (8).to_bytes(2, "big") + bytes(2)
    if family == 6:
        sender.setsockopt(socket.IPPROTO_IPV6, 7, 6)  # IPV6_CHECKSUM: the checksum's offset in the header
    sender.sendto(header, (to[family], 0))


_senders: dict[tuple[str, int], socket.socket] = {}


@pytest.fixture(autouse=True)
def close_senders() -> Iterator[None]:
    """Close the raw sockets of each test."""
    yield
    for sender in _senders.values():
        sender.close()
    _senders.clear()


# --- packets


@families
def test_packets_that_conntrack_calls_invalid_stay_inside(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    """Segments out of the window and with impossible flags, within a live connection and without one."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6
    from scapy.packet import Raw

    gateway.start()
    raw = lab.client.socket(family_of(CLIENT[family]), socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw, Session(lab.client, ORIGIN1[family]) as session, nothing_leaks(lab):
        port = session.socket.getsockname()[1]
        before = reasons(gateway)
        ip: Any = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ORIGIN1[family])
        for flags in ("A", "PA", "SA", "", "FPU", "SF", "RS", "R"):
            for seq in (1, 0x7FFFFFFF, 0xFFFFFFFF):
                segment = ip / TCP(sport=port, dport=9000, flags=flags, seq=seq, ack=seq) / Raw(b"x" * 100)
                raw.sendto(bytes(segment), (ORIGIN1[family], 0))
        assert session.ask() == session.seen
        after = reasons(gateway)
    assert after["conntrack-invalid"] - before["conntrack-invalid"] >= 6
    assert gateway.json("status")["leaks_prevented"] >= after["conntrack-invalid"]


@pytest.mark.parametrize(
    ("hook", "mark", "reached"),
    [
        # Before routing: another slot, an unknown slot, none, all ones; bits outside the mark's mask.
        ("prerouting priority -150", "meta mark & 0xffff0000 | 0x3", True),
        ("forward priority -10", "0x3", True),
        ("forward priority -10", "0x1234", False),
        ("forward priority -10", "0", False),
        ("forward priority -10", "0xffff", False),
        ("forward priority 10", "0", False),
        ("postrouting priority 80", "0", False),
        ("postrouting priority 110", "0x3", False),
        ("prerouting priority -150", "meta mark | 0xabcd0000", True),
        ("postrouting priority 110", "meta mark | 0xabcd0000", True),
    ],
)
def test_marks_that_others_set_let_nothing_out(
    lab: Lab, services: Services, marked_gateway: LabGateway, hook: str, mark: str, reached: bool
) -> None:
    """A wrong mark may break a connection, but never gives it an unplanned source."""
    where = 'iifname "in0"' if hook.startswith("prerouting") else 'oifname "out0"'
    lab.gw.run(
        "nft",
        f"add table inet others; add chain inet others marks {{ type filter hook {hook}; }}; "
        f"add rule inet others marks {where} meta mark set {mark}",
    )
    try:
        with nothing_leaks(lab, silent=True):
            for family in (4, 6):
                for ask in (tcp_ask, udp_ask):
                    became = fate_of(
                        lambda ask=ask, to=ORIGIN1[family]: ask(lab.client, to, timeout=5 if reached else 0.5)
                    )
                    assert (became == "answered") == reached, (ask, family, became)
    finally:
        lab.gw.run("nft", "delete table inet others")
    for family in (4, 6):
        assert ip_address(tcp_ask(lab.client, ORIGIN1[family]).address) in ip_network(LAX1[family])


@pytest.fixture(scope="module")
def marked_gateway(lab: Lab, services: Services) -> Iterator[LabGateway]:
    """One daemon for all tests of marks."""
    gateway = LabGateway(lab, lab.config(mark_mask=0xFFFF)).start()
    yield gateway
    gateway.run("down")


# --- no way in

# Router, neighbour and multicast messages are no answers.
ANSWERS = "(ip or ip6) and not (icmp6 and ip6[40] >= 130 and ip6[40] <= 137) and not igmp"


@contextlib.contextmanager
def silence(lab: Lab, asker: str) -> Iterator[None]:
    """Assert that the gateway sends no packet to this outside address."""
    expression = f"{ANSWERS} and dst host {asker}"
    capture = Capture(lab.net, "gw0", lab.directory, direction="in", expression=expression).start()
    try:
        yield
    finally:
        capture.stop()
    assert [packet.summary() for packet in capture.packets()] == []


@pytest.mark.rfc5382_req4a
@families
def test_what_arrives_for_an_egress_address_gets_silence(
    lab: Lab, services: Services, marked_gateway: LabGateway, family: int
) -> None:
    gateway, egress = marked_gateway, FIRST[family]
    before = reasons(gateway)["unsolicited"]
    with silence(lab, RESOLVER[family]):
        for port in (22, 53, 80, 9000):
            assert fate_of(lambda port=port: tcp_ask(lab.resolver, egress, port, timeout=0.3)) == "silence"
            assert fate_of(lambda port=port: udp_ask(lab.resolver, egress, port, timeout=0.3)) == "silence"
        assert not ping(lab.resolver, egress, options=("-W", "0.3"))
        assert reasons(gateway)["unsolicited"] - before >= 9
        before = reasons(gateway)["unsolicited"]
        sent = 0
        for protocol in (2, 4, 6, 17, 33, 41, 47, 50, 51, 89, 103, 112, 115, 132, 136, 253):
            with lab.resolver.socket(family_of(egress), socket.SOCK_RAW, protocol) as raw:
                raw.sendto(bytes(40), (egress, 0))
                sent += 1
        assert eventually(lambda: reasons(gateway)["unsolicited"] - before >= sent), reasons(gateway)


@pytest.mark.rfc4787_req8
@pytest.mark.rfc5382_req3
@pytest.mark.rfc6888_req7
@pytest.mark.rfc6888_req8
@pytest.mark.rfc6888_req8c
@families
def test_a_live_flows_port_is_open_to_its_origin_only(
    lab: Lab, services: Services, marked_gateway: LabGateway, family: int
) -> None:
    with Session(lab.client, ORIGIN1[family]) as session, UdpFlow(lab.client, ORIGIN1[family]) as flow:
        udp = flow.ask()
        before = reasons(marked_gateway)["unsolicited"]
        tcp = session.seen
        assert fate_of(lambda: tcp_ask(lab.origin2, tcp.address, tcp.peer_port, timeout=0.5)) == "silence"
        assert fate_of(lambda: udp_ask(lab.origin2, udp.address, udp.peer_port, timeout=0.5)) == "silence"
        assert fate_of(lambda: udp_ask(lab.origin1, udp.address, udp.peer_port, timeout=0.5)) == "silence"
        assert reasons(marked_gateway)["unsolicited"] - before >= 3
        assert (session.ask(), flow.ask()) == (tcp, udp)


@families
def test_nobody_outside_opens_a_connection_to_a_client(
    lab: Lab, services: Services, marked_gateway: LabGateway, family: int
) -> None:
    network, router = {
        4: ("10.0.2.0/24", "198.51.100.1"),
        6: ("fd00:2::/64", "2001:db8:ffff::1"),
    }[family]
    before = reasons(marked_gateway)["inbound"]
    lab.net.ip(f"route add {network} via {router}")
    try:
        with silence(lab, RESOLVER[family]):
            assert fate_of(lambda: tcp_ask(lab.resolver, CLIENT2[family], timeout=0.5)) == "silence"
            assert fate_of(lambda: udp_ask(lab.resolver, CLIENT2[family], timeout=0.5)) == "silence"
            assert not ping(lab.resolver, CLIENT2[family], options=("-W", "0.3"))
    finally:
        lab.net.ip(f"route del {network}")
    assert reasons(marked_gateway)["inbound"] - before >= 3


@families
def test_no_service_of_the_gateway_answers_on_an_egress_address_to_clients_either(
    lab: Lab, services: Services, marked_gateway: LabGateway, family: int
) -> None:
    before = reasons(marked_gateway)["unsolicited"]
    assert fate_of(lambda: tcp_ask(lab.client, FIRST[family], 22, timeout=0.5)) == "silence"
    assert fate_of(lambda: tcp_ask(lab.client, FIRST[family], 53, timeout=0.5)) == "silence"
    assert fate_of(lambda: udp_ask(lab.client, FIRST[family], 53, timeout=0.5)) == "silence"
    assert not ping(lab.client, FIRST[family], options=("-W", "0.3"))
    assert reasons(marked_gateway)["unsolicited"] - before >= 4
