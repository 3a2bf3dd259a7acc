"""Tests of reload, restart, kill -9 and upgrade amid fast packets: no reset, all bytes, no wrong source."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import dns.message
import pytest
from fastpath import Row, rows, wait_until_fast
from transfer import Transfer
from truth import agree, look, running, wait_for
from versions import program_copy, use_copy

from enforcer.datapath import fast_path
from lab.capture import Capture
from lab.clients import UdpFlow, dig, family_of
from lab.configuration import LAX1, LAX2, Document, added, changed
from lab.gateway import LabGateway
from lab.load import Holders
from lab.servers import Unbound
from lab.topology import ORIGIN1, RESOLVER, SHARED, Lab

LEAST = 1 << 23
PACE = 1 << 23  # bytes a second, which leaves processor time to the daemon
PORT = 7300
# Sources that may appear outside; any other is a client's or unknown.
PLANNED = [str(ip_network(address)) for owner in (SHARED, LAX1, LAX2) for address in owner.values()]
WRONG = f"(ip or ip6) and not icmp6 and not ({' or '.join(f'src net {network}' for network in PLANNED)})"
STRANGER = "10.0.1.77"


@pytest.fixture(scope="module")
def enforced(lab: Lab) -> Iterator[LabGateway]:
    with running(lab) as gateway, pytest.MonkeyPatch.context() as patch:
        patch.setattr("transfer.PACE", PACE)
        yield gateway


class Load:
    """A transfer and a UDP flow in each family, all on the fast path."""

    def __init__(self, gateway: LabGateway, stack: contextlib.ExitStack):
        lab = gateway.lab
        self.gateway = gateway
        stack.enter_context(Holders(lab.origin1, PORT, capacity=10))
        self.transfers = [
            stack.enter_context(Transfer(lab.client, lab.origin1, address, LEAST))
            for address in ORIGIN1.values()
        ]
        self.flows = [
            stack.enter_context(UdpFlow(lab.client, address, PORT)).socket for address in ORIGIN1.values()
        ]
        self.before = self.check()

    def check(self) -> set[tuple[str, int | None]]:
        """Assert that all flows go on, on the fast path; return their translated sources."""
        tcp = [transfer.client_port for transfer in self.transfers]
        udp = [each.getsockname()[1] for each in self.flows]
        found: list[Row] = []

        def are_fast() -> bool:
            """Sends first: a late event may have invalidated the entries."""
            for each in self.flows * 3:
                each.send(b"?" * 100)
                assert each.recv(200) == b"?" * 100
            found[:] = [*rows(self.gateway, tcp), *rows(self.gateway, udp, "udp")]
            return [row["path"] for row in found] == ["fast"] * 4

        wait_until_fast(self.gateway, tcp)
        wait_for(are_fast, "the fast path")
        return {(row["source_ip"], row["source_port"]) for row in found}

    def goes_on(self, after: str) -> None:
        assert self.check() == self.before, f"after {after} somebody has another address"


@contextlib.contextmanager
def loaded(gateway: LabGateway) -> Iterator[Load]:
    """Load, with a capture of wrong sources outside. At the end every byte must have arrived."""
    lab = gateway.lab
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(
            Capture(lab.net, "gw0", lab.directory, expression=WRONG, direction="in", snap=80)
        )
        load = Load(gateway, stack)
        yield load
        assert sum(transfer.finish() for transfer in load.transfers) >= 4 * LEAST
        assert wire.sources() == {}
        # The capture would have recorded a wrong source: it records this one.
        with contextlib.closing(lab.gw.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
            raw.sendto(stranger(), (ORIGIN1[4], 0))
        wait_for(lambda: set(wire.sources()) == {STRANGER}, "the stranger seen")
    agree(gateway)


def stranger() -> bytes:
    """A packet whose source is no planned address."""
    from scapy.layers.inet import IP, UDP

    return bytes(IP(src=STRANGER, dst=ORIGIN1[4]) / UDP(sport=1, dport=9))


def otherwise(config: Document) -> Document:
    """Policies that send everything elsewhere, and another mark mask."""
    moved = changed(config, "policies", "bank", egress={"ipv4": LAX2[4], "ipv6": LAX2[6]})
    rest = {"name": "rest", "precedence": 1000, "egress": "default"}
    return added(moved, "policies", rest) | {"mark_mask": 0xFFFF00}


def test_reloads(enforced: LabGateway) -> None:
    config = enforced.lab.config()
    small = {"limits": {"connections_per_origin": 40000, "flows": 4096, "origins": 2048}}
    with loaded(enforced) as load:
        assert enforced.reload() == "nothing changed\n"
        load.goes_on("a reload of an unchanged file")
        for what, document in (
            ("other policies, and another mark", otherwise(config)),
            ("tables of another size", config | small),
            ("the file as it was", config),
        ):
            enforced.reload(document)
            load.goes_on(what)


def test_dns_is_never_fast(enforced: LabGateway) -> None:
    """The daemon must see every DNS answer to learn names."""
    lab = enforced.lab
    with Unbound(lab.resolver, lab.directory):
        for address in RESOLVER.values():
            assert dig(lab.client, address)
            query = dns.message.make_query("www.lab", "A").to_wire()
            with (
                contextlib.closing(lab.client.socket(family_of(address), socket.SOCK_DGRAM)) as datagrams,
                contextlib.closing(lab.client.socket(family_of(address), socket.SOCK_STREAM)) as stream,
            ):
                for each in (datagrams, stream):
                    each.settimeout(5)
                    each.connect((address, 53))
                for _ in range(20):
                    datagrams.send(query)
                    assert dns.message.from_wire(datagrams.recv(4096)).answer
                    stream.sendall(len(query).to_bytes(2, "big") + query)
                    assert stream.recv(4096)
                udp = rows(enforced, [datagrams.getsockname()[1]], "udp")
                tcp = rows(enforced, [stream.getsockname()[1]])
                assert [row["fast_packets"] for row in (*udp, *tcp)] == [0, 0]
                assert all(row["kernel_packets"] >= 40 for row in (*udp, *tcp))
    assert look(enforced, lambda source: fast_path.is_on(source.maps))


def append(bpf: Path) -> None:
    path = bpf / "metrics.h"
    path.write_text(path.read_text() + "/* another version */\n")


def widen(bpf: Path) -> None:
    """Another layout of the flows and of the fast-path entries."""
    path = bpf / "maps.h"
    text = path.read_text()
    for old, new in (
        ("\tu64 created;\n", "\tu64 added;\n\tu64 created;\n"),
        ("\tu16 next_hop;\n", "\tu16 next_hop;\n\tu32 added;\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)


def test_restarts_and_upgrades(enforced: LabGateway, tmp_path: Path) -> None:
    with loaded(enforced) as load:
        enforced.stop()
        load.goes_on("the daemon's end")
        enforced.start()
        load.goes_on("a restart")
        enforced.kill()
        load.goes_on("kill -9")
        enforced.start()
        load.goes_on("a restart after kill -9")
        plain = enforced.enforcer
        for what, edit in (("other programs", append), ("another layout of the maps", widen)):
            enforced.stop()
            enforced.enforcer = plain
            use_copy(enforced, program_copy(tmp_path / what, edit))
            enforced.start()
            assert "upgrade BPF programs" in enforced.said()
            load.goes_on(what)
