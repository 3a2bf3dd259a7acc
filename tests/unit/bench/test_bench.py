"""The benchmark's arithmetic, packet streams, configurations and report."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.message
import numpy as np
import pytest
from rich.console import Console
from scapy.layers.inet import IP
from scapy.layers.inet import UDP as UDP_
from scapy.layers.l2 import Ether

from bench.figures import names
from bench.figures.established import ESTABLISHED, steady, stream_of
from bench.figures.reloads import generations
from bench.figures.web import requests
from bench.report import plots, report
from bench.report.results import Claim, Results, Row, Sample, bound, ratio, rotated
from bench.rig import documents, rulesets, traffic_facts
from bench.rig.generator import (
    ACK,
    FIRST_CLIENT,
    FIRST_ORIGIN,
    Stream,
    parts,
)
from bench.rig.wire import INSIDE_MAC, NEAR_MAC, OUTSIDE_MAC
from enforcer.address import pack
from enforcer.config import Configuration
from enforcer.constants import TCP, UDP
from enforcer.facts.regions import Database
from enforcer.facts.store import ANY_CLIENT, Store
from enforcer.policy.facts import Connection, host_facts, region_facts
from enforcer.policy.tables import MatchTables, compile_tables
from lab.netns import LabError


def row(subject: str, *values: float, lost: float = 0.0) -> Row:
    return Row("figure", "case", subject, "ns", tuple(Sample(value, lost) for value in values))


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    claim = ratio(row("a", 100, 110, 900), row("b", 100, 100, 300), 1.15)
    assert claim.value == pytest.approx(1.1)
    assert (claim.low, claim.high) == (1.0, 3.0)
    assert claim.holds
    assert claim.text == "a / b"


@pytest.mark.parametrize("lossy", [0, 1])
def test_what_lost_packets_has_no_ratio(lossy: int) -> None:
    rows = [row("a", 10, 10), row("b", 10, 10)]
    rows[lossy] = row("lossy", 1, 1, lost=0.02)
    claim = ratio(rows[0], rows[1], 1.0)
    assert claim.value is None
    assert not claim.holds
    assert "packets lost" in report.claim_cells(claim)
    assert "LOST 2.0%" in report.row_cells(rows[lossy])


def test_a_packet_in_a_thousand_may_miss() -> None:
    assert not row("a", 1, lost=0.001).is_lost
    assert row("a", 1, lost=0.0011).is_lost


def test_bounds_are_in_the_rows_unit() -> None:
    start = Row("start", "", "run", "s", (Sample(1.0), Sample(2.5), Sample(1.5)))
    assert bound(start, 2.0, "start").holds
    assert not bound(start, 1.0, "start").holds


def test_everybody_is_first_once() -> None:
    assert [rotated("abc", by)[0] for by in range(-1, 3)] == ["c", "a", "b", "c"]


@pytest.mark.parametrize("count", [1, 200, 65536, 200000])
def test_parts_are_the_whole(count: int) -> None:
    found = parts(count)
    assert sum(found) == count
    assert max(found) - min(found) <= 1


def test_a_stream_in_the_kernels_layout() -> None:
    layout = np.dtype(
        [
            ("client", "<u4", (4,)),
            ("origin", "<u4", (4,)),
            ("clients", "<u4"),
            ("origins", "<u4"),
            ("flows", "<u8"),
            ("next", "<u8"),
            ("stride", "<u8"),
            ("first_port", "<u2"),
            ("origin_port", "<u2"),
            ("gateway", "u1", (6,)),
            ("router", "u1", (6,)),
            ("ipv6", "u1"),
            ("protocol", "u1"),
            ("transport", "<u2"),
            ("flags", "u1"),
            ("by_network", "u1"),
            ("pad", "u1", (2,)),
            ("every", "<u4"),
            ("written", "<u4"),
            ("pad2", "<u4"),
        ]
    )
    four, six = Stream(4, UDP).row(layout, 7), Stream(6, TCP).row(layout, 0)
    assert four["client"].tobytes() == bytes(12) + bytes([10, 64, 0, 1])
    assert six["origin"].tobytes().hex() == "20010db8000a00000000000000000001"
    assert four["next"] == 7
    assert four["origin_port"].tobytes() == (8000).to_bytes(2, "big")
    assert (four["ipv6"], six["ipv6"], six["protocol"]) == (0, 1, TCP)
    assert Stream(4, UDP, clients=2, origins=3).capacity == 2 * 3 * 64512
    assert (Stream(4, UDP).frame, Stream(6, TCP).frame) == (54, 74)
    assert (four["transport"], four["flags"], four["by_network"]) == (20, 2, 0)
    assert Stream(6, TCP, flags=ACK, one_source=True).row(layout, 0)["by_network"] == 1


def test_packets_of_established_flows_are_as_short_as_ethernet_has_them() -> None:
    assert [stream_of(family, UDP, 1).frame for family in (4, 6)] == [64, 64]
    assert [stream_of(family, TCP, 1).frame for family in (4, 6)] == [64, 74]


def test_learning_anew_has_its_share_of_the_price() -> None:
    assert steady(700, 700, 40_000) == pytest.approx(700)
    # At about 1000 ns per packet, 40,000 of the 4,000,000 packets in 4 s cost 2000 ns more.
    assert steady(1000, 3000, 40_000) == pytest.approx(1020.4, abs=0.1)
    assert steady(1000, 3000, 1) == pytest.approx(1000, abs=0.01)


def compiled(policies: list[dict[str, Any]]) -> MatchTables:
    document = json.loads(json.dumps(documents.gateway(policies)))
    return compile_tables(Configuration.model_validate(document).policies)


def traffic() -> Iterator[Connection]:
    """A sample of the generator's connections."""
    for family in (4, 6):
        for origin in range(0, traffic_facts.ORIGINS, 3):
            for client in range(0, traffic_facts.CLIENTS, 7):
                yield traffic_facts.connection(
                    ip_address(FIRST_CLIENT[family]) + client,
                    ip_address(FIRST_ORIGIN[family]) + origin,
                    1024 + origin,
                    TCP,
                )


@pytest.mark.parametrize("count", [1, 100, 1000, 4000])
def test_policies_are_valid_and_fit_the_tables(count: int) -> None:
    policies = documents.policies(count)
    assert len(policies) == count
    tables = compiled(policies)
    assert len(tables.rules) >= count
    assert documents.policies(count) == policies


@pytest.mark.parametrize("count", [1, 100, 4000])
def test_a_new_flow_takes_every_look_up_whatever_the_number_of_policies(count: int) -> None:
    regions = {"source_region", "destination_region"}
    packet = {"source", "source_ports", "ports", "protocols"}
    assert compiled(documents.policies(count)).uses == regions | packet | {"client", "host"}


def test_different_policies_decide_about_the_traffic() -> None:
    tables = compiled(documents.policies(1000))
    deciding = {tables.decide(connection) for connection in traffic()}
    assert None not in deciding
    assert len(deciding) > 20
    kinds = len(documents.KINDS)
    assert len({index % kinds for index in deciding if index is not None and index < 999}) > kinds // 3


def test_what_is_remembered_is_what_a_connection_is_said_to_have(tmp_path: Path) -> None:
    connections = list(traffic())
    assert {bool(one.client) for one in connections} == {False, True}
    assert {bool(one.source_region) for one in connections} == {False, True}
    assert {bool(one.destination_region) for one in connections} == {False, True}
    assert {len(one.hosts) for one in connections} == {0, 1, 3}
    database = Database(traffic_facts.write_regions(tmp_path / "regions.mmdb", prefixes=100))
    with Store(tmp_path / "facts.db") as store, database:
        traffic_facts.remember(store)
        for one in connections[::3]:
            session = store.session(pack(one.src))
            assert (session.facts if session else {}) == one.client
            names = store.names_at(pack(one.src), pack(one.dst)) or store.names_at(ANY_CLIENT, pack(one.dst))
            assert [host_facts(name) for name in names] == sorted(
                one.hosts, key=lambda facts: facts["net.fqdn.host"]
            )
            assert region_facts("src", *database.find(one.src)) == one.source_region
            assert region_facts("dst", *database.find(one.dst)) == one.destination_region


def test_a_database_has_the_prefixes_that_were_asked_for(tmp_path: Path) -> None:
    with Database(traffic_facts.write_regions(tmp_path / "regions.mmdb", prefixes=2000)) as database:
        assert len(database.prefixes(lambda *_: True).length) >= 2000


def test_generations_decide_differently() -> None:
    one, two = generations(100)
    assert [policy["name"] for policy in one] == [policy["name"] for policy in two]
    ranked = sorted(two, key=lambda policy: policy["precedence"])
    assert [policy["name"] for policy in ranked] == [
        *reversed([policy["name"] for policy in one[:-1]]),
        "everything",
    ]
    assert all(before["egress"] != after["egress"] for before, after in zip(one, two, strict=True))


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_policies_that_nft_can_say_are_valid(count: int) -> None:
    policies = rulesets.policies(count)
    assert len(policies) == count
    assert not compiled(policies).uses & {"client", "host", "source_region", "destination_region"}


def test_a_policy_in_three_languages() -> None:
    match = rulesets.Match(
        destination=("198.51.100.0/24", "2001:db8::/48"), protocol="udp", excluded=((1, 1), (9, 20))
    )
    assert match.expression == (
        'net.dst.ip in {198.51.100.0/24 2001:db8::/48} and net.protocol == "udp"'
        " and not net.dst.port in {1 9..20}"
    )
    assert match.rule(6, "ip6") == ("ip6 daddr 2001:db8::/48 meta l4proto udp th dport != { 1, 9-20 }")
    assert match.shape == ("ip daddr", "meta l4proto", "th dport")
    fixed = ("198.51.100.0/24", "udp")
    assert list(match.elements(4)) == [(fixed, (0, 0)), (fixed, (2, 8)), (fixed, (21, 65535))]
    assert list(rulesets.Match(source=("10.0.0.0/8", "fd00::/8")).elements(6)) == [(("fd00::/8",), None)]


@pytest.mark.parametrize(
    ("name", "kind", "address"), [(258, "A", "198.19.1.2"), (9, "AAAA", "2001:db8:b::9")]
)
def test_questions_and_answers_are_dns(name: int, kind: str, address: str) -> None:
    asked = Ether(names.question(name, 77, 20_000))
    assert (asked.src, asked.dst) == (NEAR_MAC, INSIDE_MAC)
    assert (asked[IP].src, asked[IP].dst, asked[UDP_].sport, asked[UDP_].dport) == (
        "10.64.0.1",
        "198.18.0.53",
        20_000,
        53,
    )
    wire = bytes(asked)[42:]
    question = dns.message.from_wire(wire)
    assert (question.id, question.question[0].to_text()) == (
        77,
        f"n{name}.site-{name % 200}.example. IN {kind}",
    )
    told = Ether(names.answer(bytes(asked)))
    sum_sent = told[IP].chksum
    del told[IP].chksum
    assert Ether(bytes(told))[IP].chksum == sum_sent
    assert (told.dst, told[IP].dst, told[UDP_].dport) == (OUTSIDE_MAC, "10.64.0.1", 20_000)
    answer = dns.message.from_wire(bytes(told)[42:])
    assert question.is_response(answer)
    assert [item.to_text() for item in answer.answer[0]] == [address]


def test_a_stream_of_few_flows_begins_anew() -> None:
    assert Stream(4, UDP, origins=16, flows=4096).capacity == 4096


def test_counts_are_whole() -> None:
    assert (report.number(1234.0, ""), report.number(0.5, "s")) == ("1,234", "0.500 s")


def test_egress_ips_are_valid_and_many() -> None:
    document = documents.gateway([], egress_ips=documents.egress_ips(4000))
    assert len(Configuration.model_validate(document).egress_ips) == 4000


def results() -> Results:
    claims = [
        Claim("New flow", "IPv4 TCP", "enforcer / nft SNAT", "x", 1.2345, 1.15, 1.1, 1.3),
        Claim("Start", "", "run", "s", 0.5, 2.0),
    ]
    return Results({"kernel": "6.18"}, [row("a", 1234, 2345)], claims)


def test_the_report_shows_what_holds_and_what_does_not() -> None:
    text = io.StringIO()
    report.show(results(), Console(file=text, width=140))
    said = text.getvalue()
    assert "1,790 ns" in said
    assert "1.23 x" in said
    assert "MISSED" in said
    assert "kernel 6.18" in said


def test_the_documentation_is_written_as_markdown_and_json(tmp_path: Path) -> None:
    report.write(results(), tmp_path / "bench")
    page = (tmp_path / "bench/README.md").read_text()
    assert (
        "| New flow | IPv4 TCP | enforcer / nft SNAT | 1.23 x | 1.10 x - 1.30 x | ≤ 1.15 x | MISSED |" in page
    )
    document = json.loads((tmp_path / "bench/results.json").read_text())
    assert [claim["holds"] for claim in document["claims"]] == [False, True]
    assert document["rows"][0]["median"] == 1789.5
    assert report.written(tmp_path / "bench") == {("figure", "case", "a"): 1789.5}
    assert report.written(tmp_path) == {}


def test_targets_come_first_and_a_target_may_be_the_least() -> None:
    found = results()
    found.claims += [
        ratio(row("a", 9), row("b", 10), limit, at_least=True, target=True) for limit in (1, 0.5)
    ]
    assert [claim.holds for claim in found.claims] == [False, True, False, True]
    page = "\n".join(report.markdown(found))
    assert page.index("## Targets") < page.index("## Other limits") < page.index("## figure")
    assert "| figure | case | a / b | 0.900 x |  | ≥ 1.00 x | MISSED |" in page


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    assert report.row_table([row("a", 1)]) == (("case", "what", "median"), [("case", "a", "1 ns")])
    known_before = Row("figure", "", "a", "", (Sample(12),), 10)
    assert report.row_table([known_before]) == (("what", "median", "the run before"), [("a", "12", "10")])


def test_equal_results_make_equal_pictures(tmp_path: Path) -> None:
    cases = [f"IPv{family} UDP, {flows}" for family in (4, 6) for flows in ("1 flow", "40,000 flows")]
    found = Results(
        {}, [Row(ESTABLISHED, case, "enforcer", "ns", (Sample(700), Sample(800))) for case in cases]
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert [picture.name for picture in plots.draw(found, tmp_path / name)] == ["established"]
    one, two = ((tmp_path / name / "established.svg").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b">enforcer</text>" in one


def test_what_wrk_says() -> None:
    said = """Running 1s test @ http://198.51.100.254:80/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.81ms    1.29ms  15.06ms   84.62%
    Req/Sec     5.90k   548.39     6.52k    80.00%
  5873 requests in 1.00s, 0.93MB read
  Socket errors: connect 0, read 3, write 0, timeout 1
Requests/sec:   5860.81
Transfer/sec:      0.93MB
"""
    assert requests(said) == Sample(5860.81, pytest.approx(4 / 5877))
    assert requests(said.replace("  Socket errors: connect 0, read 3, write 0, timeout 1\n", "")).lost == 0
    with pytest.raises(LabError, match="unable to connect"):
        requests("unable to connect to 198.51.100.254:http Connection refused\n")
