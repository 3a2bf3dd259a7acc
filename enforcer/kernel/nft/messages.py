"""The contents of the table ``inet enforcer`` as netlink messages.

The chains, in the order in which a packet meets them:

========= ===================== =========================================================================
refuse    prerouting, raw -300  rejects packets of refused flows before conntrack sees them
guard     prerouting, -50       after conntrack's reverse translation: drops packets that are still addressed
                                to a dedicated egress, since they belong to no flow
forward   forward, 0            fail closed: drops untranslatable and unmarked packets towards outside and
                                new connections towards inside; marked packets leave only by outside
                                interfaces, others from inside only by listed ones; marks connections that a
                                conntrack helper expects; where forwarding was off before the enforcer, drops
                                packets from and to unlisted interfaces
translate postrouting, nat 90   translates the source by mark; 90 comes before the usual 100
========= ===================== =========================================================================

A mark is the enforcer's only on a packet from an inside interface, so each of these chains compares the
interface too: other software uses the same bits, and a tunnel's outer packet inherits the inner one's mark.

``Ruleset.dns`` adds three chains for clients' DNS to remote resolvers and to the gateway's own:
``dns_forward`` (forward, 300), ``dns_input`` (input, 300) and ``dns_output`` (output, 300). They see neither
packets that another firewall drops at the usual priorities (0 to 225), nor packets that conntrack does not
recognise as answers. Questions are copied (NFLOG), answers are held (NFQUEUE) until user space accepts them.
Holding questions too would lose answers: a resolver library sends the questions for A and AAAA at once from
one port. Held before conntrack has confirmed an entry, each is translated separately, and the second entry
lives for one second (nf_conntrack_core.c, nf_ct_resolve_clash_harder): with a slower resolver its answer is
lost.

A dynamic set holds a token bucket for each client seen within DNS_RATE_TIMEOUT, so that one client's flood
fills neither the queue nor the log's buffer. Packets above the rate are counted and bypass user space.

A kernel without nft_queue gets the xtables target NFQUEUE by nft_compat. ``nft list ruleset`` then shows the
rules of ``dns_answers`` without a verdict and warns that iptables-nft manages the table, which is wrong:
nft(8) cannot print such a target (``nft --debug=netlink list ruleset`` can).

Linux 5.10 suffices. pyroute2 encodes everything but the set elements, of which there are five for each egress
IP: it takes 40 µs for one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Network
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_set_msg, nft_table_msg

from enforcer.constants import DNS_PORT, IFNAMSIZ, TCP, UDP
from enforcer.kernel import netlink
from enforcer.kernel.netlink import APPEND, CREATE, REQUEST, Message
from enforcer.kernel.nft import expr, wire
from enforcer.kernel.nft.expr import Expression
from enforcer.kernel.nft.protocol import (
    ACCEPT,
    ADMIN_PROHIBITED,
    DELTABLE,
    DESTINATION,
    DROP,
    EQUAL,
    FORWARD,
    GOTO,
    HOST_ORDER,
    INPUT,
    JUMP,
    META_IIF,
    META_IIFNAME,
    META_L4PROTO,
    META_MARK,
    META_OIF,
    META_OIFNAME,
    NETWORK_ORDER,
    NEWCHAIN,
    NEWOBJ,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    NFGEN,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_OBJECT_COUNTER,
    NOT_EQUAL,
    ORIGINAL,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    QUEUE_BYPASS,
    REG_1,
    REG_2,
    REJECT_ICMPX,
    REJECT_TCP_RESET,
    REPLY,
    RETURN,
    SET_EVAL,
    SET_MAP,
    SET_TIMEOUT,
    SNAT,
    SOURCE,
    STATE_INVALID,
    STATE_NEW,
    STATE_RELATED,
    STATE_UNTRACKED,
    TYPE_IFINDEX,
    TYPE_IFNAME,
    TYPE_IPV4,
    TYPE_IPV6,
    TYPE_MARK,
)
from enforcer.kernel.nft.ruleset import (
    COUNTERS,
    DNS_ANSWERS_OVER,
    DNS_QUESTIONS_OVER,
    DNS_QUEUE,
    Ruleset,
)

NFQ_INFO = struct.Struct("=HHHxx")  # struct xt_NFQ_info_v3
DNS_CLIENTS = 65_536
"""Maximum number of token buckets; packets of further clients are not limited."""
DNS_RATE_TIMEOUT = 10_000
"""Milliseconds; longer than a bucket takes to fill."""
CLIENT_MASKS = {NFPROTO_IPV4: bytes([255] * 4), NFPROTO_IPV6: bytes([255] * 8 + [0] * 8)}
"""A client's prefix by family: an IPv4 address, an IPv6 /64."""
AFTER_FIREWALLS = 300

# A message's elements form one attribute with a 16-bit length; an element takes up to 60 bytes.
ELEMENTS_PER_MESSAGE = 1000


Counters = Mapping[str, tuple[int, int]]


def build(
    name: str, comment: str, ruleset: Ruleset, counters: Counters, *, compat: bool = False
) -> list[Message]:
    """The messages that create or replace the table ``name``. ``compat``: the kernel has no nft_queue."""
    return list(_Table(name, ruleset, compat).messages(comment, counters))


class _Table:
    def __init__(self, name: str, ruleset: Ruleset, compat: bool) -> None:
        self._name = name
        self._ruleset = ruleset
        self._compat = compat

    def messages(self, comment: str, counters: Counters) -> Iterator[Message]:
        name = ("NFTA_TABLE_NAME", self._name)
        # Adding the table first makes the deletion valid if there is no table yet.
        yield wire.message(nft_table_msg, NEWTABLE, [name], CREATE)
        yield wire.message(nft_table_msg, DELTABLE, [name])
        yield wire.message(
            nft_table_msg, NEWTABLE, [name, ("NFTA_TABLE_USERDATA", {"value": comment})], CREATE
        )
        for counter in COUNTERS:
            yield self._counter(counter, *counters.get(counter, (0, 0)))
        yield from self._sets()
        yield from self._refuse()
        yield from self._guard()
        yield from self._forward()
        yield from self._translate()
        if self._ruleset.dns:
            yield from self._dns()

    def _sets(self) -> Iterator[Message]:
        rules = self._ruleset
        for name in ("inside", "within", "outside", "listed", "opened4"):
            interfaces = getattr(rules, name)
            if len(set(interfaces)) > 1:
                names = [wire.element(expr.padded(interface)) for interface in sorted(set(interfaces))]
                yield from self._set(name, TYPE_IFNAME, IFNAMSIZ, names)
        for name, interfaces in (("inside_index", rules.inside), ("outside_index", rules.outside)):
            indexes = rules.indexes_of(interfaces)
            if len(indexes) > 1:
                rows = [wire.element(wire.host32(index)) for index in indexes]
                yield from self._set(name, TYPE_IFINDEX, 4, rows)
        dedicated4 = [wire.element(address.packed) for address in sorted(rules.dedicated4)]
        yield from self._set("dedicated4", TYPE_IPV4, 4, dedicated4)
        for length, networks in self._by_length().items():
            dedicated6 = [wire.element(network.network_address.packed) for network in networks]
            yield from self._set(f"dedicated6_{length}", TYPE_IPV6, 16, dedicated6)
        source4 = [
            wire.element(wire.host32(mark), address.packed) for mark, address in sorted(rules.source4.items())
        ]
        yield from self._set("source4", TYPE_MARK, 4, source4, data=(TYPE_IPV4, 4), flags=[SET_MAP])
        source6 = [
            wire.element(wire.host32(mark), network.network_address.packed + network.broadcast_address.packed)
            for mark, network in sorted(rules.source6.items())
        ]
        yield from self._set("source6", TYPE_MARK, 4, source6, data=(TYPE_IPV6, 32), flags=[SET_MAP])

        # The reverse maps. During a switch two marks may have one address; the higher mark wins.
        egress4 = {address.packed: mark for mark, address in sorted(rules.source4.items())}
        egresses = {"egress4": (TYPE_IPV4, egress4)}
        egresses |= {f"egress6_{length}": (TYPE_IPV6, marks) for length, marks in self._egresses6().items()}
        for name, (kind, marks) in egresses.items():
            rows = [wire.element(address, wire.host32(mark)) for address, mark in marks.items()]
            width = 4 if kind == TYPE_IPV4 else 16
            yield from self._set(name, kind, width, rows, data=(TYPE_MARK, 4), flags=[SET_MAP])

    def _refuse(self) -> Iterator[Message]:
        # IPv4 fragments are reassembled here: conntrack's defragmentation runs at -400.
        yield self._chain("refuse", PREROUTING, -300)
        yield self._chain("reject_flow")
        refused = [*self._mark(EQUAL, self._ruleset.mark_mask), *self._from_inside()]
        yield self._rule("refuse", *refused, expr.verdict(GOTO, "reject_flow"))
        reset = expr.expression("reject", NFTA_REJECT_TYPE=REJECT_TCP_RESET, NFTA_REJECT_ICMP_CODE=0)
        yield self._rule("reject_flow", *expr.meta(META_L4PROTO, bytes([TCP])), reset)
        prohibited = {"NFTA_REJECT_TYPE": REJECT_ICMPX, "NFTA_REJECT_ICMP_CODE": ADMIN_PROHIBITED}
        yield self._rule("reject_flow", expr.expression("reject", **prohibited))

    def _guard(self) -> Iterator[Message]:
        # Before routing: for a removed address the kernel would answer "unreachable".
        yield self._chain("guard", PREROUTING, -50)
        for inside in self._came_from_inside():
            yield self._rule("guard", *self._mark(NOT_EQUAL, 0), *inside, expr.verdict(ACCEPT))
        silence = expr.count_and_drop("unsolicited")
        destination = expr.address(DESTINATION[NFPROTO_IPV4], 4)
        yield self._rule(
            "guard", *expr.family(NFPROTO_IPV4), destination, expr.lookup("dedicated4"), *silence
        )
        for length in self._by_length():
            prefix = [
                expr.address(DESTINATION[NFPROTO_IPV6], 16),
                expr.masked(IPv6Network((0, length)).netmask.packed),
            ]
            known = expr.lookup(f"dedicated6_{length}")
            yield self._rule("guard", *expr.family(NFPROTO_IPV6), *prefix, known, *silence)

    def _by_length(self) -> dict[int, list[IPv6Network]]:
        """The ranges by prefix length; each length has a hash set of its own.

        A set of intervals (nft_set_rbtree.c) would be empty for some microseconds after the transaction that
        creates it, during which the guard would be open.
        """
        found: dict[int, list[IPv6Network]] = {}
        for network in sorted(self._ruleset.dedicated6):
            found.setdefault(network.prefixlen, []).append(network)
        return found

    def _forward(self) -> Iterator[Message]:
        yield self._chain("forward", FORWARD, 0)
        yield self._chain("leaving")
        yield self._chain("entering")
        yield self._chain("expected")
        yield self._chain("astray")
        inside, outside = self._ruleset.inside, self._ruleset.outside
        entering = [
            *expr.interface(META_IIFNAME, "outside", outside),
            *expr.interface(META_OIFNAME, "inside", inside),
        ]
        # conntrack translates neither INVALID packets nor those that a notrack rule exempts.
        unknown = STATE_INVALID | STATE_UNTRACKED
        # Nearly all outgoing packets match the rule by index.
        refused = self._ruleset.mark_mask
        known = [*self._mark(NOT_EQUAL, 0), expr.compare(NOT_EQUAL, wire.host32(refused))]
        *by_index, by_name = self._leaving()
        for leaving in by_index:
            yield self._rule("forward", *known, *expr.state(unknown, EQUAL), *leaving, expr.verdict(ACCEPT))
        yield self._rule("forward", *by_name, expr.verdict(GOTO, "leaving"))
        yield self._rule("forward", *entering, expr.verdict(GOTO, "entering"))
        # Packets from a bridge (bridge-nf-call-iptables) pass `refuse` before they are marked.
        yield self._rule("leaving", *self._mark(EQUAL, refused), expr.verdict(GOTO, "reject_flow"))
        yield self._rule("leaving", *expr.state(unknown), *expr.count_and_drop("conntrack_invalid"))
        yield self._rule("leaving", *self._mark(EQUAL, 0), *expr.count_and_drop("unmarked"))
        yield self._rule(
            "entering", *expr.state(STATE_NEW | STATE_RELATED | unknown), expr.verdict(GOTO, "expected")
        )
        if self._ruleset.other:
            yield self._mark_untranslated()
        yield from self._expected(STATE_NEW | unknown)
        marked = [*self._mark(NOT_EQUAL, 0), *self._from_inside()]
        yield self._rule("forward", *marked, expr.verdict(GOTO, "astray"))
        yield self._rule("astray", expr.count("astray"), expr.verdict(GOTO, "reject_flow"))
        # The programs look up a packet's route on arrival; a later mark or address may change the route.
        within = expr.interface(META_IIFNAME, "within", self._ruleset.within)
        unlisted = [*within, *expr.no_interface(META_OIFNAME, "listed")]
        yield self._rule("forward", *unlisted, *expr.count_and_drop("unlisted"))
        yield from self._opened()

    def _opened(self) -> Iterator[Message]:
        """Drops packets that the kernel forwards only because the enforcer switched forwarding on."""
        rules = self._ruleset
        if not rules.opened4 and not rules.closed6:
            return
        stay = expr.count_and_drop("not_forwarded")
        yield self._chain("onwards")
        yield self._rule(
            "onwards", *expr.interface(META_OIFNAME, "listed", rules.listed), expr.verdict(ACCEPT)
        )
        yield self._rule("onwards", *stay)
        onwards = expr.verdict(GOTO, "onwards")
        if rules.opened4:
            opened = expr.interface(META_IIFNAME, "opened4", rules.opened4)
            yield self._rule("forward", *expr.family(NFPROTO_IPV4), *opened, onwards)
        if rules.closed6:
            listed = expr.interface(META_IIFNAME, "listed", rules.listed)
            yield self._rule("forward", *expr.family(NFPROTO_IPV6), *listed, onwards)
            for bridge in rules.bridged6:
                stays = [
                    *expr.interface(META_IIFNAME, "", [bridge]),
                    *expr.interface(META_OIFNAME, "", [bridge]),
                ]
                yield self._rule("forward", *expr.family(NFPROTO_IPV6), *stays, expr.verdict(ACCEPT))
            yield self._rule("forward", *expr.family(NFPROTO_IPV6), *stay)

    def _mark_untranslated(self) -> Message:
        """Marks untranslated answers for the program expect (bpf/inbound.h).

        It passes an answer if the packets that it answers leave by an `other` interface. The mark is that of
        a refusal, which no other packet from outside has. A packet with other software's mark bits gets none.
        """
        answer = [*expr.direction(REPLY), *expr.source_untranslated(), *self._marks_of_others(EQUAL)]
        refused = expr.constant(wire.host32(self._ruleset.mark_mask))
        return self._rule("entering", *answer, refused, expr.set_mark())

    def _marks_of_others(self, comparison: int) -> list[Expression]:
        """Matches packets whose mark has no bits outside of ours (EQUAL), or has some (NOT_EQUAL)."""
        others = wire.host32(~self._ruleset.mark_mask & 0xFFFFFFFF)
        return [expr.load("meta", META_MARK), expr.masked(others), expr.compare(comparison, bytes(4))]

    def _expected(self, unexpected: int) -> Iterator[Message]:
        """Marks the first packet of a connection that a helper expects with the mark of its egress IP.

        nf_tables before Linux 6.13 cannot combine two registers, so a packet with other mark bits gets no
        mark of ours.
        """
        yield self._rule("expected", *expr.state(unexpected), *expr.count_and_drop("inbound"))
        yield self._rule("expected", *self._marks_of_others(NOT_EQUAL), expr.verdict(ACCEPT))
        mark = expr.set_mark()
        for protocol in (TCP, UDP):  # other packets are ICMP errors
            about = expr.meta(META_L4PROTO, bytes([protocol]))
            to = [expr.ct_destination(NFPROTO_IPV4), expr.lookup("egress4", REG_1), mark]
            yield self._rule("expected", *expr.family(NFPROTO_IPV4), *about, *to)
            for length in self._egresses6():
                netmask = IPv6Network((0, length)).netmask.packed
                to = [
                    expr.ct_destination(NFPROTO_IPV6),
                    expr.masked(netmask),
                    expr.lookup(f"egress6_{length}", REG_1),
                    mark,
                ]
                yield self._rule("expected", *expr.family(NFPROTO_IPV6), *about, *to)

    def _egresses6(self) -> dict[int, dict[bytes, int]]:
        """The marks of ranges and of the shared address by network address, by prefix length."""
        found: dict[int, dict[bytes, int]] = {}
        for mark, network in sorted(self._ruleset.source6.items()):
            found.setdefault(network.prefixlen, {})[network.network_address.packed] = mark
        return found

    def _translate(self) -> Iterator[Message]:
        yield self._chain("translate", POSTROUTING, 90, kind="nat")
        random = ["NF_NAT_RANGE_MAP_IPS", "NF_NAT_RANGE_PROTO_RANDOM_FULLY"]
        for family, name, last, flags in (
            (NFPROTO_IPV4, "source4", REG_1, random),
            # NETMAP replaces the prefix and keeps the host bits: each client has one address.
            (NFPROTO_IPV6, "source6", REG_2, [*random, "NF_NAT_RANGE_NETMAP"]),
        ):
            translation = expr.expression(
                "nat",
                NFTA_NAT_TYPE=SNAT,
                NFTA_NAT_FAMILY=family,
                NFTA_NAT_REG_ADDR_MIN=REG_1,
                NFTA_NAT_REG_ADDR_MAX=last,
                NFTA_NAT_FLAGS=flags,
            )
            # No map has mark 0, so unmarked packets are not translated.
            mark = [expr.load("meta", META_MARK), expr.masked(wire.host32(self._ruleset.mark_mask))]
            for leaving in self._leaving():
                yield self._rule(
                    "translate", *expr.family(family), *leaving, *mark, expr.lookup(name, REG_1), translation
                )
        *_, by_name = self._leaving()
        strange = [*by_name, *self._mark(NOT_EQUAL, 0)]
        yield self._rule("translate", *strange, *expr.count_and_drop("untranslatable"))

    def _dns(self) -> Iterator[Message]:
        # Ports are compared first: nearly all packets differ there.
        asking = [
            expr.port(2),
            expr.compare(EQUAL, struct.pack(">H", DNS_PORT)),
            expr.verdict(JUMP, "dns_questions"),
        ]
        answering = [
            expr.port(0),
            expr.compare(EQUAL, struct.pack(">H", DNS_PORT)),
            expr.verdict(JUMP, "dns_answers"),
        ]
        yield self._chain("dns_questions")
        yield self._chain("dns_answers")
        yield self._chain("dns_forward", FORWARD, AFTER_FIREWALLS)
        yield self._chain("dns_input", INPUT, AFTER_FIREWALLS)
        yield self._chain("dns_output", OUTPUT, AFTER_FIREWALLS)
        yield self._rule("dns_forward", *asking)
        yield self._rule("dns_forward", *answering)
        yield self._rule("dns_input", *asking)
        yield self._rule("dns_output", *answering)
        inside = self._ruleset.inside
        asked = [*expr.interface(META_IIFNAME, "inside", inside), *expr.direction(ORIGINAL)]
        answered = [*expr.interface(META_OIFNAME, "inside", inside), *expr.direction(REPLY)]
        # A question above the rate passes without a copy.
        yield from self._rates("dns_questions", SOURCE, asked, DNS_QUESTIONS_OVER, RETURN)
        over = ACCEPT if self._ruleset.dns == "pass" else DROP
        yield from self._rates("dns_answers", DESTINATION, answered, DNS_ANSWERS_OVER, over)
        for protocol in (UDP, TCP):
            about = expr.meta(META_L4PROTO, bytes([protocol]))
            copied = expr.expression("log", NFTA_LOG_GROUP=DNS_QUEUE)
            yield self._rule("dns_questions", *about, *asked, copied)
            yield self._rule("dns_answers", *about, *answered, self._hold())

    def _rates(
        self, chain: str, client: Mapping[int, int], about: list[Expression], counter: str, verdict: int
    ) -> Iterator[Message]:
        """Counts a client's packets above DNS_RATE and ends them with this verdict.

        ``client`` is the offset of its address in the header, by family.
        """
        for family, mask in CLIENT_MASKS.items():
            rates = f"{chain}{4 if family == NFPROTO_IPV4 else 6}"
            kind = TYPE_IPV4 if family == NFPROTO_IPV4 else TYPE_IPV6
            yield self._rates_set(rates, kind, len(mask))
            key = [expr.address(client[family], len(mask))]
            if family == NFPROTO_IPV6:
                key.append(expr.masked(mask))
            over = [expr.over_rate(rates), expr.count(counter), expr.verdict(verdict)]
            yield self._rule(chain, *expr.family(family), *about, *key, *over)

    def _rates_set(self, name: str, kind: int, length: int) -> Message:
        """The dynamic set of clients and their token buckets."""
        attributes = [
            ("NFTA_SET_TABLE", self._name),
            ("NFTA_SET_NAME", name),
            ("NFTA_SET_FLAGS", [SET_TIMEOUT, SET_EVAL]),
            ("NFTA_SET_KEY_TYPE", kind),
            ("NFTA_SET_KEY_LEN", length),
            ("NFTA_SET_ID", 0),
            ("NFTA_SET_TIMEOUT", DNS_RATE_TIMEOUT),
            ("NFTA_SET_DESC", {"attrs": [("NFTA_SET_DESC_SIZE", DNS_CLIENTS)]}),
            ("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", wire.host32(NETWORK_ORDER))]),
        ]
        return wire.message(nft_set_msg, NEWSET, attributes, CREATE)

    def _hold(self) -> Expression:
        """The statement that queues a packet."""
        flags = QUEUE_BYPASS if self._ruleset.dns == "pass" else 0
        if self._compat:
            info = NFQ_INFO.pack(DNS_QUEUE, 1, flags)
            return expr.expression(
                "target", NFTA_TARGET_NAME="NFQUEUE", NFTA_TARGET_REV=3, NFTA_TARGET_INFO=info
            )
        return expr.expression("queue", NFTA_QUEUE_NUM=DNS_QUEUE, NFTA_QUEUE_TOTAL=1, NFTA_QUEUE_FLAGS=flags)

    def _from_inside(self) -> list[Expression]:
        return expr.interface(META_IIFNAME, "inside", self._ruleset.inside)

    def _came_from_inside(self) -> list[list[Expression]]:
        """Matches of "from inside", cheapest first: by index, if such an interface exists, then by name.

        The kernel copies the name for each comparison (nft_meta_store_ifname, net/netfilter/nft_meta.c): two
        comparisons of names in each of three chains cost 4 % of a new flow.
        """
        indexes = self._ruleset.indexes_of(self._ruleset.inside)
        by_index = expr.interface_index(META_IIF, "inside_index", indexes) if indexes else []
        return [each for each in (by_index, self._from_inside()) if each]

    def _leaving(self) -> list[list[Expression]]:
        """Matches of "from inside to outside" in the same order; the last one is by name."""
        inside, outside = (
            self._ruleset.indexes_of(names) for names in (self._ruleset.inside, self._ruleset.outside)
        )
        by_name = [*self._from_inside(), *expr.interface(META_OIFNAME, "outside", self._ruleset.outside)]
        if not inside or not outside:
            return [by_name]
        came = expr.interface_index(META_IIF, "inside_index", inside)
        return [[*came, *expr.interface_index(META_OIF, "outside_index", outside)], by_name]

    def _mark(self, comparison: int, value: int) -> list[Expression]:
        """Compares the masked mark, which stays in register 1, with ``value``."""
        masked = expr.masked(wire.host32(self._ruleset.mark_mask))
        return [expr.load("meta", META_MARK), masked, expr.compare(comparison, wire.host32(value))]

    def _counter(self, name: str, packets: int, size: int) -> Message:
        values = [("NFTA_COUNTER_PACKETS", packets), ("NFTA_COUNTER_BYTES", size)]
        attributes = [
            ("NFTA_OBJ_TABLE", self._name),
            ("NFTA_OBJ_NAME", name),
            ("NFTA_OBJ_TYPE", NFT_OBJECT_COUNTER),
            ("NFTA_OBJ_DATA", {"attrs": values}),
        ]
        return wire.message(wire.nft_obj_msg, NEWOBJ, attributes, CREATE)

    def _chain(self, name: str, hook: int | None = None, priority: int = 0, kind: str = "filter") -> Message:
        attributes: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", self._name), ("NFTA_CHAIN_NAME", name)]
        if hook is not None:
            at = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]
            attributes += [("NFTA_CHAIN_HOOK", {"attrs": at}), ("NFTA_CHAIN_TYPE", kind)]
        return wire.message(nft_chain_msg, NEWCHAIN, attributes, CREATE)

    def _rule(self, chain: str, *expressions: Expression) -> Message:
        attributes = [
            ("NFTA_RULE_TABLE", self._name),
            ("NFTA_RULE_CHAIN", chain),
            ("NFTA_RULE_EXPRESSIONS", list(expressions)),
        ]
        return wire.message(wire.rule_msg, NEWRULE, attributes, CREATE | APPEND)

    def _set(
        self,
        name: str,
        kind: int,
        length: int,
        elements: list[bytes],
        *,
        data: tuple[int, int] | None = None,
        flags: Iterable[str] = (),
    ) -> Iterator[Message]:
        """A set or map and its elements; ``data`` is a map's type and length."""
        order = HOST_ORDER if kind in (TYPE_MARK, TYPE_IFINDEX, TYPE_IFNAME) else NETWORK_ORDER
        userdata = [("NFTNL_UDATA_SET_KEYBYTEORDER", wire.host32(order))]
        attributes: list[tuple[str, Any]] = [
            ("NFTA_SET_TABLE", self._name),
            ("NFTA_SET_NAME", name),
            ("NFTA_SET_FLAGS", list(flags)),
            ("NFTA_SET_KEY_TYPE", kind),
            ("NFTA_SET_KEY_LEN", length),
            ("NFTA_SET_ID", 0),
        ]
        if data is not None:
            attributes += [("NFTA_SET_DATA_TYPE", data[0]), ("NFTA_SET_DATA_LEN", data[1])]
            order = HOST_ORDER if data[0] == TYPE_MARK else NETWORK_ORDER
            userdata.append(("NFTNL_UDATA_SET_DATABYTEORDER", wire.host32(order)))
            if data == (TYPE_IPV6, 32):
                userdata.append(("NFTNL_UDATA_SET_DATA_INTERVAL", wire.host32(1)))
        # With a size the kernel uses the fixed hash table instead of the resizable one.
        size = [("NFTA_SET_DESC_SIZE", max(1, len(elements)))]
        attributes.append(("NFTA_SET_DESC", {"attrs": size}))
        attributes.append(("NFTA_SET_USERDATA", userdata))
        yield wire.message(nft_set_msg, NEWSET, attributes, CREATE)
        owner = wire.string(1, self._name) + wire.string(2, name)
        for start in range(0, len(elements), ELEMENTS_PER_MESSAGE):
            chunk = netlink.nested(3, *elements[start : start + ELEMENTS_PER_MESSAGE])
            yield Message(NEWSETELEM, REQUEST | CREATE, NFGEN + owner + chunk)
