"""Turns packets of DNS into names to learn.

The reader learns the name in the question, for each address of the answer. It does not learn aliases
(CNAMEs): Cloudflare's Host selector means the name that the user entered, and policies about a CDN's names
would match unrelated sites. It learns each name for the asking client and for all clients, because a client
with both families asks from one address and connects from another.
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
from enforcer.dns.questions import QuestionKey, Questions
from enforcer.dns.stream import Streams
from enforcer.facts.names import client_prefix
from enforcer.facts.rows import ANY_CLIENT, LearntName

ADDRESSES_AT_MOST = 64
"""Limit for the addresses learnt from one answer; the first ones count."""
# After one of these, the real answer may still arrive, so the question stays.
_FORGERIES = ("unasked", "mismatched", "malformed")
_KINDS = {message.A, message.AAAA, message.ANY, message.HTTPS, message.SVCB}
# This network, loopback, link-local, multicast and reserved addresses (RFC 6890).
_UNUSABLE: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
    *map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")),
    *map(ipaddress.IPv6Network, ("::/128", "::1/128", "fe80::/10", "ff00::/8")),
]


class LearningConfig(NamedTuple):
    """The parts of the configuration that the reader uses."""

    resolvers: frozenset[bytes] = frozenset()
    """Resolvers whose answers are learnt; empty: all."""
    fail_open: bool = True
    grace: float = 30.0
    """Seconds added to the TTL of a name."""
    own: frozenset[bytes] = frozenset()
    private: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    ranges: tuple[ipaddress.IPv6Network, ...] = ()
    """IPv6 egress ranges of this gateway."""


def learning_config(config: Mapping[str, Any]) -> LearningConfig:
    """Return the reader's part of a configuration in JSON form."""
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
    """The names to learn from one answer; the addresses are sorted."""

    client: bytes
    name: str
    addresses: tuple[bytes, ...]
    expires: float

    def rows(self) -> list[LearntName]:
        """Return the rows for the client and for ANY_CLIENT."""
        payer = client_prefix(self.client)
        clients = (self.client, ANY_CLIENT)
        return [
            LearntName(who, one, self.name, self.expires, payer) for who in clients for one in self.addresses
        ]


class Reader:
    """Parses questions and answers; keeps unanswered questions, TCP streams and counters."""

    def __init__(self, wanted: LearningConfig) -> None:
        self.counts: Counter[str] = Counter()
        self.questions = Questions(self.counts)
        self._asking = Streams(self.counts)
        self._answering = Streams(self.counts)
        self.configure(wanted)

    def configure(self, wanted: LearningConfig) -> None:
        """Use another configuration; questions and streams stay."""
        self.config = wanted
        self._prefixes = [
            *(_prefix(network, "unusable") for network in _UNUSABLE),
            *(_prefix(network, "own") for network in wanted.ranges),
            *(_prefix(network, "private") for network in wanted.private),
        ]
        self._cached_reason = lru_cache(maxsize=4096)(self._unlearnable)

    @property
    def streams(self) -> int:
        """Number of TCP streams (one for each direction of a connection)."""
        return len(self._asking) + len(self._answering)

    def expire(self, now: float) -> None:
        """Remove unanswered questions and silent streams after their lifetime."""
        self.questions.expire(now)
        self._asking.expire(now)
        self._answering.expire(now)

    def question(self, data: bytes, now: float) -> None:
        """Note the questions of a copied packet. ``now`` is in seconds of a monotonic clock."""
        packet = parse(data)
        if packet is None:
            self.counts["question-strange"] += 1
        if packet is None or not self._is_listed(packet.destination):
            return
        for wire in self._messages(packet, packet.source, self._asking, now):
            self._note(packet, wire, now)

    def answers(self, data: bytes, now: float, time_of_day: float) -> list[Answer]:
        """Return the answers that a held packet completes and that are to be learnt."""
        packet = parse(data)
        if packet is None:
            self.counts["packet-strange"] += 1
            return []
        if not self._is_listed(packet.source):
            self.counts["unlisted"] += bool(packet.payload)
            return []
        found = []
        for wire in self._messages(packet, packet.destination, self._answering, now):
            answer = self._answer(packet, wire, now, time_of_day)
            if answer is not None:
                found.append(answer)
        return found

    def _is_listed(self, resolver: bytes) -> bool:
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
        key = QuestionKey(
            packet.source, packet.source_port, packet.destination, packet.protocol, asked.number
        )
        self.questions.note(key, asked.question, now)

    def _answer(self, packet: Packet, wire: bytes, now: float, time_of_day: float) -> Answer | None:
        try:
            head = message.header(wire)
            key = QuestionKey(
                packet.destination, packet.destination_port, packet.source, packet.protocol, head.number
            )
            asked = self.questions.find(key, now)
            counter = _rejection(head, asked)
            found = message.answer_addresses(wire, head) if counter is None else None
        except MalformedError:
            counter, found = "malformed", None
        if counter not in _FORGERIES:
            self.questions.answered(key)
        if found is None:
            self.counts[str(counter)] += 1
            return None
        return self._usable_answer(packet.destination, head, found, time_of_day)

    def _usable_answer(
        self, client: bytes, head: message.Header, found: message.AnswerAddresses, time_of_day: float
    ) -> Answer | None:
        self.counts["service-elsewhere"] += found.elsewhere
        self.counts["unusable"] += found.mapped
        name = message.host(head.name, head.kind)
        usable = []
        for address in found.addresses:
            reason = self._cached_reason(address)
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

    def _unlearnable(self, packed: bytes) -> str | None:
        """Return the counter for an address that is not learnt, or None."""
        if packed in self.config.own:
            return "own"
        address = int.from_bytes(packed, "big")
        return next((reason for mask, network, reason in self._prefixes if address & mask == network), None)


def _prefix(network: ipaddress.IPv4Network | ipaddress.IPv6Network, reason: str) -> tuple[int, int, str]:
    """Return mask and first address as 128-bit numbers, and the counter for addresses in the network."""
    first = int.from_bytes(pack(network.network_address), "big")
    return -1 << network.max_prefixlen - network.prefixlen, first, reason


def _rejection(head: message.Header, asked: tuple[bytes, int, int] | None) -> str | None:
    """Return the counter of the first reason for which an answer is not learnt, or None."""
    reasons = (
        ("malformed", not head.response or not head.query),
        ("unasked", asked is None),
        ("mismatched", asked != head.question),
        ("other-class", head.klass != message.IN),
        ("other-type", head.kind not in _KINDS),
        ("truncated", head.truncated),
        ("nxdomain", head.rcode == message.NXDOMAIN),
        ("error", head.rcode != message.NOERROR),
    )
    return next((counter for counter, holds in reasons if holds), None)
