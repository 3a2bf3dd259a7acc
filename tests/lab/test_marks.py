"""Tests of marks like ours on other packets: the gateway's own and those of a network in no list.

The configuration does not list in1. Another nftables table masquerades the network behind it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from test_bad_input import NOBODY
from truth import counted, families, packets, running, wait_for

from enforcer.address import of_bytes, pack
from enforcer.kernel import conntrack, netlink
from enforcer.kernel.netlink import ACK, CREATE, REQUEST, Channel, Message
from enforcer.kernel.nft import protocol
from enforcer.kernel.nft_marks import NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE
from lab.capture import Capture
from lab.clients import Session, family_of, ping, tcp_ask, udp_ask
from lab.configuration import LAX2
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.servers import Seen
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, SHARED, Lab

SO_MARK = 36
MASK = 0x7FFF0000
SHARED_MARK, FIRST, SECOND = (slot << 16 for slot in (1, 2, 3))
MARKS = [SHARED_MARK, FIRST, SECOND, MASK, 0x2]
PORT = 9000
kinds = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
# include/uapi/linux/netfilter/nf_tables.h
NEWCHAIN, DELCHAIN = protocol.SUBSYSTEM | 3, protocol.SUBSYSTEM | 5
INTERFACES = {"inside": ["in0"], "outside": ["out0"]}


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    lab.gw.run(
        "nft",
        "add table inet others; "
        "add chain inet others post { type nat hook postrouting priority 100; }; "
        "add rule inet others post iifname in1 oifname out0 masquerade; "
        "add chain inet others marks { type filter hook prerouting priority -150; }",
    )
    with running(lab, lab.config(interfaces=INTERFACES, policies=[])) as gateway:
        yield gateway


def ask_marked(namespace: Namespace, address: str, kind: int, mark: int) -> Seen:
    """A reporter's view of a connection whose packets have the mark from the start."""
    with namespace.socket(family_of(address), kind) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.connect((address, PORT))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"?\n")
        return Seen(
            **json.loads(sock.makefile("rb").readline() if kind == socket.SOCK_STREAM else sock.recv(65536))
        )


@families
@kinds
@pytest.mark.parametrize("mark", MARKS, ids=hex)
def test_the_gateways_own_packets(enforced: LabGateway, family: int, kind: int, mark: int) -> None:
    """VPN daemons and proxies set such marks (SO_MARK) to route their own packets."""
    assert ask_marked(enforced.lab.gw, ORIGIN1[family], kind, mark).address == SHARED[family]
    assert not counted(enforced)


@families
@pytest.mark.parametrize("mark", MARKS, ids=hex)
def test_a_network_that_is_in_no_list(enforced: LabGateway, family: int, mark: int) -> None:
    gw = enforced.lab.gw
    gw.run("nft", f"add rule inet others marks iifname in1 meta mark set {mark:#x}")
    try:
        for ask in (tcp_ask, udp_ask):
            assert ask(enforced.lab.client2, ORIGIN1[family]).address == SHARED[family]
    finally:
        gw.run("nft", "flush chain inet others marks")
    assert not counted(enforced)


def to_the_network_in_no_list(lab: Lab, address: str) -> Capture:
    """A capture of the packets for this address that arrive in the unlisted network."""
    return Capture(lab.client2, "eth0", lab.directory, direction="in", expression=f"dst {address}")


@contextlib.contextmanager
def ruled(gw: Namespace, family: int, rule: str) -> Iterator[None]:
    """A rule that routes matching packets to the unlisted network."""
    gw.ip(f"route add default via {CLIENT2[family]} dev in1 table 200")
    gw.run("ip", f"-{family}", *f"rule add {rule} lookup 200".split())
    try:
        yield
    finally:
        gw.run("ip", f"-{family}", *f"rule del {rule} lookup 200".split())
        gw.run("ip", f"-{family}", *["route", "flush", "table", "200"])


@families
@pytest.mark.parametrize("rule", [f"fwmark {FIRST:#x}/{MASK:#x}", f"fwmark {SECOND:#x}"])
def test_a_rule_of_others_that_takes_clients_packets(enforced: LabGateway, family: int, rule: str) -> None:
    """Such packets are refused instead of leaving untranslated, and a warning names the rule."""
    lab, address = enforced.lab, ORIGIN1[family]
    before = packets(enforced)["astray"]
    with ruled(lab.gw, family, rule):
        with to_the_network_in_no_list(lab, address) as seen:
            fates = {}
            for number in range(8):  # sources that leave by either egress IP
                source = f"10.0.1.{2 + number}" if family == 4 else f"fd00:1::{2 + number:x}"
                try:
                    fates[source] = tcp_ask(lab.client, address, source=source).address
                except ConnectionRefusedError:
                    fates[source] = "refused"
        (warning,) = enforced.json("status")["warnings"]
        assert "fwmark" in warning and f"{MASK:#x}" in warning
        assert warning in enforced.run("check").stderr
    assert not seen.sources()
    taken = [source for source, fate in fates.items() if fate == "refused"]
    assert taken
    assert packets(enforced)["astray"] - before >= len(taken)
    assert enforced.json("status")["warnings"] == []
    assert tcp_ask(lab.client, address, source=taken[0]).address != SHARED[family]


@families
def test_marks_of_others_that_choose_another_route(enforced: LabGateway, family: int) -> None:
    """nftables sets the mark on arrival. The packets are refused, and a warning names rule and chain."""
    lab, address = enforced.lab, ORIGIN1[family]
    before = packets(enforced)["astray"]
    lab.gw.run("nft", "add rule inet others marks iifname in0 meta mark set meta mark or 0x10")
    try:
        with ruled(lab.gw, family, "fwmark 0x10/0xff"):
            with to_the_network_in_no_list(lab, address) as seen:
                with pytest.raises(ConnectionRefusedError):
                    tcp_ask(lab.client, address)
                with pytest.raises(OSError):
                    udp_ask(lab.client, address, timeout=1)
            (warning,) = enforced.json("status")["warnings"]
            assert "fwmark 0x10/0xff" in warning and "chain marks of nftables table inet others" in warning
            assert warning in enforced.run("check").stderr
        assert not seen.sources()
        assert packets(enforced)["astray"] >= before + 2
        assert enforced.json("status")["warnings"] == []
        assert tcp_ask(lab.client, address).address != SHARED[family]
    finally:
        lab.gw.run("nft", "flush chain inet others marks")


@pytest.mark.parametrize("family", [4, 6])
def test_check_without_the_right_to_read_nftables(enforced: LabGateway, family: int) -> None:
    """`check` warns about what it cannot read; the file is valid."""
    lab = enforced.lab
    check = [sys.executable, "-m", "enforcer", "--config", str(enforced.config), "check"]
    with ruled(lab.gw, family, "fwmark 0x10/0xff"):
        done = lab.gw.run(*NOBODY, *check)
    assert "valid" in done.stdout
    (said,) = [line for line in done.stderr.splitlines() if "could not be checked" in line]
    assert "rules of policy routing by marks of others" in said and "CAP_NET_ADMIN" in said


@contextlib.contextmanager
def never_quiet(gw: Namespace) -> Iterator[None]:
    """Simulates other software that has many chains and changes them all the time."""
    chains = "".join(f"add chain inet busy number{number}\n" for number in range(20_000))
    ending = threading.Event()
    name = netlink.attribute(NFTA_CHAIN_TABLE, b"busy\0") + netlink.attribute(NFTA_CHAIN_NAME, b"extra\0")
    batch = [
        Message(protocol.NFNL_MSG_BATCH_BEGIN, REQUEST, protocol.NFGEN_BATCH),
        Message(NEWCHAIN, REQUEST | CREATE, protocol.NFGEN + name),
        Message(DELCHAIN, REQUEST | ACK, protocol.NFGEN + name),
        Message(protocol.NFNL_MSG_BATCH_END, REQUEST, protocol.NFGEN_BATCH),
    ]

    def change() -> None:
        """Add and delete a chain hundreds of times a second, which nft(8) is too slow for."""
        with Channel(netlink.NETLINK_NETFILTER, "changing chains") as channel:
            while not ending.is_set():
                assert not channel.transact(batch)

    changing = threading.Thread(target=gw.call, args=(change,))
    gw.run("nft", "-f", "-", text=f"add table inet busy\n{chains}")
    changing.start()
    try:
        yield
    finally:
        ending.set()
        changing.join()
        gw.run("nft", "delete table inet busy")


def test_nftables_that_is_never_quiet(enforced: LabGateway) -> None:
    """The reload succeeds, `status` warns about unread rules, and the daemon goes on."""
    lab, said = enforced.lab, len(enforced.said())
    unread = "rules of policy routing by marks of others could not be checked"
    with ruled(lab.gw, 4, "fwmark 0x10/0xff"), never_quiet(lab.gw):
        wait_for(lambda: any(unread in line for line in enforced.json("status")["warnings"]))
        enforced.reload()
        lab.gw.ip(f"address del {LAX2[4]}/32 dev out0")
        wait_for(lambda: "lax-2: IPv4 unavailable" in enforced.said()[said:])
        lab.gw.ip(f"address add {LAX2[4]}/32 dev out0")
    wait_for(lambda: "lax-2: available" in enforced.said()[said:])
    assert "error" not in enforced.said()[said:]
    assert enforced.json("status")["warnings"] == []


@families
@pytest.mark.parametrize("route", ["throw", "unreachable"])
def test_marks_of_others_where_there_is_no_route(enforced: LabGateway, family: int, route: str) -> None:
    """The programs find no route. Forwarding was on before the start, and the rule's link is unlisted."""
    lab, address = enforced.lab, ORIGIN1[family]
    before = packets(enforced)["unlisted"]
    lab.gw.run("nft", "add rule inet others marks iifname in0 meta mark set meta mark or 0x10")
    lab.gw.ip(f"route add {route} {address}")
    try:
        with (
            ruled(lab.gw, family, "fwmark 0x10/0xff"),
            to_the_network_in_no_list(lab, address) as seen,
        ):
            for ask in (tcp_ask, udp_ask):
                with pytest.raises(TimeoutError):
                    ask(lab.client, address, timeout=0.5)
            ping(lab.client, address, CLIENT[family])
    finally:
        lab.gw.ip(f"route del {route} {address}")
        lab.gw.run("nft", "flush chain inet others marks")
    assert not seen.sources()
    assert packets(enforced)["unlisted"] >= before + 3


@families
def test_a_destination_of_others_in_no_list(enforced: LabGateway, family: int) -> None:
    """The administrator's DNAT redirects what clients send to the gateway itself."""
    lab = enforced.lab
    before = packets(enforced)["unlisted"]
    lab.gw.run("nft", "add chain inet others elsewhere { type nat hook prerouting priority -100; }")
    to = f"[{CLIENT2[6]}]:{PORT}" if family == 6 else f"{CLIENT2[4]}:{PORT}"
    for transport in ("tcp", "udp"):
        rule = f"iifname in0 {transport} dport 7777 dnat ip{family if family == 6 else ''} to {to}"
        lab.gw.run("nft", f"add rule inet others elsewhere {rule}")
    try:
        with to_the_network_in_no_list(lab, CLIENT2[family]) as seen:
            for ask in (tcp_ask, udp_ask):
                with pytest.raises(TimeoutError):
                    ask(lab.client, GATEWAY[family], 7777, timeout=0.5)
    finally:
        lab.gw.run("nft", "flush chain inet others elsewhere; delete chain inet others elsewhere")
    assert not seen.sources()
    assert packets(enforced)["unlisted"] >= before + 2


def test_a_rule_for_marks_of_others_is_none_of_ours(enforced: LabGateway) -> None:
    """Rules as WireGuard and Kubernetes have them cause no warning."""
    gw = enforced.lab.gw
    for rule in ("not fwmark 0xca6c", "fwmark 0x4000/0x4000", "fwmark 0x2/0xffff"):
        gw.ip(f"rule add {rule} lookup 200")
    try:
        assert enforced.json("status")["warnings"] == []
    finally:
        for rule in ("not fwmark 0xca6c", "fwmark 0x4000/0x4000", "fwmark 0x2/0xffff"):
            gw.ip(f"rule del {rule} lookup 200")


# --- connections that other software translates to the shared address


@contextlib.contextmanager
def open_on_both_sides(lab: Lab, family: int) -> Iterator[Session]:
    """TCP and ICMP by the shared address, of a client and of the unlisted network; yields the latter's."""
    lab.gw.run("conntrack", "--flush")  # UDP entries of earlier tests
    with contextlib.ExitStack() as stack:
        for namespace in (lab.client, lab.client2):
            namespace.run("ping", "-c1", "-W2", ORIGIN1[family])
            session = stack.enter_context(Session(namespace, ORIGIN1[family]))
            assert session.seen.address == SHARED[family]
        yield session


def translated_to_shared(lab: Lab, family: int) -> set[tuple[str, int]]:
    """Source and protocol of the connections in conntrack that leave by the shared address."""
    entries = lab.gw.call(lambda: list(conntrack.entries()))
    shared = pack(ip_address(SHARED[family]))
    return {
        (str(of_bytes(entry.original.source)), entry.original.protocol)
        for entry in entries
        if entry.reply.destination == shared != entry.original.source
    }


def both_protocols(family: int, address: str) -> set[tuple[str, int]]:
    return {(address, socket.IPPROTO_TCP), (address, PING[family])}


PING = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
REST = [{"name": "rest", "precedence": 1, "egress": "default"}]


@families
def test_down_ends_clients_connections_alone(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    enforced.reload(lab.config(interfaces=INTERFACES, policies=REST))
    with open_on_both_sides(lab, family) as theirs:
        found = translated_to_shared(lab, family)
        assert found == both_protocols(family, CLIENT[family]) | both_protocols(family, CLIENT2[family])
        enforced.down()
        assert translated_to_shared(lab, family) == both_protocols(family, CLIENT2[family])
        assert theirs.ask() == theirs.seen
    enforced.start()


@families
def test_another_shared_address_ends_clients_connections_alone(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    enforced.reload(lab.config(interfaces=INTERFACES, policies=REST))
    other = {"ipv4": "198.51.100.77", "ipv6": "2001:db8:ffff::77"}
    with open_on_both_sides(lab, family) as theirs:
        enforced.reload(lab.config(interfaces=INTERFACES, policies=REST, shared=other))
        try:
            assert translated_to_shared(lab, family) == both_protocols(family, CLIENT2[family])
            assert theirs.ask() == theirs.seen
        finally:
            enforced.reload(lab.config(interfaces=INTERFACES, policies=[]))
