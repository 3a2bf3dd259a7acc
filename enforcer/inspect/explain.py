"""`enforcer explain`: has the loaded program decide about a connection; nothing is sent.

BPF_PROG_TEST_RUN runs the program `explain` on a constructed packet. It shares its functions with from_client
and creates no flow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from enforcer.address import IPAddress, unpack
from enforcer.constants import ETH_P_IP, ETH_P_IPV6, ICMP, ICMPV6, SYN, TCP, UDP
from enforcer.constants.bpf import Override
from enforcer.datapath import syscall
from enforcer.datapath.banks import rule_sets
from enforcer.errors import UsageError
from enforcer.facts.kernel_facts import KernelFacts
from enforcer.facts.session import GROUPS, POSTURE
from enforcer.gateway.desired import any_source
from enforcer.gateway.reader import GatewayReader
from enforcer.inspect.facts_reader import EMAIL, FactsReader, rules_in_force
from enforcer.inspect.outcome import in_the_end, missing
from enforcer.kernel import links
from enforcer.kernel.links import Link
from enforcer.policy.facts import Connection, Facts
from enforcer.reasons import by_name, reason_of

# Facts that every session has, even if empty.
_NO_MEMBERSHIPS: Facts = dict.fromkeys((*GROUPS.values(), POSTURE), ())


@dataclass(frozen=True)
class Question:
    """A connection that a client might open; ``protocol`` is tcp, udp or icmp."""

    source: IPAddress
    destination: IPAddress
    protocol: str
    source_port: int
    destination_port: int
    interface: str | None = None
    """The inside interface that it arrives by; None: the one that the route to its source leaves by."""


@dataclass(frozen=True)
class Overrides:
    """Facts that a question assumes instead of the known ones; None: the known ones apply."""

    email: str | None = None
    """The client has the session with this email; if there is none, a session with the email alone."""
    host: str | None = None
    """The origin has this name."""


def explain(
    reader: GatewayReader, question: Question, overrides: Overrides | None = None, *, trace: bool = False
) -> dict[str, Any]:
    """The verdict and its reasons. Raises UsageError for an inconsistent question.

    With ``trace``, the key ``trace`` has the outcome of every policy in order, by the reference evaluator.
    """
    overrides = overrides or Overrides()
    if question.source.version != question.destination.version:
        raise UsageError(
            "source and destination are of different families", "Give two IPv4 or two IPv6 addresses."
        )
    known = FactsReader(reader)
    client, session = _client(known, question, overrides)
    names = (overrides.host,) if overrides.host else known.names(question.source, question.destination)
    interface, found = _ask(reader, known, question, overrides, client)
    said = reason_of(int(found["reason"]))
    reason = by_name().get(in_the_end(reader.config, said.name, question.destination), said)
    translated = reason.verdict in ("dedicated", "shared") or reason.name == "limit"
    answer: dict[str, Any] = {
        "verdict": reason.verdict,
        "reason": reason.name,
        "policy": reader.policy_names.get(int(found["policy"])),
        "egress": reader.egress_names.get(int(found["slot"])) if translated else None,
        "source_ip": str(unpack(found["egress_address"])) if translated else None,
        "active": int(found["active"]) if translated else None,
        "limit": int(found["limit"]) if translated else None,
        "interface": interface,
        "description": reason.description,
        "session": session,
        "email": client.get(EMAIL, (None,))[0],
        "hosts": list(names),
    }
    if reason.name == "unavailable":
        egress, why = missing(reader.config, answer["policy"], question.source.version)
        answer |= {"egress": egress, "description": f"{reason.description}: {why}"}
    if trace:
        answer["trace"] = _trace(reader, known.connection(_connection(question), client, names))
    return answer


def _client(known: FactsReader, question: Question, overrides: Overrides) -> tuple[Facts, str]:
    """The client's facts and their source, as `session` shows it."""
    if overrides.email is None:
        own = known.client(question.source)
        return own, "own" if own else "none"
    person = known.person(overrides.email)
    if person is not None:
        return person, "supposed: a session with this email"
    return {**_NO_MEMBERSHIPS, EMAIL: (overrides.email,)}, "supposed: the email alone, which no session has"


def _ask(
    reader: GatewayReader, known: FactsReader, question: Question, overrides: Overrides, client: Facts
) -> tuple[str, Any]:
    """(interface, verdict) of the first inside interface where the source is valid, else of the first one."""
    spoofed = by_name()["spoofed"].number
    verdicts = reader.maps.explained
    arrivals = _arrivals(reader, question)
    answers = []
    fd = reader.pins.program("explain")
    try:
        with _written_overrides(reader, known, overrides, client) as control:
            for link in arrivals:
                frame = _packet(question, link)
                syscall.test_run(fd, frame, ifindex=link.index, control=control)
                verdict = verdicts.get(0)
                assert verdict is not None  # an array has all its elements
                answers.append((link.name, verdict))
                if verdict["reason"] != spoofed:
                    return answers[-1]
    except OSError as error:
        raise syscall.explain_error(error, "running the program explain") from error
    finally:
        os.close(fd)
    return answers[0]


@contextmanager
def _written_overrides(
    reader: GatewayReader, known: FactsReader, overrides: Overrides, client: Facts
) -> Iterator[int]:
    """Writes the rule sets of the assumed facts into the map `overrides`; yields the program's control word.

    Questions are serialised: the maps for overrides and verdict have one element, that for packets one per
    CPU.
    """
    with known.store.transaction():  # excludes a switch of banks
        if overrides.email is None and overrides.host is None:
            yield 0
            return
        in_force = KernelFacts(reader.maps, known.store)
        rules = in_force.rules_of_client(client), in_force.rules_of_host((overrides.host or "",))
        reader.maps.overrides.put_many(np.arange(2), rule_sets(rules, reader.maps.overrides.value))
        client_bit = Override.OVERRIDE_CLIENT if overrides.email is not None else 0
        yield client_bit | (Override.OVERRIDE_HOST if overrides.host is not None else 0)


def _connection(question: Question) -> Connection:
    icmp = ICMP if question.source.version == 4 else ICMPV6
    number = {"tcp": TCP, "udp": UDP, "icmp": icmp}[question.protocol]
    ports = (0, 0) if number == icmp else (question.source_port, question.destination_port)
    return Connection(question.source, question.destination, *ports, number)


def _trace(reader: GatewayReader, connection: Connection) -> list[dict[str, Any]]:
    from enforcer.policy.lists import Lists
    from enforcer.policy.reference import trace

    return [
        {
            "precedence": step.policy.precedence,
            "policy": step.policy.name,
            "outcome": step.outcome,
            "selector": step.selector or None,
            "reason": step.reason or None,
        }
        for step in trace(rules_in_force(reader), connection, Lists(reader.config["lists"]))
    ]


def _arrivals(reader: GatewayReader, question: Question) -> list[Link]:
    """The inside interfaces that the packet may arrive by; the one with the client's network comes first."""
    found = links.links()
    inside = [found[name] for name in reader.config["interfaces"]["inside"] if name in found]
    if not inside:
        raise UsageError("no inside interface exists", "See `ip link` and the file's `interfaces`.")
    if question.interface is not None:
        named = [link for link in inside if link.name == question.interface]
        if not named:
            names = ", ".join(link.name for link in inside)
            raise UsageError(f"{question.interface} is no inside interface", f"There are: {names}.")
        return named
    unchecked = any_source(reader.config)

    def order(link: Link) -> tuple[bool, bool]:
        is_near = any(question.source in interface.network for interface in link.addresses)
        return not is_near, link.name in unchecked

    return sorted(inside, key=order)


def _packet(question: Question, link: Link) -> bytes:
    """The connection's first packet; checksums are zero, since the program does not verify them.

    Built with ``struct``: importing scapy would take longer than the rest of the command.
    """
    ports = struct.pack("!HH", question.source_port, question.destination_port)
    if question.protocol == "tcp":
        number, transport = TCP, ports + struct.pack("!IIBBHHH", 0, 0, 5 << 4, SYN, 65535, 0, 0)
    elif question.protocol == "udp":
        number, transport = UDP, ports + struct.pack("!HH", 8, 0)
    else:
        number, echo = (ICMP, 8) if question.source.version == 4 else (ICMPV6, 128)
        transport = struct.pack("!BBHHH", echo, 0, 0, 1, 1)
    addresses = question.source.packed + question.destination.packed
    if question.source.version == 4:
        kind, header = ETH_P_IP, struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 0, 0, 64, number, 0)
    else:
        kind, header = ETH_P_IPV6, struct.pack("!IHBB", 6 << 28, len(transport), number, 64)
    return link.mac + bytes(6) + struct.pack("!H", kind) + header + addresses + transport
