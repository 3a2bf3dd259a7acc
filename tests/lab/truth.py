"""Helpers that compare traffic: `explain`'s prediction, the origin's view and conntrack's entries."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from versions import use_copy

from enforcer.gateway.reader import GatewayReader
from enforcer.inspect.egress import egress as view_egress
from enforcer.inspect.explain import Question, explain
from enforcer.inspect.origins import origins as view_origins
from enforcer.inspect.reasons import reasons as view_reasons
from enforcer.instance import Instance
from enforcer.kernel import conntrack
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.topology import CLIENT, Lab

Result = TypeVar("Result")
families = pytest.mark.parametrize("family", [4, 6])

# States of ended connections that conntrack still holds; neither our counts nor these helpers include them.
OVER = {"TIME_WAIT", "CLOSE"}
PROTOCOLS = {6: "tcp", 17: "udp"}


class Origin(NamedTuple):
    """The key of the limit."""

    egress: str
    protocol: str
    address: str
    port: int


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process meanwhile (SIGSTOP), so it lives and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def running(lab: Lab, config: Document | None = None, version: Path | None = None) -> Iterator[LabGateway]:
    """An enforcer on the lab's gateway, of this or another version; removed in any case at the end.

    It runs without the kernel's ICMP rate limit (one error a second per peer), because tests need more.
    """
    lab.gw.sysctls({"net.ipv4.icmp_ratelimit": 0, "net.ipv6.icmp.ratelimit": 0})
    gateway = LabGateway(lab, config)
    if version is not None:
        use_copy(gateway, version)
    try:
        yield gateway.start()
    finally:
        gateway.stop()
        gateway.run("down", check=False)


def leaves_from(egress: dict[int, str], family: int, client: str | None = None) -> str:
    """The source address of a client's connection: in IPv6 the client's host bits within the range."""
    if family == 4 or "/" not in egress[family]:
        return egress[family]
    network = IPv6Network(egress[6])
    host = int(IPv6Address(client or CLIENT[6])) & int(network.hostmask)
    return str(network.network_address + host)


def dedicated(family: int, client: str | None = None) -> set[str]:
    """The possible source addresses of a client's connection that matches no policy."""
    return {leaves_from(egress, family, client) for egress in (LAX1, LAX2)}


def look(gateway: LabGateway, view: Callable[[GatewayReader], Result]) -> Result:
    """What a command would show, without the half second that starting the command takes."""
    reader = GatewayReader(Instance(gateway.lab.gw.cookie()))
    try:
        return gateway.lab.gw.call(lambda: view(reader))
    finally:
        reader.maps.close()


def foretold(
    gateway: LabGateway, destination: str, protocol: str, port: int = 0, source: str | None = None
) -> dict[str, Any]:
    """`enforcer explain`'s answer about a client's connection."""
    to = ip_address(destination)
    question = Question(ip_address(source or CLIENT[to.version]), to, protocol, 49152, port)
    return look(gateway, lambda source: explain(source, question))


def origins(gateway: LabGateway) -> list[dict[str, Any]]:
    """The rows of `enforcer origins`."""
    return look(gateway, view_origins)


def egresses(gateway: LabGateway) -> dict[str, dict[str, Any]]:
    """The rows of `enforcer egress` by name."""
    return {row["name"]: row for row in look(gateway, view_egress)}


def counted(gateway: LabGateway) -> Counter[Origin]:
    """`active` of every origin with live connections, as in `enforcer origins`."""
    return Counter({_origin(row): row["active"] for row in origins(gateway) if row["active"]})


def tracked(lab: Lab) -> Counter[Origin]:
    """The same by conntrack's entries: translated connections that have not ended."""
    found: Counter[Origin] = Counter()
    for entry in lab.gw.call(lambda: list(conntrack.entries())):
        translated = entry.original.source != entry.reply.destination
        if entry.original.protocol in PROTOCOLS and translated and entry.state not in OVER:
            found[
                Origin(
                    _text(entry.reply.destination),
                    PROTOCOLS[entry.original.protocol],
                    _text(entry.original.destination),
                    entry.original.destination_port,
                )
            ] += 1
    return found


def agree(gateway: LabGateway, patience: float = 20.0) -> Counter[Origin]:
    """Wait until our counts and conntrack's are equal, and return them."""
    deadline = time.monotonic() + patience
    while (ours := counted(gateway)) != (theirs := tracked(gateway.lab)):
        assert time.monotonic() < deadline, f"counted more: {ours - theirs}, fewer: {theirs - ours}"
        time.sleep(0.1)
    return ours


def row_of(gateway: LabGateway, origin: Origin) -> dict[str, Any]:
    """The row of `enforcer origins` for this origin."""
    for row in origins(gateway):
        if _origin(row) == origin:
            return row
    raise AssertionError(f"{origin} was never seen")


def packets(gateway: LabGateway) -> Counter[str]:
    """Packets by reason, as in `enforcer reasons`."""
    return Counter({row["reason"]: row["packets"] for row in look(gateway, view_reasons)})


@contextlib.contextmanager
def uncounted(gateway: LabGateway) -> Iterator[None]:
    """Assert that the enforcer admits no flow meanwhile."""
    before = total(gateway)
    yield
    assert total(gateway) == before


def total(gateway: LabGateway) -> int:
    """All connections admitted so far."""
    return sum(row["total"] for row in origins(gateway))


def inject(lab: Lab, frames: Iterable[bytes]) -> None:
    """Send complete frames from the client's interface."""
    with contextlib.closing(lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
        raw.bind(("eth0", 0))
        for frame in frames:
            raw.send(frame)


def wait_for(condition: Callable[[], bool], what: str = "it", patience: float = 20.0) -> None:
    """Wait until the condition is true; AssertionError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what} never became so"
        time.sleep(0.05)


def _origin(row: dict[str, Any]) -> Origin:
    return Origin(row["source_ip"], row["protocol"], row["origin_ip"], row["origin_port"])


def _text(packed: bytes) -> str:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)
