"""The kinds of traffic: what is sent, what the origin must see of it, what `explain` must report."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lab import clients
from lab.configuration import ABROAD_PORT, LAX1, LAX2, SHOP_PORT, TRAVEL_PORT
from lab.demo.stage import FAMILIES, PERSON, READER, SITE, Question, Stage
from lab.netns import Namespace
from lab.servers import logged
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, PRIVATE, RESOLVER, SHARED

CLOSED_PORT = 9999
ROUTER = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}  # the first hop beyond the gateway
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # ICMP type and code: RFC 792, RFC 4443
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}

Drive = Callable[[Stage, int], list[str]]


@dataclass(frozen=True)
class Should:
    """What must be seen, by family: an address in one of these networks, or exactly this word."""

    values: tuple[dict[int, str], ...]
    text: str = ""

    def shown(self, family: int) -> str:
        """The expectation as the demo prints it."""
        value = self.values[0][family]
        return self.text or (f"one of {value}" if "/" in value else value)

    def met(self, family: int, saw: Iterable[str]) -> bool:
        """Whether all observations are equal and meet the expectation."""
        seen = set(saw)
        return len(seen) == 1 and any(_within(next(iter(seen)), value[family]) for value in self.values)


@dataclass(frozen=True)
class Row:
    """One kind of traffic. ``said`` is the verdict and the reason that `explain` must report."""

    title: str
    program: str
    drive: Drive
    should: Should
    question: Question | None = None
    said: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Result:
    """The outcome of one row in one family."""

    family: int
    saw: str
    should: str
    said: str
    good: bool


def play(stage: Stage, row: Row) -> Iterator[Result]:
    """Run `explain`, then send the traffic, in both families."""
    answers = stage.explain(row.question) if row.question else {}
    for family in FAMILIES:
        try:
            saw = row.drive(stage, family)
        except OSError as error:
            saw = [clients.fate(error)]
        answer = answers.get(family)
        yield Result(
            family=family,
            saw=_counted(saw),
            should=row.should.shown(family),
            said=_told(answer) if answer else "- (from no client: not asked)",
            good=row.should.met(family, saw) and (answer is None or _agrees(row, answer, saw)),
        )


def _agrees(row: Row, answer: dict[str, Any], saw: list[str]) -> bool:
    """Whether `explain` reported the expected reason, and the address that the origin then saw."""
    if (answer["verdict"], answer["reason"]) != row.said:
        return False
    return answer["source_ip"] is None or not _is_address(saw[0]) or answer["source_ip"] == saw[0]


def _told(answer: dict[str, Any]) -> str:
    parts = [answer["verdict"], answer["reason"], answer["policy"]]
    if answer["verdict"] == "dedicated":
        parts.append(answer["egress"])
    return " · ".join(part for part in [*parts, answer["source_ip"]] if part)


def _counted(saw: list[str]) -> str:
    different = list(dict.fromkeys(saw))
    if len(different) == 1 and len(saw) > 1:
        return f"{different[0]}, {len(saw)} times"
    return ", ".join(different) or "nothing"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _within(text: str, value: str) -> bool:
    if not _is_address(text):
        return text == value
    return ipaddress.ip_address(text) in ipaddress.ip_network(value)


def web(origin: dict[int, str], port: int = 80, scheme: str = "http", times: int = 1) -> Drive:
    """Run curl against nginx, which answers with the address that it sees."""

    def drive(stage: Stage, family: int) -> list[str]:
        return [_fetch(stage.lab.client, clients.url(origin[family], port, scheme)) for _ in range(times)]

    return drive


def _fetch(namespace: Namespace, url: str) -> str:
    status, body = clients.curl(namespace, url)
    if status:
        return body.split()[0]
    return "refused" if body.startswith("curl: (7)") else body  # CURLE_COULDNT_CONNECT


def quic(origin: dict[int, str], times: int = 1) -> Drive:
    """Send an HTTP/3 request; the body is the address that the server sees."""

    def drive(stage: Stage, family: int) -> list[str]:
        return [clients.quic_ask(stage.lab.client, origin[family]).address for _ in range(times)]

    return drive


def as_person(stage: Stage, family: int) -> list[str]:
    """Send a request under a session for the client's address; without it the origin sees another address."""
    stage.gateway.run("session", "add", CLIENT[family], "--email", PERSON, "--ttl", "60")
    try:
        return web(ORIGIN1)(stage, family)
    finally:
        stage.gateway.run("session", "remove", CLIENT[family])


def by_name(stage: Stage, family: int) -> list[str]:
    """Query the resolver, and open the first connection right after its answer."""
    client, source = stage.lab.client, READER[family]
    kind = {4: "A", 6: "AAAA"}[family]
    (address,) = clients.dig(client, RESOLVER[family], SITE, kind, source=source)
    return [clients.tcp_ask(client, address, source=source).address]


def dns(tcp: bool) -> Drive:
    """Run dig against unbound, whose query log has the client's address."""

    def drive(stage: Stage, family: int) -> list[str]:
        client, resolver = stage.lab.client, stage.services.resolver
        queries = logged(resolver.queries, lambda: clients.dig(client, RESOLVER[family], tcp=tcp))
        return [asker for asker, _, _ in queries]

    return drive


def other_dns(stage: Stage, family: int) -> list[str]:
    """Send a datagram to port 53 of a server that is not one of the lab's resolvers."""
    return [clients.udp_ask(stage.lab.client, ORIGIN1[family], 53).address]


def ping(stage: Stage, family: int) -> list[str]:
    """Ping the origin, where a raw socket receives the request."""
    client, reporter = stage.lab.client, stage.services.reporter["origin1"]
    seen = logged(lambda: reporter.seen("icmp"), lambda: clients.ping(client, ORIGIN1[family]))
    return [each.address for each in seen]


def icmp_error(ttl: int, expected: dict[int, tuple[int, int]]) -> Drive:
    """Send a datagram to a closed port; it expires on the path, or the origin rejects it.

    The client's kernel hands an error to the socket only if the packet quoted in it is that socket's own:
    its addresses and ports translated back.
    """

    def drive(stage: Stage, family: int) -> list[str]:
        answer = clients.ttl_probe(stage.lab.client, ORIGIN1[family], ttl, CLOSED_PORT)
        return [_error(answer, expected[family])]

    return drive


def _error(answer: object, expected: tuple[int, int]) -> str:
    if not isinstance(answer, clients.IcmpError):
        return "no error"
    right = (answer.kind, answer.code) == expected
    return f"from {answer.offender}" if right else f"type {answer.kind}, code {answer.code}"


def refused(stage: Stage, family: int) -> list[str]:
    """Send a request whose policy has its egress IP at another location: refused, and counted once."""
    before = stage.counted("unavailable")
    saw = web(ORIGIN2, ABROAD_PORT)(stage, family)
    counted = stage.counted("unavailable") - before
    return [f"{saw[0]}, {counted} counted"]


def between(stage: Stage, family: int) -> list[str]:
    """Open a session with the other inside network, which `flows` must not list."""
    with clients.Session(stage.lab.client, CLIENT2[family]) as session:
        listed = any(row["origin_ip"] == CLIENT2[family] for row in stage.gateway.json("flows"))
        return [session.seen.address + (", counted" if listed else "")]


def gateway_dns(stage: Stage, family: int) -> list[str]:
    """Query the gateway's own resolver; the address is from its log."""
    client, resolver = stage.lab.client, stage.services.gateway_resolver
    queries = logged(resolver.queries, lambda: clients.dig(client, GATEWAY[family]))
    return [asker for asker, _, _ in queries]


def gateway_ssh(stage: Stage, family: int) -> list[str]:
    """Connect to the gateway's own sshd; the address is from its log."""
    client, sshd = stage.lab.client, stage.services.sshd
    return [each.address for each in logged(sshd.seen, lambda: clients.ssh_banner(client, GATEWAY[family]))]


def from_gateway(stage: Stage, family: int) -> list[str]:
    """Run curl on the gateway itself."""
    return [_fetch(stage.lab.gw, clients.url(ORIGIN1[family]))]


def _word(text: str) -> Should:
    return Should(({4: text, 6: text},))


def _from(sender: dict[int, str]) -> Should:
    return Should(({family: f"from {address}" for family, address in sender.items()},))


_shared = Should((SHARED,))
_untouched = Should((CLIENT,))
_lax1, _lax2 = Should((LAX1,)), Should((LAX2,))
_nearest = Should((LAX1, LAX2), "lax-1's or lax-2's, kept")

MAIN = (
    Row(
        "TCP that policy bank matches: its egress IP",
        "curl, nginx",
        web(ORIGIN1, times=2),
        _lax1,
        Question(ORIGIN1, "tcp", 80),
        ("dedicated", "policy"),
    ),
    Row(
        "TCP that no policy matches: the nearest, and the client stays on it",
        "curl, nginx",
        web(ORIGIN2, times=2),
        _nearest,
        Question(ORIGIN2, "tcp", 80),
        ("dedicated", "nearest"),
    ),
    Row(
        "TCP of a person that policy person names, by the session of her address",
        "enforcer session, curl, nginx",
        as_person,
        _lax2,
        Question(ORIGIN1, "tcp", 80, overrides=("--email", PERSON)),
        ("dedicated", "policy"),
    ),
    Row(
        "TCP to a site that policy site names, its first connection after the DNS answer",
        "dig, unbound, TCP",
        by_name,
        _lax2,
        Question(ORIGIN1, "tcp", 9000, READER, ("--host", SITE)),
        ("dedicated", "policy"),
    ),
    Row(
        "TCP of policy shop, egress: default",
        "curl with TLS, nginx",
        web(ORIGIN2, SHOP_PORT, "https"),
        _shared,
        Question(ORIGIN2, "tcp", SHOP_PORT),
        ("shared", "default"),
    ),
    Row(
        "QUIC that policy bank matches, proxy.udp on: as TCP",
        "HTTP/3",
        quic(ORIGIN1),
        _lax1,
        Question(ORIGIN1, "udp", 443),
        ("dedicated", "policy"),
    ),
    Row(
        "QUIC that no policy matches, proxy.udp on: as TCP",
        "HTTP/3",
        quic(ORIGIN2, times=2),
        _nearest,
        Question(ORIGIN2, "udp", 443),
        ("dedicated", "nearest"),
    ),
    Row(
        "DNS over UDP",
        "dig, unbound's log",
        dns(tcp=False),
        _shared,
        Question(RESOLVER, "udp", 53),
        ("shared", "dns"),
    ),
    Row(
        "DNS over TCP",
        "dig +tcp, unbound's log",
        dns(tcp=True),
        _shared,
        Question(RESOLVER, "tcp", 53),
        ("shared", "dns"),
    ),
    Row(
        "DNS to a server that policy bank names",
        "datagram to port 53",
        other_dns,
        _shared,
        Question(ORIGIN1, "udp", 53),
        ("shared", "dns"),
    ),
    Row("ping", "ping", ping, _shared, Question(ORIGIN1, "icmp"), ("shared", "icmp")),
    Row(
        "ICMP error of the origin, port unreachable: reaches the client's socket, translated back",
        "datagram to a closed port",
        icmp_error(64, PORT_UNREACHABLE),
        _from(ORIGIN1),
        Question(ORIGIN1, "udp", CLOSED_PORT),
        ("dedicated", "policy"),
    ),
    Row(
        "ICMP error of a router, time exceeded: the same",
        "datagram with TTL 2, as traceroute's",
        icmp_error(2, TIME_EXCEEDED),
        _from(ROUTER),
        Question(ORIGIN1, "udp", CLOSED_PORT),
        ("dedicated", "policy"),
    ),
    Row(
        "A private network",
        "curl, nginx",
        web(PRIVATE),
        _shared,
        Question(PRIVATE, "tcp", 80),
        ("shared", "tunnel"),
    ),
    Row(
        "TCP of policy travel, its egress IP is at another location: its fallback",
        "curl, nginx",
        web(ORIGIN2, TRAVEL_PORT),
        _lax2,
        Question(ORIGIN2, "tcp", TRAVEL_PORT),
        ("dedicated", "fallback"),
    ),
    Row(
        "TCP of policy abroad, the same without a fallback: refused and counted",
        "curl",
        refused,
        _word("refused, 1 counted"),
        Question(ORIGIN2, "tcp", ABROAD_PORT),
        ("refused", "unavailable"),
    ),
    Row(
        "Between two inside networks: untouched, uncounted",
        "TCP",
        between,
        _untouched,
        Question(CLIENT2, "tcp", 9000),
        ("untouched", "inside"),
    ),
    Row(
        "To the gateway's own resolver: untouched",
        "dig, unbound's log",
        gateway_dns,
        _untouched,
        Question(GATEWAY, "udp", 53),
        ("untouched", "local"),
    ),
    Row(
        "To the gateway's own sshd: untouched",
        "banner, sshd's log",
        gateway_ssh,
        _untouched,
        Question(GATEWAY, "tcp", 22),
        ("untouched", "local"),
    ),
    Row("From the gateway itself: its own address", "curl, nginx", from_gateway, _shared),
)

UDP_OFF = Row(
    "QUIC that policy bank matches, proxy.udp off: the shared address",
    "HTTP/3",
    quic(ORIGIN1),
    _shared,
    Question(ORIGIN1, "udp", 443),
    ("shared", "udp-off"),
)
ADDRESS_GONE = Row(
    "TCP of policy bank, its egress addresses were taken off the gateway: its fallback",
    "curl, nginx",
    web(ORIGIN1),
    _lax2,
    Question(ORIGIN1, "tcp", 80),
    ("dedicated", "fallback"),
)
ADDRESS_BACK = Row(
    "The same when the addresses are back",
    "curl, nginx",
    web(ORIGIN1),
    _lax1,
    Question(ORIGIN1, "tcp", 80),
    ("dedicated", "policy"),
)
