"""Policies that nftables can express, too: as policy expressions, as a chain of rules, and as maps.

nftables knows addresses, ports and protocols. It has no sessions, no names and no regions, so none of the
policies here use them.

The chain has a rule for each policy and family, in order: the first that matches sets the mark and ends the
search. It decides as the policies do, and a flow that only the last one matches passes all the others.

The maps have one look-up for each shape of policy (the fields that it uses), for any number of policies. They
cannot express everything: order holds only among the shapes, not among the policies (one of the second shape
never precedes one of the first); the elements of a map must not overlap, so of overlapping policies it has
only the first; an excluded port is written as the ranges beside it. So the maps do not decide as the policies
do; they show the speed that nftables can reach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.rig.documents import EGRESSES, everything

Ports = tuple[tuple[int, int], ...]
_FAMILIES = ((4, "ip", "ipv4"), (6, "ip6", "ipv6"))
_LAST_MARK = 1


@dataclass(frozen=True)
class Match:
    """The conditions of a policy, all of which must hold. Addresses are pairs (IPv4, IPv6)."""

    source: tuple[str, str] | None = None
    destination: tuple[str, str] | None = None
    protocol: str = ""
    ports: Ports = ()
    excluded: Ports = ()
    """Destination ports that do not match."""

    @property
    def expression(self) -> str:
        """The conditions in the language of policies."""
        parts = []
        for field, networks in (("net.src.ip", self.source), ("net.dst.ip", self.destination)):
            if networks:
                parts.append(f"{field} in {{{networks[0]} {networks[1]}}}")
        if self.protocol:
            parts.append(f'net.protocol == "{self.protocol}"')
        if self.ports:
            parts.append(f"net.dst.port in {{{_listed(self.ports, ' ', '..')}}}")
        if self.excluded:
            parts.append(f"not net.dst.port in {{{_listed(self.excluded, ' ', '..')}}}")
        return " and ".join(parts)

    @property
    def shape(self) -> tuple[str, ...]:
        """The fields of the conditions, as nftables' concatenations name them; ``ip`` is either family."""
        asked = {
            "ip saddr": self.source,
            "ip daddr": self.destination,
            "meta l4proto": self.protocol,
            "th dport": self.ports or self.excluded,
        }
        return tuple(name for name, value in asked.items() if value)

    def rule(self, family: int, word: str) -> str:
        """The conditions of an nftables rule; ``word`` is ip or ip6."""
        index = 0 if family == 4 else 1
        parts = []
        for field, networks in (("saddr", self.source), ("daddr", self.destination)):
            if networks:
                parts.append(f"{word} {field} {networks[index]}")
        if self.protocol:
            parts.append(f"meta l4proto {self.protocol}")
        if self.ports:
            parts.append(f"th dport {{ {_listed(self.ports, ', ', '-')} }}")
        if self.excluded:
            parts.append(f"th dport != {{ {_listed(self.excluded, ', ', '-')} }}")
        return " ".join(parts)

    def elements(self, family: int) -> Iterator[tuple[tuple[str, ...], tuple[int, int] | None]]:
        """Keys of a map: the fields except the port, and a range of ports, or None without ports."""
        index = 0 if family == 4 else 1
        values = [networks[index] for networks in (self.source, self.destination) if networks]
        fixed = (*values, self.protocol) if self.protocol else tuple(values)
        for ports in self.ports or _others(self.excluded) or (None,):
            yield fixed, ports


def _listed(ports: Ports, between: str, to: str) -> str:
    return between.join(str(first) if first == last else f"{first}{to}{last}" for first, last in ports)


def _others(excluded: Ports) -> Ports:
    """The ranges of all other ports."""
    if not excluded:
        return ()
    ends = [(0, -1), *sorted(excluded), (65536, 65536)]
    return tuple((last + 1, first - 1) for (_, last), (first, _) in pairwise(ends) if last + 1 < first)


def _origin(chance: random.Random) -> tuple[str, str]:
    host = chance.randrange(1024)
    return f"198.18.{host >> 8}.{host & 255}", f"2001:db8:a::{host:x}"


def _network(chance: random.Random) -> tuple[str, str]:
    number = chance.randrange(4096)
    return f"172.{16 + number // 256}.{number % 256}.0/24", f"2001:db8:{0x1000 + number:x}::/48"


def _clients(chance: random.Random) -> tuple[str, str]:
    number = chance.randrange(65536)
    return f"10.{64 + number // 4096}.{number // 16 % 256}.{number % 16 * 16}/28", f"fd64:{number:x}::/48"


def _ports(chance: random.Random) -> Ports:
    """Three ports and a range; in one of four results the traffic's port, too."""
    first = chance.randrange(10000, 60000)
    single = {(port, port) for port in chance.sample(range(1, 8000), 3)}
    fitting = {(8000, 8000)} if chance.random() < 0.25 else set()
    return tuple(sorted(single | fitting | {(first, first + chance.randrange(1, 500))}))


_SHAPES: list[Callable[[random.Random], Match]] = [
    lambda chance: Match(destination=_origin(chance)),
    lambda chance: Match(destination=_origin(chance), ports=_ports(chance)),
    lambda chance: Match(source=_clients(chance), ports=_ports(chance)),
    lambda chance: Match(destination=_network(chance), protocol="tcp"),
    lambda chance: Match(source=_clients(chance), destination=_network(chance)),
    lambda chance: Match(destination=_network(chance), protocol="udp", excluded=_ports(chance)),
]


def matches(count: int) -> list[Match]:
    """The conditions of ``count`` policies, without the last policy, which matches everything."""
    chance = random.Random(count)
    return [_SHAPES[number % len(_SHAPES)](chance) for number in range(count - 1)]


def policies(count: int) -> list[dict[str, Any]]:
    """The policies as a configuration has them."""
    found = [
        {
            "name": f"policy {number}",
            "precedence": number + 1,
            "traffic": match.expression,
            "egress": EGRESSES[_mark(number) - 1],
        }
        for number, match in enumerate(matches(count))
    ]
    return [*found, everything()]


def _mark(number: int) -> int:
    """The mark of the egress IP of policy ``number``, from 1."""
    return number % len(EGRESSES) + 1


def chain(count: int) -> str:
    """A ruleset with a rule for each policy and family."""
    lines = []
    for family, word, _ in _FAMILIES:
        lines.append(f"chain decide{family} {{")
        lines += [
            f"{match.rule(family, word)} meta mark set {_mark(number)} accept"
            for number, match in enumerate(matches(count))
        ]
        lines += [f"meta mark set {_LAST_MARK}", "}"]
    return _table(lines)


def maps(count: int) -> str:
    """A ruleset with a map for each shape and family."""
    found = matches(count)
    shapes = list(dict.fromkeys(match.shape for match in found))
    lines: list[str] = []
    for family, word, kind in _FAMILIES:
        for index, shape in enumerate(shapes):
            chosen = [(_mark(number), match) for number, match in enumerate(found) if match.shape == shape]
            lines += _map(f"shape{index}_{family}", family, kind, shape, chosen)
        lines.append(f"chain decide{family} {{")
        for index, shape in enumerate(shapes):
            key = " . ".join(shape).replace("ip ", f"{word} ")
            lines.append(f"meta mark set {key} map @shape{index}_{family} accept")
        lines += [f"meta mark set {_LAST_MARK}", "}"]
    return _table(lines)


def _map(
    name: str, family: int, kind: str, shape: tuple[str, ...], chosen: list[tuple[int, Match]]
) -> Iterator[str]:
    types = {"meta l4proto": "inet_proto", "th dport": "inet_service"}
    key = " . ".join(types.get(one, f"{kind}_addr") for one in shape)
    taken: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    elements = []
    for mark, match in chosen:
        for fixed, ports in match.elements(family):
            first, last = ports or (0, 65535)
            ranges = taken.setdefault(fixed, [])
            if all(last < one or first > other for one, other in ranges):
                ranges.append((first, last))
                port = [_listed((ports,), "", "-")] if ports else []
                elements.append(f"{' . '.join([*fixed, *port])} : {mark}")
    interval = "" if shape == ("ip daddr",) else "flags interval; "
    yield f"map {name} {{ type {key} : mark; {interval}elements = {{ {', '.join(elements)} }} }}"


def _table(lines: list[str]) -> str:
    """A table with the chains that call: they decide only a flow's first packet, as the enforcer does."""
    prefixes = [egress["ipv6"].removesuffix("/64") + "10" for egress in EGRESSES]
    to = {
        "ip": ", ".join(f"{number} : {egress['ipv4']}" for number, egress in enumerate(EGRESSES, 1)),
        "ip6": ", ".join(f"{number} : {prefix}" for number, prefix in enumerate(prefixes, 1)),
    }
    snat = [
        f'meta nfproto {kind} oifname "out0" snat {word} to meta mark map {{ {to[word]} }} fully-random'
        for _, word, kind in _FAMILIES
    ]
    jumps = [f"meta nfproto {kind} jump decide{family}" for family, _, kind in _FAMILIES]
    return "\n".join(
        [
            "table inet bench {",
            *lines,
            "chain decide {",
            "type filter hook prerouting priority mangle;",
            'iifname != "in0" return',
            "ct state != new return",
            *jumps,
            "}",
            "chain postrouting {",
            "type nat hook postrouting priority srcnat;",
            *snat,
            "}",
            "}",
            "",
        ]
    )
