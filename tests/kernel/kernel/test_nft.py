"""Tests of the nftables table: its content, replacement and effect on packets."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

import pytest
from effort import calls

from enforcer.errors import KernelError, PrivilegeError
from enforcer.kernel import addresses, conntrack, nft
from enforcer.kernel.netlink import Message
from enforcer.kernel.nft import messages
from enforcer.kernel.nft.ruleset import (
    COUNTERS,
    DNS_ANSWERS_OVER,
    DNS_BURST,
    DNS_QUESTIONS_OVER,
    DNS_QUEUE,
    DNS_RATE,
    Dns,
    Ruleset,
)
from lab.netns import inside, run

from ..conftest import Lab

BANK4, NEAR4, SHARED4 = (IPv4Address(f"203.0.113.{n}") for n in (10, 11, 1))
BANK6, NEAR6, SHARED6 = (IPv6Network(n) for n in ("2001:db8:1::/64", "2001:db8:2::/64", "2001:db8:f::1/128"))
PORTS = {"shared": 8001, "bank": 8002, "near": 8003, "missing": 8004, "refused": 8005, "unmarked": 8006}
every_mask = pytest.mark.parametrize("gateway", [1, 1 << 8, 1 << 16], indirect=True, ids=hex)


def ruleset(unit: int = 1) -> Ruleset:
    """``unit`` is the lowest bit of the mask: slot 0 is mark 1 · unit."""
    return Ruleset(
        mark_mask=0xFFFF * unit,
        inside=("in0", "in1"),
        outside=("out0",),
        source4={1 * unit: SHARED4, 2 * unit: BANK4, 3 * unit: NEAR4},
        source6={1 * unit: SHARED6, 2 * unit: BANK6, 3 * unit: NEAR6},
        dedicated4=frozenset({BANK4, NEAR4}),
        dedicated6=frozenset({BANK6, NEAR6}),
    )


def big(count: int) -> Ruleset:
    four, six = int(IPv4Address("203.0.0.0")), int(IPv6Address("2001:db8::"))
    source4 = {i + 2: IPv4Address(four + i) for i in range(count)}
    source6 = {i + 2: IPv6Network((six + (i << 65), 64)) for i in range(count)}
    dedicated4, dedicated6 = frozenset(source4.values()), frozenset(source6.values())
    return Ruleset(0xFFFF, ("in0",), ("out0",), source4, source6, dedicated4, dedicated6)


def mark_by_port(unit: int) -> None:
    """Marks packets by destination port, as the datapath would; bits outside the mask are set too."""
    values = {"shared": 1, "bank": 2, "near": 3, "missing": 9, "refused": 0xFFFF, "unmarked": 0}
    other = 0xFFFFFFFF & ~(0xFFFF * unit)
    elements = ", ".join(f"{PORTS[name]} : {value * unit | other}" for name, value in values.items())
    run("nft add table inet marker")
    run("nft add chain inet marker pre '{ type filter hook prerouting priority -310; }'")
    run(f"nft add map inet marker ports '{{ type inet_service : mark; elements = {{ {elements} }}; }}'")
    run("nft add rule inet marker pre iifname in0 meta mark set th dport map @ports")


@pytest.fixture
def gateway(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    unit = getattr(request, "param", 1)
    nft.apply(ruleset(unit))
    mark_by_port(unit)
    addresses.add_ranges([BANK6, NEAR6, SHARED6])
    with inside(lab.origin):
        run("ip route add 203.0.113.0/24 via 10.2.0.1")
    return lab


def listed(kind: str) -> dict[str, Any]:
    objects = json.loads(run("nft -j list table inet enforcer"))["nftables"]
    return {entry[kind]["name"]: entry[kind] for entry in objects if kind in entry}


def test_the_kernel_holds_what_was_asked(netns: str) -> None:
    wanted = ruleset()
    nft.apply(wanted)
    assert nft.installed() == wanted.digest()
    assert wanted.digest() in run("nft list table inet enforcer")
    sets, maps = listed("set"), listed("map")
    assert sorted(sets["inside"]["elem"]) == ["in0", "in1"]
    assert "outside" not in sets  # a single interface is compared without a set
    assert 'oifname "out0"' in run("nft list chain inet enforcer translate")
    assert sorted(sets["dedicated4"]["elem"]) == [str(BANK4), str(NEAR4)]
    assert sorted(sets["dedicated6_64"]["elem"]) == [str(n.network_address) for n in (BANK6, NEAR6)]
    assert sorted(maps["source4"]["elem"]) == [[1, str(SHARED4)], [2, str(BANK4)], [3, str(NEAR4)]]
    assert len(maps["source6"]["elem"]) == 3
    assert sorted(maps["egress4"]["elem"]) == sorted([[str(SHARED4), 1], [str(BANK4), 2], [str(NEAR4), 3]])
    lengths = {network.prefixlen for network in (SHARED6, BANK6, NEAR6)}
    ranges = [row for length in lengths for row in maps[f"egress6_{length}"]["elem"]]
    assert sorted(ranges) == sorted(
        [str(network.network_address), mark] for mark, network in ((1, SHARED6), (2, BANK6), (3, NEAR6))
    )
    chains = {name: (chain.get("hook"), chain.get("prio")) for name, chain in listed("chain").items()}
    assert chains == {
        "refuse": ("prerouting", -300),
        "reject_flow": (None, None),
        "guard": ("prerouting", -50),
        "forward": ("forward", 0),
        "leaving": (None, None),
        "entering": (None, None),
        "expected": (None, None),
        "astray": (None, None),
        "translate": ("postrouting", 90),
    }
    assert set(listed("counter")) == set(COUNTERS)
    text = run("nft list chain inet enforcer translate")
    assert len(re.findall(r"snat ip6? .*map @source[46] fully-random\n", text)) == 2


def test_links_that_are_there_are_compared_by_index_first(netns: str) -> None:
    for pair in ("in0", "in1"), ("out0", "out1"):
        run("ip link add {} type veth peer {}".format(*pair))
    indexes = {name: socket.if_nametoindex(name) for name in ("in0", "in1", "out0")}
    nft.apply(replace(ruleset(), indexes=indexes))
    assert sorted(listed("set")["inside_index"]["elem"]) == ["in0", "in1"]
    for chain, rules in (("guard", 1), ("translate", 2)):
        lines = run(f"nft list chain inet enforcer {chain}").splitlines()
        by_index = [number for number, line in enumerate(lines) if "iif @inside_index" in line]
        assert len(by_index) == rules
        for number in by_index:
            as_named = (
                lines[number].replace("iif @inside_index", "iifname @inside").replace("oif ", "oifname ")
            )
            assert lines[number + 1] == as_named
    known, by_name = run("nft list chain inet enforcer forward").splitlines()[3:5]
    assert known.endswith('iif @inside_index oif "out0" accept')
    assert by_name.strip() == 'iifname @inside oifname "out0" goto leaving'


def test_from_inside_to_interfaces_in_no_list(netns: str) -> None:
    """The rule for interfaces in no list is the last one of the chain."""
    nft.apply(replace(ruleset(), other=("wg0",), renamed=("lan2",)))
    assert sorted(listed("set")["within"]["elem"]) == ["in0", "in1", "lan2"]
    assert sorted(listed("set")["listed"]["elem"]) == ["in0", "in1", "lan2", "out0", "wg0"]
    last = run("nft list chain inet enforcer forward").splitlines()[-3].strip()
    assert last == 'iifname @within oifname != @listed counter name "unlisted" drop'


def test_the_chain_for_interfaces_in_no_list(netns: str) -> None:
    wanted = replace(ruleset(), opened4=("in0",), closed6=True)
    wanted = replace(wanted, bridged6=("br0",))
    assert wanted.digest() != ruleset().digest()
    nft.apply(wanted)
    assert sorted(listed("set")["listed"]["elem"]) == ["in0", "in1", "out0"]
    last = [line.strip() for line in run("nft list chain inet enforcer forward").splitlines()][-6:-2]
    assert last == [
        'meta nfproto ipv4 iifname "in0" goto onwards',
        "meta nfproto ipv6 iifname @listed goto onwards",
        'meta nfproto ipv6 iifname "br0" oifname "br0" accept',
        'meta nfproto ipv6 counter name "not_forwarded" drop',
    ]
    text = run("nft list chain inet enforcer onwards")
    assert "oifname @listed accept" in text
    assert 'counter name "not_forwarded" drop' in text


@pytest.mark.parametrize("dns", ["pass", "drop"])
def test_the_chains_for_dns(netns: str, dns: Dns) -> None:
    wanted = replace(ruleset(), dns=dns)
    nft.apply(wanted)
    assert nft.installed() == wanted.digest()
    found = listed("chain")
    chains = {name: (found[name]["hook"], found[name]["prio"]) for name in found if "hook" in found[name]}
    assert {name: place for name, place in chains.items() if name.startswith("dns")} == {
        "dns_forward": ("forward", 300),
        "dns_input": ("input", 300),
        "dns_output": ("output", 300),
    }
    questions = run("nft list chain inet enforcer dns_questions")
    for protocol in ("tcp", "udp"):
        rule = f"meta l4proto {protocol} iifname @inside ct direction original log group {DNS_QUEUE}"
        assert rule in " ".join(questions.split())
    # With nft_queue, or with xt_NFQUEUE through nft_compat.
    assert run("nft list chain inet enforcer dns_answers").count("queue num") == 2
    text = " ".join(run("nft list table inet enforcer").split())
    for chain, side, counter, verdict in (
        ("dns_questions", "saddr", DNS_QUESTIONS_OVER, "return"),
        ("dns_answers", "daddr", DNS_ANSWERS_OVER, "accept" if dns == "pass" else "drop"),
    ):
        rate = f"limit rate over {DNS_RATE}/second burst {DNS_BURST} packets"
        over = f'{rate} }} counter name "{counter}" {verdict}'
        assert f"update @{chain}4 {{ ip {side} {over}" in text
        assert f"update @{chain}6 {{ ip6 {side} & ffff:ffff:ffff:ffff:: {over}" in text
        for family in (4, 6):
            assert f"set {chain}{family} {{ type ipv{family}_addr size 65536 flags dynamic,timeout" in text
    before = run("nft -s list table inet enforcer")
    nft.apply(wanted)
    assert run("nft -s list table inet enforcer") == before
    nft.apply(ruleset())
    assert not [name for name in listed("chain") if name.startswith("dns")]


def is_native() -> bool:
    """Whether nft_queue holds the answers; nft may list an xtables target as a native statement."""
    return "target name NFQUEUE" not in run("nft --debug=netlink list chain inet enforcer dns_answers")


@pytest.mark.parametrize(("dns", "flags"), [("pass", "flags bypass "), ("drop", "")])
def test_a_kernel_with_nft_queue(netns: str, dns: Dns, flags: str) -> None:
    nft.apply(replace(ruleset(), dns=dns))
    if not is_native():
        pytest.skip("this kernel has no nft_queue")
    text = run("nft list chain inet enforcer dns_answers")
    assert text.count(f"ct direction reply queue {flags}to {DNS_QUEUE}\n") == 2


def test_a_kernel_without_nft_queue(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nft.apply(replace(ruleset(), dns="pass"))
    native = is_native()

    def build(*arguments: Any, compat: bool = False) -> list[Message]:
        built = list(real(*arguments, compat=compat))
        return [
            message._replace(payload=message.payload.replace(b"queue\0", b"quiet\0")) for message in built
        ]

    real = messages.build
    monkeypatch.setattr(messages, "build", build)
    try:
        nft.apply(replace(ruleset(), dns="drop"))
    except KernelError:
        if not native:
            raise
        # An inet table does not load the module xt_NFQUEUE, which a kernel with nft_queue does not need.
        pytest.skip("this kernel has nft_queue, and no xt_NFQUEUE")
    assert (
        run("nft --debug=netlink list chain inet enforcer dns_answers").count("target name NFQUEUE rev 3")
        == 2
    )


def test_each_operation_twice(netns: str) -> None:
    assert nft.installed() is None
    assert nft.counters() == {}
    assert nft.remove() is False
    nft.apply(ruleset())
    before = run("nft -s list table inet enforcer")
    nft.apply(ruleset())
    assert run("nft -s list table inet enforcer") == before
    assert nft.remove() is True
    assert nft.remove() is False
    assert nft.installed() is None


def test_other_peoples_tables_stay(netns: str) -> None:
    run("nft add table inet other")
    run("nft add table ip enforcer")
    nft.apply(ruleset())
    nft.remove()
    assert run("nft list tables").split("\n") == ["table inet other", "table ip enforcer", ""]


def test_a_table_without_our_comment_has_no_digest(netns: str) -> None:
    run("nft add table inet enforcer")
    assert nft.installed() == ""
    nft.apply(ruleset())
    assert nft.installed() == ruleset().digest()


def test_empty_maps(netns: str) -> None:
    nft.apply(Ruleset(0xFF, ("in0",), ("out0",)))
    assert set(listed("map")) == {"source4", "source6", "egress4"}


def test_a_bad_element_applies_nothing(netns: str) -> None:
    nft.apply(ruleset())
    before = run("nft list table inet enforcer")
    bad = replace(ruleset(), outside=("longer-than-any-interface",))
    with pytest.raises(KernelError, match="elements of set listed: Invalid argument"):
        nft.apply(bad)
    assert run("nft list table inet enforcer") == before
    nft.remove()
    with pytest.raises(KernelError):
        nft.apply(bad)
    assert run("nft list ruleset") == ""


def test_without_privilege_nothing_hangs(netns: str) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setuid(65534)
            nft.apply(ruleset())
        except PrivilegeError as error:
            code = 0 if "CAP_NET_ADMIN" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert nft.installed() is None


def test_digest() -> None:
    one, other = ruleset(), ruleset()
    turned = replace(one, inside=("in1", "in0"), source4=dict(reversed(list(one.source4.items()))))
    assert one.digest() == other.digest() == turned.digest()
    different = [
        ruleset(256),
        replace(one, inside=("in0",)),
        replace(one, outside=("out1",)),
        replace(one, source4={1: BANK4}),
        replace(one, source6={1: BANK6}),
        replace(one, dedicated4=frozenset({BANK4})),
        replace(one, dedicated6=frozenset({BANK6})),
        replace(one, dns="pass"),
        replace(one, dns="drop"),
        replace(one, other=("wg0",)),
        replace(one, renamed=("wg0",)),
        replace(one, indexes={"in0": 2}),
    ]
    assert len({entry.digest() for entry in (one, *different)}) == 1 + len(different)


@pytest.mark.parametrize("mark", [0, 0xFFFF, 0x10000, 0x1F])
def test_marks_that_cannot_be(mark: int) -> None:
    mask = 0xFFFF if mark != 0x1F else 0xFF0
    with pytest.raises(ValueError, match="mark"):
        Ruleset(mask, ("in0",), ("out0",), source4={mark: BANK4})


def test_ranges_of_any_length(netns: str) -> None:
    networks = ["::/64", "2001:db8::/64", "2001:db8:0:1::/64", "ffff::/16", "2001:db8:5::7/128"]
    nft.apply(replace(ruleset(), dedicated6=frozenset(map(IPv6Network, networks))))
    found = {name: entry["elem"] for name, entry in listed("set").items() if name.startswith("dedicated6")}
    assert found == {
        "dedicated6_64": ["::", "2001:db8::", "2001:db8:0:1::"],
        "dedicated6_16": ["ffff::"],
        "dedicated6_128": ["2001:db8:5::7"],
    }


FLOOD = """
import socket, sys
sender = socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM)
sender.connect((sys.argv[2], 7777))
while True:
    sender.send(b"x")
"""


def test_the_guard_is_never_open_while_the_table_is_replaced(gateway: Lab, family: int) -> None:
    """A service on the gateway at an egress address receives no packet of a flood."""
    address = str(BANK4) if family == socket.AF_INET else str(BANK6[77])
    if family == socket.AF_INET:
        run(f"ip addr add {address} dev out0")
    with gateway.open(gateway.gateway, family, socket.SOCK_DGRAM) as service:
        service.bind(("", 7777))
        service.setblocking(False)
        with inside(gateway.origin):
            flood = subprocess.Popen([sys.executable, "-c", FLOOD, str(int(family)), address])
        try:
            while not count_of("unsolicited"):
                assert flood.poll() is None
            for _ in range(150):
                nft.apply(ruleset())
            assert flood.poll() is None
        finally:
            flood.kill()
            flood.wait()
        with pytest.raises(BlockingIOError):
            service.recv(100)


def test_counters_survive_a_change(netns: str) -> None:
    start = {name: (number, number * 100) for number, name in enumerate(COUNTERS, 1)}
    nft.apply(ruleset(), start)
    assert nft.counters() == start
    nft.apply(ruleset(256))
    assert nft.counters() == start
    nft.apply(ruleset(256), {})
    assert nft.counters() == dict.fromkeys(COUNTERS, (0, 0))


def test_4000_egress_ips(netns: str) -> None:
    nft.apply(big(1))  # imports the modules before the measurement
    few, many = (calls(partial(nft.apply, big(number))) for number in (400, 4000))
    sets, maps = listed("set"), listed("map")
    counts = [len(entry["elem"]) for entry in (sets["dedicated4"], sets["dedicated6_64"], *maps.values())]
    assert counts == [4000] * 6
    assert many < 11 * few


def test_reading_imports_no_pyroute2() -> None:
    modules = (
        "nft, netlink, addresses, links, filters, watch, sysctl, namespace, conntrack, announce, "
        "nfqueue, nflog, link_watch"
    )
    code = f"import sys; from enforcer.kernel import {modules}; print('pyroute2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@every_mask
@pytest.mark.parametrize("name", ["shared", "bank", "near"])
def test_the_mark_decides_the_source(gateway: Lab, family: int, name: str) -> None:
    with (
        gateway.listener(family, PORTS[name]) as listener,
        gateway.open(gateway.client, family, socket.SOCK_STREAM) as client,
    ):
        client.connect((gateway.ORIGIN[family], PORTS[name]))
        accepted, peer = listener.accept()
        with accepted:
            client.sendall(b"ping")
            assert accepted.recv(4) == b"ping"
            accepted.sendall(b"pong")
            assert client.recv(4) == b"pong"
        here = client.getsockname()
        if family == socket.AF_INET:
            assert peer[0] == str({"shared": SHARED4, "bank": BANK4, "near": NEAR4}[name])
        else:
            network = {"shared": SHARED6, "bank": BANK6, "near": NEAR6}[name]
            host = int(IPv6Address(here[0])) & int(network.hostmask)
            assert peer[0] == str(IPv6Address(int(network.network_address) | host))
    (entry,) = [e for e in conntrack.entries(family) if e.original.destination_port == PORTS[name]]
    assert entry.original.source_port == here[1]
    assert entry.reply.destination_port == peer[1]
    assert not any(packets for packets, _ in nft.counters().values())


@every_mask
def test_refused_tcp_is_reset_at_once(gateway: Lab, family: int) -> None:
    with (
        gateway.listener(family, PORTS["refused"]),
        gateway.open(gateway.client, family, socket.SOCK_STREAM) as client,
    ):
        with pytest.raises(ConnectionRefusedError):
            client.connect((gateway.ORIGIN[family], PORTS["refused"]))
        information = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        assert struct.unpack_from("=I", information, 100) == (0,)  # tcpi_total_retrans
    assert not [e for e in conntrack.entries() if e.original.destination_port == PORTS["refused"]]


def test_refused_udp_is_administratively_prohibited(gateway: Lab, family: int) -> None:
    with gateway.open(gateway.client, family, socket.SOCK_DGRAM) as client:
        level, option = (
            (socket.IPPROTO_IP, 11) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 25)
        )  # IP_RECVERR, IPV6_RECVERR
        client.setsockopt(level, option, 1)
        client.connect((gateway.ORIGIN[family], PORTS["refused"]))
        client.send(b"hello")
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            client.recv(10)
        _, ancillary, _, _ = client.recvmsg(100, 512, socket.MSG_ERRQUEUE)
        kind, code = struct.unpack_from("=BB", ancillary[0][2], 5)  # struct sock_extended_err
        assert (kind, code) == ((3, 13) if family == socket.AF_INET else (1, 1))


def count_of(name: str) -> int:
    return nft.counters()[name][0]


@pytest.mark.parametrize(("port", "counter"), [("unmarked", "unmarked"), ("missing", "untranslatable")])
def test_what_has_no_source_does_not_leave(gateway: Lab, family: int, port: str, counter: str) -> None:
    with (
        gateway.listener(family, PORTS[port], socket.SOCK_DGRAM) as listener,
        gateway.open(gateway.client, family, socket.SOCK_DGRAM) as client,
    ):
        for expected in (1, 2):
            client.sendto(b"hello", (gateway.ORIGIN[family], PORTS[port]))
            assert count_of(counter) == expected
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.recv(10)


@pytest.mark.parametrize("held", [True, False])
def test_what_arrives_unasked_gets_silence(gateway: Lab, family: int, held: bool) -> None:
    target = str(BANK4) if family == socket.AF_INET else str(BANK6[77])
    if held:
        run(f"ip addr add {target} dev out0 {'' if family == socket.AF_INET else 'nodad'}")
    with (
        inside(gateway.gateway),
        socket.socket(family, socket.SOCK_STREAM) as service,
        gateway.open(gateway.origin, family, socket.SOCK_STREAM) as outsider,
    ):
        service.bind(("", 22))
        service.listen()
        if family == socket.AF_INET6:
            with inside(gateway.origin):
                run(f"ip -6 route replace {BANK6} via fd02::1")
        outsider.settimeout(0.2)
        with pytest.raises(TimeoutError):
            outsider.connect((target, 22))
    assert count_of("unsolicited") >= 1


def test_nothing_new_enters(gateway: Lab, family: int) -> None:
    with (
        gateway.open(gateway.origin, family, socket.SOCK_DGRAM) as outsider,
        gateway.open(gateway.client, family, socket.SOCK_DGRAM) as client,
    ):
        client.bind((gateway.CLIENT[family], 5353))
        outsider.sendto(b"hello", (gateway.CLIENT[family], 5353))
        assert count_of("inbound") == 1
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(10)


def test_what_conntrack_calls_invalid_does_not_leave(gateway: Lab, family: int) -> None:
    # A TCP segment with a wrong checksum.
    segment = struct.pack(">HHIIBBHHH", 1234, PORTS["bank"], 1, 1, 5 << 4, 0x10, 1000, 0x1234, 0)
    with gateway.open(gateway.client, family, socket.SOCK_RAW, socket.IPPROTO_TCP) as client:
        client.sendto(segment, (gateway.ORIGIN[family], 0))
    assert count_of("conntrack_invalid") == 1


def test_what_conntrack_does_not_track_does_not_leave(gateway: Lab, family: int) -> None:
    run("nft add chain inet marker raw '{ type filter hook prerouting priority -305; }'")
    run("nft add rule inet marker raw iifname in0 notrack")
    with gateway.open(gateway.client, family, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", (gateway.ORIGIN[family], PORTS["bank"]))
    assert count_of("conntrack_invalid") == 1


def test_live_connections_keep_their_source(gateway: Lab, family: int) -> None:
    with (
        gateway.listener(family, PORTS["bank"]) as listener,
        gateway.open(gateway.client, family, socket.SOCK_STREAM) as client,
    ):
        client.connect((gateway.ORIGIN[family], PORTS["bank"]))
        accepted, peer = listener.accept()
        with accepted:
            nft.apply(replace(ruleset(), source4={2: NEAR4}, source6={2: NEAR6}))
            client.sendall(b"ping")
            assert accepted.recv(4) == b"ping"
            with gateway.open(gateway.client, family, socket.SOCK_STREAM) as second:
                second.connect((gateway.ORIGIN[family], PORTS["bank"]))
                again, other = listener.accept()
                again.close()
            assert other[0] != peer[0]
