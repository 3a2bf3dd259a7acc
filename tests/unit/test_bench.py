"""The benchmark's arithmetic, its packets' description, its configurations and its report."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from enforcer.bench import documents, report
from enforcer.bench.generator import TCP, UDP, Generator, Stream, parts
from enforcer.bench.peers import Floor, Peer, Snat
from enforcer.bench.programs import Programs
from enforcer.bench.results import Claim, Results, Row, Sample, bound, ratio, rotated
from enforcer.config import Configuration
from enforcer.policy.tables import compile_tables


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


@pytest.mark.parametrize("count", [1, 200, 8192, 20000, 131072])
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
            ("first_port", "<u2"),
            ("origin_port", "<u2"),
            ("gateway", "u1", (6,)),
            ("router", "u1", (6,)),
            ("ipv6", "u1"),
            ("protocol", "u1"),
            ("pad", "u1", (6,)),
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


@pytest.mark.parametrize("count", [1, 1000, 4000])
def test_policies_are_valid_and_fit_the_tables(count: int) -> None:
    document = documents.gateway(documents.policies(count))
    config = Configuration.model_validate(json.loads(json.dumps(document)))
    assert len(config.policies) == count
    tables = compile_tables(config.policies)
    assert len(tables.rules) >= count
    assert documents.policies(count) == documents.policies(count)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")
def test_every_packet_that_is_generated_arrives_and_is_told_apart() -> None:
    with Programs() as programs:
        generator = Generator(programs, 0)
        for kind in (Floor, Peer, Snat):
            with kind(programs) as peer:
                for family in (4, 6):
                    for protocol in (UDP, TCP):
                        run = generator.send(peer.wire, Stream(family, protocol), 1000)
                        assert peer.delivered(run) == run.sent == 1000, (kind, family, protocol)
                        assert run.translated == (1000 if kind is Snat else 0)
                        assert run.each > 0
