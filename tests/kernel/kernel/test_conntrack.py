"""Tests of reading and deleting entries of conntrack."""

from __future__ import annotations

import re
import socket
import time
from ipaddress import IPv6Address

import pytest

from enforcer.kernel import conntrack
from enforcer.kernel.conntrack import Entry, Tuple
from lab.netns import run

LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture(autouse=True)
def tracking(netns: str) -> None:
    run("nft add table inet t")
    run("nft add chain inet t out '{ type filter hook output priority 0; }'")
    run("nft add rule inet t out ct state new ct mark set 0x1234")


def text(address: bytes) -> str:
    value = IPv6Address(address)
    return str(value.ipv4_mapped or value)


def as_listed(direction: Tuple) -> str:
    source, destination, *rest = (
        direction.source,
        direction.destination,
        direction.source_port,
        direction.destination_port,
    )
    where = f"src={text(source)} dst={text(destination)} "
    if direction.protocol in (1, 58):
        return where + f"type={rest[1] >> 8} code={rest[1] & 255} id={rest[0]}"
    return where + f"sport={rest[0]} dport={rest[1]}"


def listed(family: int) -> list[str]:
    return run(f"conntrack -L -f {'ipv4' if family == socket.AF_INET else 'ipv6'}").splitlines()


def make_one_of_each(family: int) -> None:
    host = LOOPBACK[family]
    with (
        socket.socket(family, socket.SOCK_STREAM) as server,
        socket.socket(family, socket.SOCK_STREAM) as client,
    ):
        server.bind((host, 0))
        server.listen()
        client.connect(server.getsockname())
        with socket.socket(family, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(b"", server.getsockname()[:2])
        run(f"ping -c1 -W1 {host}")


def entries(family: int = socket.AF_UNSPEC) -> list[Entry]:
    return list(conntrack.entries(family))


def test_entries_are_what_conntrack_lists(family: int) -> None:
    make_one_of_each(socket.AF_INET)
    make_one_of_each(socket.AF_INET6)
    found, lines = entries(family), listed(family)
    assert len(found) == len(lines) == 3
    assert len(entries()) == 6
    for entry in found:
        assert entry.family == family
        assert entry.mark == 0x1234
        (line,) = [one for one in lines if as_listed(entry.original) in one]
        assert as_listed(entry.reply) in line
        fields = line.split()
        assert int(fields[1]) == entry.original.protocol
        assert abs(int(fields[2]) - entry.timeout) <= 2
        assert entry.state == (fields[3] if fields[0] == "tcp" else "")
        assert entry.replied is ("[UNREPLIED]" not in line)
        assert entry.assured is ("[ASSURED]" in line)


def test_missing_and_delete_twice(family: int) -> None:
    make_one_of_each(family)
    originals = [entry.original for entry in entries()]
    absent = originals[0]._replace(source_port=originals[0].source_port ^ 1)
    assert conntrack.missing([]) == []
    assert conntrack.missing([*originals, absent]) == [len(originals)]
    assert conntrack.exists(originals[0])
    assert not conntrack.exists(absent)
    assert conntrack.delete([absent]) == 0
    assert conntrack.delete([]) == 0
    assert len(entries()) == 3
    assert conntrack.delete(originals) == 3
    assert conntrack.delete(originals) == 0
    assert conntrack.missing(originals) == [0, 1, 2]
    assert entries() == []


@pytest.mark.parametrize("statement", ["ct zone set 7", "ct original zone set 7", "ct reply zone set 7"])
def test_zones(family: int, statement: str) -> None:
    run("nft add chain inet t raw '{ type filter hook output priority -310; }'")
    run(f"nft add rule inet t raw oifname lo meta l4proto != tcp {statement}")
    make_one_of_each(family)
    found = entries()
    expected = {17: 7, 6: 0} if "reply" not in statement else {17: 0, 6: 0}
    assert {entry.original.protocol: entry.zone for entry in found}.items() >= expected.items()
    assert len(found) == len(listed(family)) == 3
    for entry in found:
        (line,) = [one for one in listed(family) if as_listed(entry.original) in one]
        assert as_listed(entry.reply) in line
    zones = conntrack.zones(100)
    assert zones == ([] if "reply" in statement else [7])
    originals = [entry.original for entry in found]
    (tcp,) = [entry for entry in found if entry.original.protocol == socket.IPPROTO_TCP]
    if zones:
        assert conntrack.missing(originals) == [place for place, entry in enumerate(found) if entry.zone]
        assert conntrack.set_tcp_state(originals[:0], "CLOSE", 60, [0, 7]) == 0
        assert conntrack.delete([tcp.original], [7, 0]) == 1
        assert conntrack.missing(originals, [0, 7]) == [found.index(tcp)]
        assert conntrack.delete_entries(found) == 2
    else:
        assert conntrack.missing(originals) == []
        assert conntrack.delete_entries(found) == 3
    assert conntrack.missing(originals, [7, 0]) == [0, 1, 2]
    assert entries() == []


def test_protocols_without_ports() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 253) as experiment:
        experiment.sendto(b"x", ("127.0.0.1", 0))
    (entry,) = [entry for entry in entries() if entry.original.protocol == 253]
    assert entry.original[3:] == entry.reply[3:] == (0, 0)
    assert re.search("unknown +253", "\n".join(listed(socket.AF_INET)))


def test_20000_entries(capsys: pytest.CaptureFixture[str]) -> None:
    count = 20000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(b"", ("127.0.0.1", number + 1))
    start = time.perf_counter()
    originals = [entry.original for entry in conntrack.entries() if entry.original.protocol == 17]
    read = time.perf_counter()
    assert len(originals) == count
    assert conntrack.missing(originals) == []
    asked = time.perf_counter()
    with capsys.disabled():
        each = (read - start) / count * 1e6, (asked - read) / count * 1e6
        print("\nconntrack, µs for each entry: read {:.1f}, look up {:.1f}".format(*each))
