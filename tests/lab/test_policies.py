"""Tests of policies with every selector, with real connections, and of the output about them.

test_sessions.py and test_names.py test sessions, names and their changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from truth import families, leaves_from, running, wait_for

from lab.clients import Session, tcp_ask
from lab.configuration import LAX1, LAX2, Document, added, changed, without
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, SHARED, Lab

ANN, BOB = "ann@corp.example", "bob@corp.example"
COUNTRIES = {
    "DE": ("EU", ["198.18.1.0/24", "2001:db8:a1::/48"]),
    "FR": ("EU", ["198.18.2.0/24", "2001:db8:a2::/48"]),
    "US": ("NA", ["10.0.1.0/24", "fd00:1::/64"]),
    "CA": ("NA", ["10.0.2.0/24", "fd00:2::/64"]),
}


def to(egress: dict[int, str]) -> dict[str, str]:
    return {"ipv4": egress[4], "ipv6": egress[6]}


def write_regions(path: Path, countries: dict[str, tuple[str, list[str]]]) -> None:
    """Write a database of countries like GeoLite2 and replace it as geoipupdate does."""
    writer = MMDBWriter(6, "GeoLite2-Country", languages=["en"], ipv4_compatible=True)
    for country, (continent, networks) in countries.items():
        record = {"country": {"iso_code": country}, "continent": {"code": continent}}
        writer.insert_network(IPSet(networks), record)
    new = path.with_suffix(".new")
    writer.to_db_file(str(new))
    new.rename(path)


def policy(name: str, precedence: int, egress: Any, **texts: str) -> dict[str, Any]:
    return {"name": name, "precedence": precedence, "egress": egress, **texts}


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("regions") / "countries.mmdb"
    write_regions(path, COUNTRIES)
    return path


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services, regions: Path) -> Iterator[LabGateway]:
    with running(lab, lab.config(geoip={"database": str(regions)}, policies=[])) as gateway:
        yield gateway


def use(gateway: LabGateway, *policies: dict[str, Any], **changes: Any) -> None:
    """Put these policies, and no others, in force; all other traffic takes the shared address."""
    rest = policy("rest", 10**6, "default")
    gateway.reload(gateway.lab.config(policies=[*policies, rest], **changes))


def seen(lab: Lab, address: str, **options: Any) -> str:
    with Session(lab.client, address, **options) as session:
        return session.seen.address


@families
@pytest.mark.parametrize(
    ("traffic", "matching", "other"),
    [
        ("net.src.port in {20000..20010}", {"source_port": 20003}, {"source_port": 20011}),
        ("net.src.port < 20000", {"source_port": 19999}, {"source_port": 20000}),
        ("net.src.ip in $printers", {"host": 3}, {"host": 2}),
        ("not net.src.ip in $printers", {"host": 2}, {"host": 3}),
        ("net.src.ip in $printers xor net.src.port == 20001", {"host": 3}, {"host": 3, "source_port": 20001}),
    ],
)
def test_selectors_of_the_packet(
    enforced: LabGateway, family: int, traffic: str, matching: dict[str, int], other: dict[str, int]
) -> None:
    lab = enforced.lab
    lists = {"printers": ["10.0.1.3", "fd00:1::3"]}
    use(enforced, policy("one", 1, to(LAX2), traffic=traffic), lists=lists)

    def ask(options: dict[str, int]) -> tuple[str, str]:
        client = CLIENT[family][:-1] + str(options.get("host", 2))
        found = seen(lab, ORIGIN1[family], source=client, source_port=options.get("source_port", 0))
        return found, leaves_from(LAX2, family, client)

    found, dedicated = ask(matching)
    assert found == dedicated
    assert ask(other)[0] == SHARED[family]


@families
@pytest.mark.parametrize(
    ("traffic", "origin1", "origin2"),
    [
        ('net.dst.geo.country == "DE"', True, False),
        ('net.dst.geo.country != "DE"', False, True),
        ('net.dst.geo.country in {"FR" "US"}', False, True),
        ('net.dst.geo.continent == "EU"', True, True),
        ('net.src.geo.country == "US" and net.dst.geo.country == "FR"', False, True),
        ('net.src.geo.continent == "EU"', False, False),
        ('net.dst.geo.country matches "^D"', True, False),
    ],
)
def test_regions(
    enforced: LabGateway, regions: Path, family: int, traffic: str, origin1: bool, origin2: bool
) -> None:
    use(enforced, policy("one", 1, to(LAX2), traffic=traffic), geoip={"database": str(regions)})
    for origin, matches in ((ORIGIN1, origin1), (ORIGIN2, origin2)):
        expected = leaves_from(LAX2, family) if matches else SHARED[family]
        assert tcp_ask(enforced.lab.client, origin[family]).address == expected


@families
def test_a_new_database_is_in_force_by_itself(enforced: LabGateway, regions: Path, family: int) -> None:
    use(
        enforced,
        policy("one", 1, to(LAX2), traffic='net.dst.geo.country == "DE"'),
        geoip={"database": str(regions)},
    )
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]) as before:
        assert before.seen.address == leaves_from(LAX2, family)
        swapped = {**COUNTRIES, "DE": COUNTRIES["FR"], "FR": COUNTRIES["DE"]}
        try:
            write_regions(regions, swapped)
            wait_for(
                lambda: tcp_ask(lab.client, ORIGIN2[family]).address == leaves_from(LAX2, family),
                "the new database's rule",
            )
            assert tcp_ask(lab.client, ORIGIN1[family]).address == SHARED[family]
            assert before.ask().address == leaves_from(LAX2, family)
        finally:
            write_regions(regions, COUNTRIES)
            wait_for(lambda: tcp_ask(lab.client, ORIGIN2[family]).address == SHARED[family], "the old one")


def test_a_broken_database_changes_nothing(enforced: LabGateway, regions: Path, tmp_path: Path) -> None:
    rule = policy("one", 1, to(LAX2), traffic='net.dst.geo.country == "DE"')
    use(enforced, rule, geoip={"database": str(regions)})
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(regions.read_bytes()[:200])
    with pytest.raises(LabError, match=r"broken\.mmdb"):
        use(enforced, rule, geoip={"database": str(broken)})
    for family in (4, 6):
        assert tcp_ask(enforced.lab.client, ORIGIN1[family]).address == leaves_from(LAX2, family)


@families
def test_an_egress_ip_by_its_name(enforced: LabGateway, family: int) -> None:
    """Both families leave by it; if it is unavailable there is no fallback."""
    lab = enforced.lab
    use(
        enforced,
        policy("near", 1, "lax-2", traffic="net.dst.port == 9000"),
        policy("far", 2, "nyc-1", traffic="net.dst.port == 80"),
    )
    question = ("--src", CLIENT[family], "--dst", ORIGIN1[family], "--protocol", "tcp", "--dport")
    said = enforced.json("explain", *question, "9000")
    assert seen(lab, ORIGIN1[family]) == leaves_from(LAX2, family, CLIENT[family]) == said["source_ip"]
    assert (said["policy"], said["egress"]) == ("near", "lax-2")
    with pytest.raises(ConnectionRefusedError):
        Session(lab.client, ORIGIN1[family], 80)
    said = enforced.json("explain", *question, "80")
    assert (said["reason"], said["egress"]) == ("unavailable", "nyc-1")
    assert "nyc-1 is at nyc" in said["description"]
    rows = {row["name"]: (row["egress"], row["fallback"]) for row in enforced.json("policies")}
    assert rows == {"near": ("lax-2", None), "far": ("nyc-1", None), "rest": ("default", None)}


# --- explain


@families
def test_explain_supposes_a_person(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    use(
        enforced,
        policy("ann", 1, to(LAX1), identity=f'identity.email == "{ANN}"'),
        policy("staff", 2, to(LAX2), identity='any(identity.groups[*].name == "staff")'),
    )
    enforced.run("session", "add", CLIENT2[family], "--email", BOB, "--group", "staff")
    try:
        question = ("--src", CLIENT[family], "--dst", ORIGIN1[family], "--protocol", "tcp", "--dport", "9000")
        own = enforced.json("explain", *question)
        assert (own["policy"], own["session"], own["email"]) == ("rest", "none", None)
        ann = enforced.json("explain", *question, "--email", ANN)
        assert (ann["policy"], ann["egress"]) == ("ann", "lax-1")
        bob = enforced.json("explain", *question, "--email", BOB)
        assert (bob["policy"], bob["egress"], bob["email"]) == ("staff", "lax-2", BOB)
        # The changed file is not in force.
        assert tcp_ask(lab.client, ORIGIN1[family]).address == SHARED[family]
        assert enforced.json("explain", *question)["policy"] == "rest"
    finally:
        enforced.run("session", "remove", CLIENT2[family])


@families
def test_explain_supposes_a_name(enforced: LabGateway, family: int) -> None:
    use(enforced, policy("shop", 1, to(LAX2), traffic='any(net.fqdn.domains[*] == "shop.example")'))
    question = ("--src", CLIENT[family], "--dst", ORIGIN1[family], "--protocol", "tcp", "--dport", "9000")
    assert enforced.json("explain", *question)["policy"] == "rest"
    named = enforced.json("explain", *question, "--host", "WWW.Shop.Example.")
    assert (named["policy"], named["hosts"]) == ("shop", ["www.shop.example"])
    assert enforced.json("explain", *question, "--host", "shop.example.org")["policy"] == "rest"


@families
def test_a_trace_names_the_selector_that_failed(enforced: LabGateway, family: int) -> None:
    use(
        enforced,
        policy("off", 1, to(LAX1), traffic="", enabled=False),
        policy("web", 2, to(LAX1), traffic="net.dst.port in {80 443}"),
        policy("ann", 3, to(LAX1), traffic='net.protocol == "tcp"', identity=f'identity.email == "{ANN}"'),
        policy("name", 4, to(LAX1), traffic='net.fqdn.host == "a.example" or net.src.port == 1'),
        policy("mine", 5, to(LAX2), traffic="net.dst.port == 9000"),
    )
    question = ("--src", CLIENT[family], "--dst", ORIGIN1[family], "--protocol", "tcp", "--dport", "9000")
    steps = {step["policy"]: step for step in enforced.json("explain", *question, "--trace")["trace"]}
    assert list(steps) == ["off", "web", "ann", "name", "mine", "rest"]
    outcomes = [step["outcome"] for step in steps.values()]
    assert outcomes == ["disabled", "failed", "failed", "failed", "matched", "after"]
    assert steps["web"]["selector"] == "net.dst.port in {80 443}"
    assert "9000" in steps["web"]["reason"]
    assert steps["ann"]["selector"] == f'identity.email == "{ANN}"'
    assert "no session" in steps["ann"]["reason"]
    assert "net.src.port == 1" in steps["name"]["selector"] and "a.example" in steps["name"]["selector"]
    text = enforced.run("explain", *question, "--trace").stdout
    assert "no session" in text and "lax-2" in text


# --- policies


@families
def test_policies_tell_their_hits_and_the_last_one(enforced: LabGateway, family: int) -> None:
    use(
        enforced,
        policy("hit", 1, to(LAX2), traffic="net.dst.port == 9000", identity=""),
        policy("never", 2, to(LAX2), traffic="net.dst.port == 1"),
    )
    before = {row["name"]: row for row in enforced.json("policies")}
    for _ in range(3):
        tcp_ask(enforced.lab.client, ORIGIN1[family])
    rows = {row["name"]: row for row in enforced.json("policies")}
    assert rows["hit"]["matched"] == before["hit"]["matched"] + 3
    assert 0 <= rows["hit"]["last_matched"] < 5
    assert rows["never"]["matched"] == before["never"]["matched"]
    assert rows["hit"]["traffic"] == "net.dst.port == 9000" and rows["hit"]["identity"] == ""
    assert "net.dst.port == 9000" in enforced.run("policies").stdout


# --- plan


def plan_of(gateway: LabGateway, document: Document) -> list[dict[str, Any]]:
    """`enforcer plan`'s output for a file that is not applied."""
    kept = gateway.config.read_text()
    gateway.write(document)
    try:
        found: list[dict[str, Any]] = gateway.json("plan")
        return found
    finally:
        gateway.config.write_text(kept)


def test_plan_says_which_policies_change(enforced: LabGateway) -> None:
    lists = {"nets": ["198.18.9.0/24"]}
    base = enforced.lab.config(
        lists=lists,
        policies=[
            policy("one", 1, to(LAX1), traffic="net.dst.port == 1"),
            policy("two", 2, to(LAX1), traffic="net.dst.ip in $nets"),
        ],
    )
    enforced.reload(base)
    assert enforced.json("plan") == []
    changed_file = changed(
        without(base, "policies", "one"), "policies", "two", precedence=7, egress="default"
    )
    changed_file = added(changed_file, "policies", policy("three", 3, "default", traffic="net.dst.port == 3"))
    changed_file["lists"] = {"nets": ["198.18.8.0/24"]}
    rows = plan_of(enforced, changed_file)
    (row,) = [row for row in rows if row["operation"] == "switch policies and settings"]
    assert {(each["change"], each["what"]): each["fields"] for each in row["changes"]} == {
        ("add", "policy three"): [],
        ("remove", "policy one"): [],
        ("change", "policy two"): ["precedence", "egress"],
        ("change", "list nets"): [],
    }
    assert (row["flows"], row["clients"]) == (0, {})


def test_plan_says_which_live_flows_would_be_decided_otherwise(enforced: LabGateway) -> None:
    lab = enforced.lab
    base = lab.config(
        policies=[
            policy("one", 1, to(LAX1), traffic="net.dst.port == 9000"),
            policy("rest", 10**6, "default"),
        ]
    )
    enforced.reload(base)
    enforced.run("session", "add", CLIENT2[4], "--email", ANN)
    wait_for(lambda: not enforced.json("status")["flows"], "no live flow")
    try:
        sessions = [Session(lab.client, ORIGIN1[family]) for family in (4, 6) for _ in range(3)]
        sessions += [Session(lab.client2, ORIGIN2[family]) for family in (4, 6)]
        # Another policy with the same egress changes no decision.
        renamed = without(base, "policies", "one")
        renamed = added(renamed, "policies", policy("other", 2, to(LAX1), traffic="net.dst.port == 9000"))
        assert not _redecided(plan_of(enforced, renamed))
        narrower = changed(base, "policies", "one", traffic="net.dst.ip in {198.18.1.0/24}")
        assert _redecided(plan_of(enforced, narrower)) == {CLIENT[6]: 3, CLIENT2[4]: 1, CLIENT2[6]: 1}
        identity = changed(base, "policies", "one", identity=f'identity.email == "{ANN}"')
        assert _redecided(plan_of(enforced, identity)) == {CLIENT[4]: 3, CLIENT[6]: 3, CLIENT2[6]: 1}
        private = {**base, "private_networks": ["198.18.2.0/24", "2001:db8:a2::/64"]}
        assert _redecided(plan_of(enforced, private)) == {CLIENT2[4]: 1, CLIENT2[6]: 1}
        # The prediction is right: flows that are reopened under the narrower policy get another source.
        enforced.reload(narrower)
        kept = [session.ask().address for session in sessions]
        again = [Session(lab.client, ORIGIN1[family]).seen.address for family in (4, 6)]
        assert (again[0], again[1]) == (leaves_from(LAX1, 4), SHARED[6])
        assert kept[:3] == [leaves_from(LAX1, 4)] * 3 and kept[3:6] == [leaves_from(LAX1, 6)] * 3
        for session in sessions:
            session.close()
    finally:
        enforced.run("session", "remove", CLIENT2[4])


def _redecided(rows: list[dict[str, Any]]) -> dict[str, int]:
    (row,) = [row for row in rows if row["operation"] == "switch policies and settings"]
    assert row["flows"] == sum(row["clients"].values())
    clients: dict[str, int] = row["clients"]
    return clients


# --- faults

LONG = "net.dst.port == 1 or " * 60_000
BAD = {
    "unknown field": ("net.dst.prot == 1", "net.dst.prot is no known field; expected net.dst.port"),
    "operator that the type has not": ('net.fqdn.host < "a"', "net.fqdn.host"),
    "unbalanced": ("(net.dst.port == 1", "`)`"),
    "prefix as an address": ("net.dst.ip == 2001:db8::/32", "is a prefix"),
    "name as a port": ('net.dst.port == "http"', "is no port"),
    "list without any": ('identity.groups[*].name == "x"', "any("),
    "unknown list": ("net.dst.ip in $nobody", "nobody"),
    "pattern that explodes": ('identity.email matches "((a{100}){100}){100}"', "regular expression"),
    "pattern of other engines": (r'identity.email matches "(a)\1"', "regular expression"),
    "a megabyte": (LONG, "characters"),
    "deep nesting": ("(" * 5000 + "net.dst.port == 1" + ")" * 5000, "100 levels"),
    "no regions": ('net.dst.geo.country == "DE"', "geoip"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_expression_is_one_message_and_changes_nothing(enforced: LabGateway, kind: str) -> None:
    text, message = BAD[kind]
    use(enforced, policy("good", 1, to(LAX2), traffic="net.dst.port == 9000"))
    document = enforced.lab.config(policies=[policy("bad", 1, to(LAX1), traffic=text)])
    enforced.write(document)
    done = enforced.run("reload", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line and "Traceback" not in line and len(line) < 600
    assert "policies[0]" in line
    for family in (4, 6):
        assert tcp_ask(enforced.lab.client, ORIGIN1[family]).address == leaves_from(LAX2, family)


def test_a_list_of_100_000_addresses(enforced: LabGateway) -> None:
    numbers = range(100_000)
    values = [
        f"198.18.{64 + (n >> 8) % 64}.{n & 255}/32"
        if n < 16384
        else f"100.{64 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"
        for n in numbers
    ]
    values[-2:] = [ORIGIN1[4], ORIGIN1[6]]
    many = policy("many", 1, to(LAX2), traffic="net.dst.ip in $many and net.dst.port == 9000")
    use(enforced, many, lists={"many": values})
    for family in (4, 6):
        assert tcp_ask(enforced.lab.client, ORIGIN1[family]).address == leaves_from(LAX2, family)
        assert tcp_ask(enforced.lab.client, ORIGIN2[family]).address == SHARED[family]
    one_more = enforced.lab.config(policies=[many], lists={"many": [*values, "192.0.2.1"]})
    enforced.write(one_more)
    done = enforced.run("reload", check=False)
    assert done.returncode == 2 and "100,000" in done.stderr
    assert tcp_ask(enforced.lab.client, ORIGIN1[4]).address == leaves_from(LAX2, 4)
