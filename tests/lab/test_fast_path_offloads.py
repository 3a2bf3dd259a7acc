"""Tests of the fast path with all offloads and MTUs: bytes arrive unchanged, and large packets stay large."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastpath import rows, share, wait_until_fast
from transfer import Transfer
from truth import agree, families, look, running, wait_for

from enforcer.inspect.flows import flows
from lab.clients import IcmpError, family_of
from lab.configuration import LAX1, LAX2
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.servers import Iperf
from lab.topology import GATEWAY, ORIGIN1, ORIGIN2, SHARED, Lab

LEAST = 1 << 23
SIZE = 256 << 20  # bytes that iperf3 sends over all streams
LINKS = (
    ("client", "eth0"),
    ("gw", "in0"),
    ("gw", "out0"),
    ("net", "gw0"),
    ("net", "origin1"),
    ("origin1", "eth0"),
)
OFFLOADS = {
    "on": [True] * 6,
    "off": [False] * 6,
    "on and off": [True, False] * 3,
    "off and on": [False, True] * 3,
    "off on the gateway": [True, False, False, True, True, True],
    "off but on the gateway": [False, True, True, False, False, False],
}
DATAGRAMS = 9300
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
REPORT_ERRORS = {4: (socket.IPPROTO_IP, 11, 1), 6: (socket.IPPROTO_IPV6, 25, 1)}
DO, DONT = 2, 0  # IP_PMTUDISC_DO, _DONT
TOO_BIG = {4: (3, 4), 6: (2, 0)}
BEHIND = (
    f"{ORIGIN2[4]}/32 dev origin2",
    f"{ORIGIN2[6]}/128 dev origin2",
    *(f"{egress[4]}/32 dev gw0" for egress in (LAX1, LAX2)),
    *(f"{egress[6]} via {SHARED[6]}" for egress in (LAX1, LAX2)),
)
NET = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}


@pytest.fixture(scope="module")
def enforced(lab: Lab) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def iperf(lab: Lab) -> Iterator[Iperf]:
    with Iperf(lab.origin1, lab.directory) as server:
        yield server


@contextlib.contextmanager
def transfers(gateway: LabGateway, origin: str, addresses: dict[int, str], least: int) -> Iterator[list[int]]:
    """One transfer in each family, on the fast path; yields the client ports. At the end all bytes arrive."""
    lab = gateway.lab
    try:
        with contextlib.ExitStack() as stack:
            pair = [
                stack.enter_context(Transfer(lab.client, lab.namespaces[origin], address, least))
                for address in addresses.values()
            ]
            ports = [transfer.client_port for transfer in pair]
            wait_until_fast(gateway, ports)
            yield ports
            wait_until_fast(gateway, ports)
            assert sum(transfer.finish() for transfer in pair) >= 4 * least
    except BaseException:
        # conntrack may not have accepted the reset of a failed transfer, and other tests compare its counts.
        lab.gw.run("conntrack", "-F")
        raise
    agree(gateway)


@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloads(enforced: LabGateway, kind: str) -> None:
    lab = enforced.lab
    try:
        for (role, interface), on in zip(LINKS, OFFLOADS[kind], strict=True):
            lab.namespaces[role].offload(interface, on)
        with transfers(enforced, "origin1", ORIGIN1, LEAST):
            pass
        for address in ORIGIN1.values():
            datagrams_go_both_ways(enforced, address)
    finally:
        for role, interface in LINKS:
            lab.namespaces[role].offload(interface, True)


def opened(namespace: Namespace, address: str, family: int) -> contextlib.closing[socket.socket]:
    made = namespace.socket(family_of(address), socket.SOCK_DGRAM)
    made.settimeout(10)
    made.setsockopt(*REPORT_ERRORS[family])
    return contextlib.closing(made)


def datagrams_go_both_ways(gateway: LabGateway, address: str) -> None:
    lab, family = gateway.lab, 6 if ":" in address else 4
    with opened(lab.origin1, address, family) as server, opened(lab.client, address, family) as client:
        server.bind((address, DATAGRAMS))
        client.connect((address, DATAGRAMS))
        # A packet larger than all before takes the kernel's path and creates the entry again.
        for size in (1400, 1400, *range(0, 1400, 50)):
            sent = os.urandom(size)
            client.send(sent)
            received, peer = server.recvfrom(2000)
            server.sendto(received[::-1], peer)
            assert client.recv(2000)[::-1] == received == sent
        (row,) = rows(gateway, [client.getsockname()[1]], "udp")
        assert share([row]) > 0.8


# --- GSO


def received(namespace: Namespace, interface: str) -> tuple[int, int]:
    """Received bytes and packets; a GSO packet counts once."""

    def read() -> str:
        return Path("/proc/thread-self/net/dev").read_text()

    (line,) = [line for line in namespace.call(read).splitlines() if line.strip().startswith(f"{interface}:")]
    numbers = line.partition(":")[2].split()
    return int(numbers[0]), int(numbers[1])


def average(gateway: LabGateway, address: str, streams: int, *, back: bool) -> float:
    """The average packet size in bytes at the far end of the gateway's link, in the direction of the data."""
    lab = gateway.lab
    end = (lab.client, "eth0") if back else (lab.net, "gw0")
    before = received(*end)
    options = ["-P", str(streams), "-n", str(SIZE), *(["-R"] if back else [])]
    result = json.loads(lab.client.run("iperf3", "-J", "-c", address, *options, check=False).stdout)
    assert "error" not in result, result["error"]
    assert result["end"]["sum_received"]["bytes"] > SIZE // 4
    now = received(*end)
    return (now[0] - before[0]) / (now[1] - before[1])


@families
@pytest.mark.parametrize("streams", [1, 8, 64])
def test_large_packets_stay_large(enforced: LabGateway, iperf: Iperf, family: int, streams: int) -> None:
    """The last device segments packets, if any does: the same as without the fast path."""
    for back in (False, True):
        size = average(enforced, ORIGIN1[family], streams, back=back)
        assert size > 4 * 1500, f"{size:.0f} bytes a packet"
    found = [row for row in look(enforced, flows) if row["origin_port"] == 5201 and row["packets"] > 50]
    assert len(found) >= 2 * streams
    assert share(found) > 0.9
    agree(enforced)


# --- MTU


@contextlib.contextmanager
def narrowing(lab: Lab) -> Iterator[None]:
    """MTU 9000 inside, 1500 outside, 1280 behind the internet's router, in both directions."""
    lab.client.ip("link set eth0 mtu 9000")
    lab.gw.ip("link set in0 mtu 9000")
    lab.origin2.ip("link set eth0 mtu 9000")
    lab.net.ip("link set origin2 mtu 9000", *(f"route add {route} mtu 1280" for route in BEHIND))
    try:
        yield
    finally:
        lab.net.ip("link set origin2 mtu 1500", *(f"route del {route}" for route in BEHIND))
        lab.origin2.ip("link set eth0 mtu 1500")
        lab.gw.ip("link set in0 mtu 1500")
        lab.client.ip("link set eth0 mtu 1500")


@contextlib.contextmanager
def widening(lab: Lab) -> Iterator[None]:
    """MTU 1280 inside, 1500 outside, 9000 behind; the client advertises an MSS larger than its link takes."""
    lab.origin2.ip("link set eth0 mtu 9000")
    lab.net.ip("link set origin2 mtu 9000")
    lab.client.ip(
        "link set eth0 mtu 1280", *(f"route change default via {GATEWAY[f]} advmss 1440" for f in (4, 6))
    )
    lab.gw.ip("link set in0 mtu 1280")
    try:
        yield
    finally:
        lab.gw.ip("link set in0 mtu 1500")
        lab.client.ip("link set eth0 mtu 1500", *(f"route change default via {GATEWAY[f]}" for f in (4, 6)))
        lab.net.ip("link set origin2 mtu 1500")
        lab.origin2.ip("link set eth0 mtu 1500")


@contextlib.contextmanager
def path_mtu_discovery(lab: Lab, on: bool) -> Iterator[None]:
    """Switches it for IPv4; in IPv6 only the sender fragments a packet."""
    for host in (lab.client, lab.origin2):
        host.sysctl("net.ipv4.ip_no_pmtu_disc", int(not on))
    try:
        yield
    finally:
        for host in (lab.client, lab.origin2):
            host.sysctl("net.ipv4.ip_no_pmtu_disc", 0)
            for version in ("-4", "-6"):
                host.run("ip", version, "route", "flush", "cache")


@pytest.mark.parametrize("discovery", [True, False], ids=["discovery", "no discovery"])
@pytest.mark.parametrize("chain", [narrowing, widening])
def test_transfers_over_links_of_many_sizes(
    enforced: LabGateway, chain: Callable[[Lab], contextlib.AbstractContextManager[None]], discovery: bool
) -> None:
    lab = enforced.lab
    with chain(lab), path_mtu_discovery(lab, discovery), transfers(enforced, "origin2", ORIGIN2, LEAST):
        pass


def test_links_become_smaller_in_mid_transfer(enforced: LabGateway) -> None:
    """The MTU of the gateway's outside and inside links drops below the size of earlier fast packets."""
    lab = enforced.lab
    links = ((("gw", "out0"), ("net", "gw0")), (("gw", "in0"), ("client", "eth0")))
    try:
        with transfers(enforced, "origin2", ORIGIN2, LEAST) as ports:
            for ends in links:
                for role, interface in ends:
                    lab.namespaces[role].ip(f"link set {interface} mtu 1280")
                wait_until_fast(enforced, ports)
    finally:
        for role, interface in (end for ends in links for end in ends):
            lab.namespaces[role].ip(f"link set {interface} mtu 1500")
        for host in (lab.client, lab.origin2):
            for version in ("-4", "-6"):
                host.run("ip", version, "route", "flush", "cache")


@families
def test_errors_about_fast_packets_come_back(enforced: LabGateway, family: int) -> None:
    """Errors come from the gateway and from a router behind it; without DF packets are fragmented (IPv4)."""
    lab = enforced.lab
    with (
        narrowing(lab),
        path_mtu_discovery(lab, True),
        opened(lab.origin2, ORIGIN2[family], family) as server,
        opened(lab.client, ORIGIN2[family], family) as client,
    ):
        server.bind((ORIGIN2[family], DATAGRAMS))
        client.connect((ORIGIN2[family], DATAGRAMS))
        client.setsockopt(*MTU_DISCOVER[family], DO)

        def arrives(size: int) -> None:
            payload = os.urandom(size)
            client.send(payload)
            received, peer = server.recvfrom(10_000)
            assert received == payload
            server.sendto(b"!", peer)
            assert client.recv(16) == b"!"

        def is_fast() -> bool:
            """Sends first: a late event of a link change may have invalidated the entry."""
            for _ in range(3):
                arrives(1200)
            (row,) = rows(enforced, [client.getsockname()[1]], "udp")
            return bool(row["path"] == "fast")

        wait_for(is_fast, "the fast path")
        for size, offender, mtu in ((8000, GATEWAY[family], 1500), (1400, NET[family], 1280)):
            # The second packet meets a fast-path entry, if it fits the gateway's links.
            for _ in range(2):
                client.send(bytes(size))
                with pytest.raises(OSError, match="Message too long"):
                    client.recv(16)
                assert error_of(client) == IcmpError(offender, *TOO_BIG[family], mtu=mtu)
                for version in ("-4", "-6"):
                    lab.client.run("ip", version, "route", "flush", "cache")
        arrives(1200)
        if family == 4:
            client.setsockopt(*MTU_DISCOVER[4], DONT)
            arrives(1400)
            arrives(8000)
    agree(enforced)


def error_of(sock: socket.socket) -> IcmpError:
    """The oldest ICMP error that the kernel matched to this socket."""
    _, ancillary, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    data = ancillary[0][2]
    _, _, kind, code, _, mtu, _ = struct.unpack_from("=IBBBBII", data)
    v4 = sock.family == socket.AF_INET
    return IcmpError(socket.inet_ntop(sock.family, data[20:24] if v4 else data[24:40]), kind, code, mtu)
