"""Packets → what is to be learnt of them.

What is learnt is the name that was asked for, for each address that the answer leads to. The aliases on the
way are not names that a user has typed (Cloudflare's Host selector means those), and rules about a CDN's
names would match half the internet. Each is learnt twice: for the client that asked, and for anybody,
because a client with both families asks from one address and connects from another.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from enforcer.address import pack
from enforcer.constants import TCP
from enforcer.dns import message
from enforcer.dns.message import MalformedError
from enforcer.dns.packet import Packet, parse
from enforcer.dns.questions import Asker, Questions
from enforcer.dns.stream import Streams
from enforcer.facts.names import client_prefix
from enforcer.facts.rows import ANYBODY, Learnt

ADDRESSES_AT_MOST = 64
"""Addresses that are learnt of one answer: its first ones."""
# After these the true answer may still come, and the client waits for it.
_FORGERIES = ("unasked", "mismatched", "malformed")
_KINDS = {message.A, message.AAAA, message.ANY, message.HTTPS, message.SVCB}
# This network, loopback, link-local, multicast and reserved addresses (RFC 6890).
_UNUSABLE: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
    *map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")),
    *map(ipaddress.IPv6Network, ("::/128", "::1/128", "fe80::/10", "ff00::/8")),
]


class LearningConfig(NamedTuple):
    """What of the configuration matters here."""

    resolvers: frozenset[bytes] = frozenset()
    """Only these are believed; empty: any."""
    fail_open: bool = True
    grace: float = 30.0
    """Seconds that a name outlives its TTL."""
    own: frozenset[bytes] = frozenset()
    private: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    ranges: tuple[ipaddress.IPv6Network, ...] = ()
    """IPv6 egress ranges, which are the gateway's too."""


def learning_config(config: Mapping[str, Any]) -> LearningConfig:
    """From the JSON form of a Configuration."""
    dns = config.get("dns", {})
    own = [config["shared"]["ipv4"], config["shared"]["ipv6"]]
    here = [egress for egress in config["egress_ips"] if egress["location"] == config["location"]]
    own += [egress["ipv4"] for egress in here]
    return LearningConfig(
        resolvers=frozenset(pack(ipaddress.ip_address(one)) for one in dns.get("resolvers", ())),
        fail_open=dns.get("when_down", "pass") == "pass",
        grace=float(dns.get("grace", 30)),
        own=frozenset(pack(ipaddress.ip_address(one)) for one in own),
        private=tuple(ipaddress.ip_network(one) for one in config.get("private_networks", ())),
        ranges=tuple(ipaddress.IPv6Network(egress["ipv6"]) for egress in here),
    )


class Answer(NamedTuple):
    """What is to be learnt of one answer; the addresses are sorted."""

    client: bytes
    name: str
    addresses: tuple[bytes, ...]
    expires: float

    def rows(self) -> list[Learnt]:
        """For the client and for anybody."""
        payer = client_prefix(self.client)
        clients = (self.client, ANYBODY)
        return [Learnt(who, one, self.name, self.expires, payer) for who in clients for one in self.addresses]


class Reader:
    """Packets → what is to be learnt; keeps the questions and the TCP streams, and counts."""

    def __init__(self, wanted: LearningConfig) -> None:
        self.counts: Counter[str] = Counter()
        self.questions = Questions(self.counts)
        self._asking = Streams(self.counts)
        self._answering = Streams(self.counts)
        self.configure(wanted)

    def configure(self, wanted: LearningConfig) -> None:
        """Another configuration; questions and streams stay."""
        self.config = wanted
        self._prefixes = [
            *(_prefix(network, "unusable") for network in _UNUSABLE),
            *(_prefix(network, "own") for network in wanted.ranges),
            *(_prefix(network, "private") for network in wanted.private),
        ]
        self._why_not = lru_cache(maxsize=4096)(self._reason)

    @property
    def streams(self) -> int:
        """How many directions of TCP connections are followed."""
        return len(self._asking) + len(self._answering)

    def expire(self, now: float) -> None:
        """Forgets questions without an answer in time, and connections that are silent."""
        self.questions.expire(now)
        self._asking.expire(now)
        self._answering.expire(now)

    def question(self, data: bytes, now: float) -> None:
        """Notes what a copied packet asks. ``now`` is in seconds of a clock that never goes back."""
        packet = parse(data)
        if packet is None:
            self.counts["question-strange"] += 1
        if packet is None or not self._believed(packet.destination):
            return
        for wire in self._messages(packet, packet.source, self._asking, now):
            self._note(packet, wire, now)

    def answers(self, data: bytes, now: float, time_of_day: float) -> list[Answer]:
        """What a held packet brings: all the answers that it completes."""
        packet = parse(data)
        if packet is None:
            self.counts["packet-strange"] += 1
            return []
        if not self._believed(packet.source):
            self.counts["unlisted"] += bool(packet.payload)
            return []
        found = []
        for wire in self._messages(packet, packet.destination, self._answering, now):
            answer = self._answer(packet, wire, now, time_of_day)
            if answer is not None:
                found.append(answer)
        return found

    def _believed(self, resolver: bytes) -> bool:
        return not self.config.resolvers or resolver in self.config.resolvers

    @staticmethod
    def _messages(packet: Packet, client: bytes, streams: Streams, now: float) -> list[bytes]:
        if packet.protocol != TCP:
            return [packet.payload]
        key = packet.source, packet.source_port, packet.destination, packet.destination_port
        return streams.feed(key, packet, now, client_prefix(client))

    def _note(self, packet: Packet, wire: bytes, now: float) -> None:
        try:
            asked = message.header(wire)
        except MalformedError:
            self.counts["question-strange"] += 1
            return
        if asked.response or not asked.query:
            self.counts["question-strange"] += 1
            return
        self.counts["question"] += 1
        asker = Asker(packet.source, packet.source_port, packet.destination, packet.protocol, asked.number)
        self.questions.note(asker, asked.asks, now)

    def _answer(self, packet: Packet, wire: bytes, now: float, time_of_day: float) -> Answer | None:
        try:
            head = message.header(wire)
            asker = Asker(
                packet.destination, packet.destination_port, packet.source, packet.protocol, head.number
            )
            asked = self.questions.asked(asker, now)
            word = _refusal(head, asked)
            found = message.found(wire, head) if word is None else None
        except MalformedError:
            word, found = "malformed", None
        if word not in _FORGERIES:
            self.questions.answered(asker)
        if found is None:
            self.counts[str(word)] += 1
            return None
        return self._worth(packet.destination, head, found, time_of_day)

    def _worth(
        self, client: bytes, head: message.Header, found: message.Found, time_of_day: float
    ) -> Answer | None:
        self.counts["service-elsewhere"] += found.elsewhere
        self.counts["unusable"] += found.mapped
        name = message.host(head.name, head.kind)
        usable = []
        for address in found.addresses:
            reason = self._why_not(address)
            if reason is None:
                usable.append(address)
            else:
                self.counts[reason] += 1
        if not usable or not name:
            if not found.addresses and not found.mapped:
                self.counts["empty"] += 1
            return None
        self.counts["addresses-over"] += max(0, len(usable) - ADDRESSES_AT_MOST)
        first = tuple(sorted(usable[:ADDRESSES_AT_MOST]))
        return Answer(client, name, first, time_of_day + found.ttl + self.config.grace)

    def _reason(self, packed: bytes) -> str | None:
        """Why an address is not worth learning."""
        if packed in self.config.own:
            return "own"
        address = int.from_bytes(packed, "big")
        return next((reason for mask, network, reason in self._prefixes if address & mask == network), None)


def _prefix(network: ipaddress.IPv4Network | ipaddress.IPv6Network, reason: str) -> tuple[int, int, str]:
    """Mask and address among those of 16 bytes, and why such addresses are not learnt."""
    first = int.from_bytes(pack(network.network_address), "big")
    return -1 << network.max_prefixlen - network.prefixlen, first, reason


def _refusal(head: message.Header, asked: tuple[bytes, int, int] | None) -> str | None:
    """Why nothing is learnt of an answer, by its head: the first of these that is so."""
    reasons = (
        ("malformed", not head.response or not head.query),
        ("unasked", asked is None),
        ("mismatched", asked != head.asks),
        ("other-class", head.klass != message.IN),
        ("other-type", head.kind not in _KINDS),
        ("truncated", head.truncated),
        ("nxdomain", head.rcode == message.NXDOMAIN),
        ("error", head.rcode != message.NOERROR),
    )
    return next((word for word, holds in reasons if holds), None)
