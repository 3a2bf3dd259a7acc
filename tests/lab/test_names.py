"""Tests of policies about hosts and domains, with real resolvers: they decide the very first connection."""

from __future__ import annotations

import itertools
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import dns.flags
import dns.message
import dns.rrset
import pytest
from truth import families, leaves_from, running, wait_for

from enforcer.address import pack
from enforcer.facts.store import ANY_CLIENT, Store
from enforcer.instance import Instance
from lab import names
from lab.clients import Session, curl, dig, tcp_ask, url
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.netns import execute
from lab.program import start_all
from lab.servers import Nginx, Reporter, Unbound
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, RESOLVER, SHARED, Lab

MANY = 10_000
# Addresses of origin1; each name has its own.
POOL = {4: IPv4Address("198.18.64.0"), 6: IPv6Address("2001:db8:a1:1::")}
FORGER = "198.51.100.254"  # The internet's router, where tests answer DNS queries themselves.
ZONE = "example.lab"

# Names for one test each: a host with a policy, one in a domain with a policy, one without a policy.
FRESH = 60
_numbers = itertools.count()
ALIAS = f"alias.{ZONE}"
DOMAIN, OTHER_DOMAIN = f"shop.{ZONE}", f"bank.{ZONE}"
resolvers = pytest.mark.parametrize(
    "resolver", [RESOLVER[4], RESOLVER[6], GATEWAY[4], GATEWAY[6]],
    ids=["away-4", "away-6", "here-4", "here-6"],
)  # fmt: skip


def pool(number: int, family: int) -> str:
    """An address of origin1, by its number."""
    return str(POOL[family] + number)


def both(name: str, number: int, ttl: int = 60) -> list[str]:
    return [f"{name} {ttl} IN A {pool(number, 4)}", f"{name} {ttl} IN AAAA {pool(number, 6)}"]


def records() -> Iterator[str]:
    """The records of the zone; below address 1,000 for single tests, above for the test of many names."""
    for number in range(FRESH):
        yield from both(f"h{number}", 300 + number)
        yield from both(f"deep.under.s{number}.shop", 400 + number)
        yield from both(f"p{number}", 500 + number)
    yield from ["alias 60 IN CNAME step.cdn", "step.cdn 60 IN CNAME end.cdn", *both("end.cdn", 4)]
    for number in range(60):
        yield from both("big-away.shop", 100 + number)
        yield from both("big-here.shop", 200 + number)
    yield from both("short.shop", 5, ttl=1)
    yield from both("one.shop", 6)
    yield from both("two.bank", 6)
    yield f"service.shop 60 IN HTTPS 1 . alpn=h2 ipv4hint={pool(7, 4)} ipv6hint={pool(7, 6)}"
    for number in range(MANY):
        kind = "A" if number % 4 < 2 else "AAAA"
        domain = "shop" if number % 2 else "bank"
        yield f"n{number}.{domain} 60 IN {kind} {pool(1000 + number, 4 if kind == 'A' else 6)}"


class Fresh(NamedTuple):
    """Names of one test, which no other test looks up."""

    number: int

    @property
    def host(self) -> str:
        return f"h{self.number}.{ZONE}"

    @property
    def deep(self) -> str:
        return f"deep.under.s{self.number}.{DOMAIN}"

    @property
    def plain(self) -> str:
        return f"p{self.number}.{ZONE}"

    def host_address(self, family: int) -> str:
        return pool(300 + self.number, family)

    def deep_address(self, family: int) -> str:
        return pool(400 + self.number, family)


@pytest.fixture
def fresh() -> Fresh:
    return Fresh(next(_numbers))


def policies() -> list[dict[str, object]]:
    """Policies: hosts and a domain leave by lax-1, another domain by lax-2, the rest by the shared one."""
    lax1, lax2 = ({"ipv4": egress[4], "ipv6": egress[6]} for egress in (LAX1, LAX2))
    hosts = " ".join(f'"{Fresh(number).host}"' for number in range(FRESH))
    return [
        {"name": "host", "precedence": 10, "traffic": f"net.fqdn.host in {{{hosts}}}", "egress": lax1},
        {"name": "alias", "precedence": 11, "traffic": f'net.fqdn.host == "{ALIAS}"', "egress": lax1},
        {"name": "cdn", "precedence": 12, "traffic": 'net.fqdn.host matches "cdn"', "egress": "default"},
        {
            "name": "domain",
            "precedence": 20,
            "traffic": f'any(net.fqdn.domains[*] == "{DOMAIN}")',
            "egress": lax1,
        },
        {
            "name": "other domain",
            "precedence": 30,
            "traffic": f'any(net.fqdn.domains[*] in {{"{OTHER_DOMAIN}"}})',
            "egress": lax2,
        },
        {"name": "rest", "precedence": 1000, "traffic": "", "egress": "default"},
    ]


def config(lab: Lab, **dns: object) -> Document:
    return lab.config(policies=policies(), dns=dns)


@pytest.fixture(scope="module")
def origin(lab: Lab) -> Iterator[Reporter]:
    """origin1 with thousands of addresses, both resolvers and a reporter."""
    lab.net.ip(f"route add {POOL[4]}/18 via {ORIGIN1[4]}", f"route add {POOL[6]}/64 via {ORIGIN1[6]}")
    lab.origin1.ip(f"route add local {POOL[4]}/18 dev lo", f"route add local {POOL[6]}/64 dev lo")
    reporter = Reporter(lab.origin1, lab.directory)
    programs = [
        reporter,
        Nginx(lab.origin1, lab.directory, http=(80,), https=()),
        Unbound(lab.resolver, lab.directory, records=list(records())),
        Unbound(lab.gw, lab.directory, forward=RESOLVER[4]),
    ]
    try:
        start_all(programs)
        yield reporter
    finally:
        for program in programs:
            program.stop()


@pytest.fixture(scope="module")
def enforced(lab: Lab, origin: Reporter) -> Iterator[LabGateway]:
    with running(lab, config(lab)) as gateway:
        yield gateway


def learnt(gateway: LabGateway, client: str | None = None) -> dict[str, set[str]]:
    """The names of each address that the daemon has learnt for this client; None: for any client."""
    who = ANY_CLIENT if client is None else pack(ip_address(client))
    found: dict[str, set[str]] = {}
    with closing(Store(Instance(gateway.lab.gw.cookie()).facts_file, create=False)) as store:
        for row in store.names():
            if row.client == who:
                address = IPv6Address(row.address)
                found.setdefault(str(address.ipv4_mapped or address), set()).add(row.name)
    return found


def kind_of(family: int) -> str:
    return "A" if family == 4 else "AAAA"


def first(lab: Lab, resolver: str, name: str, family: int) -> str:
    """Look a name up and connect to the answer at once; returns the source that the origin saw."""
    *_, address = dig(lab.client, resolver, name, kind_of(family))  # the last line; CNAMEs come first
    return tcp_ask(lab.client, address).address


# The first tests start an enforcer each; the later ones share one.


def test_only_the_resolvers_that_are_listed(lab: Lab, origin: Reporter, fresh: Fresh) -> None:
    with running(lab, config(lab, resolvers=[RESOLVER[4], GATEWAY[6]])) as gateway:
        assert first(lab, RESOLVER[6], fresh.host, 4) == SHARED[4]
        assert learnt(gateway) == {}
        assert first(lab, RESOLVER[4], fresh.host, 4) == LAX1[4]
        assert first(lab, GATEWAY[6], fresh.deep, 6) == leaves_from(LAX1, 6)


@pytest.mark.slow
@families
def test_a_name_lives_for_its_ttl_and_as_long_as_a_flow(
    lab: Lab, origin: Reporter, fresh: Fresh, family: int
) -> None:
    with running(lab, config(lab, grace=1)) as gateway, ExitStack() as stack:
        (address,) = dig(lab.client, RESOLVER[4], f"short.{DOMAIN}", kind_of(family))
        assert dig(lab.client, RESOLVER[4], fresh.deep, kind_of(family))
        session = stack.enter_context(Session(lab.client, address))
        assert session.seen.address == leaves_from(LAX1, family)
        time.sleep(4)  # TTL 1, grace 1, and a sweep each second
        assert tcp_ask(lab.client, address).address == leaves_from(LAX1, family)
        assert session.ask().address == leaves_from(LAX1, family)
        assert learnt(gateway)[address] == {f"short.{DOMAIN}"}
        session.reset()
        wait_for(lambda: address not in learnt(gateway), "the name forgotten", 30)
        assert tcp_ask(lab.client, address).address == leaves_from(SHARED, family)
        assert learnt(gateway).keys() == {fresh.deep_address(family)}


@pytest.mark.parametrize("when_down", ["pass", "drop"])
@pytest.mark.parametrize("resolver", [RESOLVER[4], GATEWAY[6]], ids=["away", "here"])
def test_with_the_daemon_dead(
    lab: Lab, origin: Reporter, fresh: Fresh, resolver: str, when_down: str
) -> None:
    with running(lab, config(lab, when_down=when_down)) as gateway:
        assert first(lab, resolver, fresh.host, 4) == LAX1[4]
        gateway.kill()
        # Learnt names stay in force; a new one is either not learnt or not answered, by `when_down`.
        assert tcp_ask(lab.client, fresh.host_address(4)).address == LAX1[4]
        found = dig(lab.client, resolver, fresh.deep, "A")
        assert found == ([fresh.deep_address(4)] if when_down == "pass" else [])
        assert tcp_ask(lab.client, fresh.deep_address(4)).address == SHARED[4]
        gateway.start()
        assert first(lab, resolver, fresh.deep, 4) == LAX1[4]
        assert tcp_ask(lab.client, fresh.host_address(4)).address == LAX1[4]


def test_without_rules_about_names_dns_is_not_looked_at(lab: Lab, origin: Reporter) -> None:
    one, two, three = (Fresh(next(_numbers)) for _ in range(3))
    with running(lab, config(lab)) as gateway:
        assert first(lab, RESOLVER[4], one.host, 4) == LAX1[4]
        gateway.reload(lab.config(policies=[policies()[-1]]))
        assert "dns_forward" not in lab.gw.run("nft", "list", "table", "inet", "enforcer").stdout
        assert dig(lab.client, RESOLVER[4], two.host, "A") == [two.host_address(4)]
        assert two.host_address(4) not in learnt(gateway)
        gateway.reload(config(lab))
        # This name was learnt before the reload and is in force again.
        assert tcp_ask(lab.client, one.host_address(4)).address == LAX1[4]
        assert first(lab, RESOLVER[4], three.host, 4) == LAX1[4]


@families
@resolvers
def test_curls_first_connection(enforced: LabGateway, fresh: Fresh, resolver: str, family: int) -> None:
    lab = enforced.lab
    command = names.with_resolver(lab.directory, resolver)
    for host, egress in ((fresh.host, LAX1), (fresh.deep, LAX1), (fresh.plain, SHARED)):
        argv = command(lab.client, ["curl", "-sS", "-m", "5", f"-{family}", f"http://{host}/"])
        assert execute(argv).stdout.split()[0] == leaves_from(egress, family)


@resolvers
def test_both_families_at_once(enforced: LabGateway, fresh: Fresh, resolver: str) -> None:
    """getaddrinfo sends the A and AAAA queries from one socket; curl chooses the family."""
    command = names.with_resolver(enforced.lab.directory, resolver)
    argv = command(enforced.lab.client, ["curl", "-sS", "-m", "5", f"http://{fresh.host}/"])
    assert execute(argv).stdout.split()[0] in {leaves_from(LAX1, 4), leaves_from(LAX1, 6)}
    for family in (4, 6):
        assert learnt(enforced)[fresh.host_address(family)] == {fresh.host}


@families
def test_before_anybody_asked_nothing_is_known(enforced: LabGateway, fresh: Fresh, family: int) -> None:
    address = fresh.host_address(family)
    assert tcp_ask(enforced.lab.client, address).address == leaves_from(SHARED, family)
    assert address not in learnt(enforced)


@pytest.mark.slow
@pytest.mark.parametrize("resolver", [RESOLVER[4], GATEWAY[6]], ids=["away", "here"])
def test_ten_thousand_names(enforced: LabGateway, resolver: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = []
    for number in range(MANY):
        name = f"n{number}.{DOMAIN if number % 2 else OTHER_DOMAIN}"
        wanted.append((name, "A" if number % 4 < 2 else "AAAA"))
    began = time.perf_counter()
    visits = enforced.lab.client.call(lambda: names.visit_all(resolver, wanted))
    took = time.perf_counter() - began
    wrong = [
        visit
        for number, visit in enumerate(visits)
        if visit.seen != leaves_from(LAX1 if number % 2 else LAX2, ip_address(visit.address).version)
    ]
    delays = sorted(visit.look_up for visit in visits)
    with capsys.disabled():
        print(f"\n{MANY} names, each looked up and connected to: {took:.1f} s, {MANY / took:.0f} a second")
        median, most = statistics.median(delays), delays[-MANY // 100]
        print(f"look-up: median {median * 1e3:.2f} ms, 99 % {most * 1e3:.2f} ms")
    assert len(visits) == MANY
    assert wrong == []
    assert learnt(enforced).keys() >= {visit.address for visit in visits}


@families
@pytest.mark.parametrize("resolver", [RESOLVER[4], GATEWAY[6]], ids=["away", "here"])
def test_over_tcp(enforced: LabGateway, fresh: Fresh, resolver: str, family: int) -> None:
    lab = enforced.lab
    (address,) = dig(lab.client, resolver, fresh.host, kind_of(family), tcp=True)
    assert tcp_ask(lab.client, address).address == leaves_from(LAX1, family)


@families
@pytest.mark.parametrize("resolver", [RESOLVER[6], GATEWAY[4]], ids=["away", "here"])
def test_truncated_and_asked_again_over_tcp(enforced: LabGateway, resolver: str, family: int) -> None:
    lab = enforced.lab
    kind = kind_of(family)
    big = f"big-{'away' if resolver == RESOLVER[6] else 'here'}.{DOMAIN}"
    lab.client.run("dig", f"@{resolver}", "+notcp", "+ignore", "+noedns", "+short", big, kind)
    known = learnt(enforced).items()
    assert not any(big in found and ip_address(address).version == family for address, found in known)
    found = dig(lab.client, resolver, big, kind)
    assert len(found) == 60
    assert learnt(enforced).keys() >= set(found)
    for address in (found[0], found[-1]):
        assert tcp_ask(lab.client, address).address == leaves_from(LAX1, family)


@families
def test_an_alias_is_the_name_that_was_asked_for(enforced: LabGateway, family: int) -> None:
    assert first(enforced.lab, RESOLVER[4], ALIAS, family) == leaves_from(LAX1, family)
    assert learnt(enforced)[pool(4, family)] == {ALIAS}


def test_hints_of_service_records(enforced: LabGateway) -> None:
    lab = enforced.lab
    assert dig(lab.client, RESOLVER[4], f"service.{DOMAIN}", "HTTPS")
    for family in (4, 6):
        assert tcp_ask(lab.client, pool(7, family)).address == leaves_from(LAX1, family)


@families
def test_names_that_share_an_address(enforced: LabGateway, family: int) -> None:
    """A client's own look-up decides; for other clients both names match, and the first policy wins."""
    lab = enforced.lab
    kind = kind_of(family)
    address = pool(6, family)
    third = str(ip_address(CLIENT[family]) + 3)
    assert dig(lab.client, RESOLVER[family], f"one.{DOMAIN}", kind, source=CLIENT[family]) == [address]
    assert dig(lab.client2, RESOLVER[family], f"two.{OTHER_DOMAIN}", kind, source=CLIENT2[family]) == [
        address
    ]
    assert tcp_ask(lab.client, address).address == leaves_from(LAX1, family)
    assert tcp_ask(lab.client2, address).address == leaves_from(LAX2, family, CLIENT2[6])
    assert tcp_ask(lab.client, address, source=third).address == leaves_from(LAX1, family, third)


def test_a_dual_stack_client_asks_by_the_one_and_connects_by_the_other(
    enforced: LabGateway, fresh: Fresh
) -> None:
    for family, resolver in ((4, RESOLVER[6]), (6, RESOLVER[4])):
        assert first(enforced.lab, resolver, fresh.host, family) == leaves_from(LAX1, family)


class Forger:
    """A resolver that sends the answers that the test gives."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.resolver = lab.net.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.resolver.bind((FORGER, 53))
        self.other = lab.net.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.other.bind((FORGER, 5353))
        self.client = lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect((FORGER, 53))
        for one in (self.resolver, self.other, self.client):
            one.settimeout(5)

    def __enter__(self) -> Forger:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.resolver, self.other, self.client):
            one.close()

    def ask(self, name: str, number: int = 7) -> dns.message.Message:
        """The client's query as the resolver receives it."""
        self.client.send(dns.message.make_query(name, "A", id=number).to_wire())
        data, self.peer = self.resolver.recvfrom(65536)
        return dns.message.from_wire(data)

    def answer(self, question: dns.message.Message, address: str, **changes: object) -> None:
        """Send an answer and wait until the client has received it."""
        made = dns.message.make_response(question)
        made.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", "A", address))
        for name, value in changes.items():
            setattr(made, name, value)
        self.resolver.sendto(made.to_wire(), self.peer)
        assert self.client.recv(65536)


def test_forged_answers_are_not_learnt(enforced: LabGateway, fresh: Fresh) -> None:
    lab = enforced.lab
    with Forger(lab) as forger:
        true = forger.ask(fresh.host)
        forger.answer(true, pool(20, 4), id=8)
        forger.answer(dns.message.make_query(f"x.{DOMAIN}", "A", id=7), pool(21, 4))
        forger.resolver.sendto(b"\0\7\x81\x80 no message at all", forger.peer)
        forger.client.recv(65536)
        # From another server to the port of the client's query: conntrack has no such connection.
        made = dns.message.make_response(true)
        made.answer.append(dns.rrset.from_text(true.question[0].name, 60, "IN", "A", pool(22, 4)))
        forger.other.sendto(made.to_wire(), forger.peer)
        forger.answer(true, fresh.host_address(4))
        forger.answer(true, pool(23, 4))  # the query has been answered
        truncated = dns.flags.QR | dns.flags.TC
        forger.answer(forger.ask(fresh.host, 9), pool(24, 4), flags=truncated)
        known = learnt(enforced)
        assert known[fresh.host_address(4)] == {fresh.host}
        for number in range(20, 25):
            assert pool(number, 4) not in known
            assert tcp_ask(lab.client, pool(number, 4)).address == SHARED[4]
        assert tcp_ask(lab.client, fresh.host_address(4)).address == LAX1[4]


def test_reloads_lose_no_name(enforced: LabGateway) -> None:
    """Names are learnt while reloads switch the policy bank."""
    lab = enforced.lab
    for number in range(5):
        enforced.reload(config(lab, grace=30 + number))
        name = Fresh(next(_numbers)).deep
        for family in (4, 6):
            assert first(lab, RESOLVER[4], name, family) == leaves_from(LAX1, family)


def test_curl_to_an_address(enforced: LabGateway) -> None:
    status, body = curl(enforced.lab.client, url(ORIGIN1[4]))
    assert (status, body.split()[0]) == (200, SHARED[4])
