"""`enforcer policy test`: parsing and evaluation of expectations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from ruamel.yaml import YAML

from enforcer.cli import app
from enforcer.config import load
from enforcer.policy.decision import REASONS, decide_all
from enforcer.policy.facts import Connection
from enforcer.reasons import by_name

ROOT = Path(__file__).parents[3]

CONFIG = """
location: lax
interfaces: {inside: [in0], outside: [out0]}
proxy: {tcp: true, udp: true}
locations:
  lax: {city: Los Angeles, country: US, latitude: 33.94, longitude: -118.41}
  nyc: {city: New York, country: US, latitude: 40.64, longitude: -73.78}
shared: {ipv4: 198.51.100.1, ipv6: "2001:db8:ffff::1"}
egress_ips:
  - {name: lax-1, location: lax, ipv4: 203.0.113.10, ipv6: "2001:db8:1::/64"}
  - {name: lax-2, location: lax, ipv4: 203.0.113.11, ipv6: "2001:db8:2::/64"}
  - {name: nyc-1, location: nyc, ipv4: 203.0.113.20, ipv6: "2001:db8:3::/64"}
private_networks: [10.20.0.0/16, "fd20::/48"]
geoip: {database: REGIONS}
policies:
  - {name: bank, precedence: 10, traffic: 'net.dst.ip in {198.18.1.0/24 2001:db8:b::/48}',
     egress: {ipv4: 203.0.113.10, ipv6: "2001:db8:2::/64"}}
  - {name: abroad, precedence: 20, traffic: 'net.dst.port == 8080', egress: {ipv4: 203.0.113.20}}
  - {name: abroad too, precedence: 21, traffic: 'net.dst.port == 8081',
     egress: {ipv4: 203.0.113.20, ipv4_fallback: 203.0.113.11}}
  - {name: abroad or shared, precedence: 22, traffic: 'net.dst.port == 8082',
     egress: {ipv4: 203.0.113.20, ipv4_fallback: 0.0.0.0}}
  - {name: off, precedence: 25, enabled: false, egress: default}
  - {name: staff, precedence: 30, identity: 'any(identity.groups[*].name == "Staff")',
     egress: {ipv4: 203.0.113.11}}
  - {name: germany, precedence: 40, traffic: 'net.dst.geo.country == "DE"', egress: {ipv4: 203.0.113.11}}
  - {name: host, precedence: 50, traffic: 'any(net.fqdn.domains[*] == "example.com")',
     egress: {ipv4: 203.0.113.10}}
  - {name: rest, precedence: 60, traffic: 'net.dst.port in {80 443}', egress: default}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config")
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    record = {"country": {"iso_code": "DE"}, "continent": {"code": "EU"}}
    writer.insert_network(IPSet(["192.0.2.0/24", "2001:db8:de::/48"]), record)
    writer.to_db_file(str(directory / "regions.mmdb"))
    path = directory / "enforcer.yaml"
    path.write_text(CONFIG.replace("REGIONS", str(directory / "regions.mmdb")))
    return path


def run(config: Path, file: Path, *options: str) -> Result:
    result = CliRunner().invoke(app.entry, ["--config", str(config), "policy", "test", str(file), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def judge(config: Path, tmp_path: Path, *entries: Any, raw: str | None = None) -> Result:
    path = tmp_path / "expectations.yaml"
    if raw is None:
        with path.open("w") as file:
            YAML().dump({"expectations": list(entries)}, file)
    else:
        path.write_text(raw)
    return run(config, path, "--json")


def entry(**fields: Any) -> dict[str, Any]:
    base = {
        "client": "10.1.0.9",
        "dst": "198.18.7.7",
        "dport": 443,
        "protocol": "tcp",
        "expect": {"policy": "rest"},
    }
    return {key: value for key, value in {**base, **fields}.items() if value is not ...}


def v6(**fields: Any) -> dict[str, Any]:
    return entry(**{"client": "fd01::9", "dst": "2001:db8:7::7", **fields})


# --- the example


def test_the_example_holds() -> None:
    result = run(ROOT / "docs/enforcer.sample.yaml", ROOT / "docs/examples/expectations.yaml")
    assert (result.exit_code, result.stdout) == (0, "6 of 6 expectations hold\n"), result.output


# --- decisions

EXPECTED = [
    (entry(dst="198.18.1.5"), "policy", "bank", ["lax-1"]),
    (v6(dst="2001:db8:b::5"), "policy", "bank", ["lax-2"]),
    (entry(dport=8080), "unavailable", "abroad", []),
    (v6(dport=8080), "unavailable", "abroad", []),
    (entry(dport=8081), "fallback", "abroad too", ["lax-2"]),
    (v6(dport=8082), "fallback-shared", "abroad or shared", ["shared"]),
    (entry(), "default", "rest", ["shared"]),
    (entry(session={"groups": [{"name": "Staff"}]}), "policy", "staff", ["lax-2"]),
    (entry(session={"groups": [{"name": "Other"}]}), "default", "rest", ["shared"]),
    (entry(session={}), "default", "rest", ["shared"]),
    (entry(dst="192.0.2.9"), "policy", "germany", ["lax-2"]),
    (v6(dst="2001:db8:de::9"), "policy", "germany", ["lax-2"]),
    (entry(dst="192.0.2.9", dst_country="FR"), "default", "rest", ["shared"]),
    (entry(dst="192.0.2.9", dst_country=None), "default", "rest", ["shared"]),
    (entry(dst_country="de", dst_continent="Europe"), "policy", "germany", ["lax-2"]),
    (entry(dst="192.0.2.9", src_country="FR"), "policy", "germany", ["lax-2"]),
    (entry(host="www.Example.com."), "policy", "host", ["lax-1"]),
    (entry(hosts=["a.net", "example.com"]), "policy", "host", ["lax-1"]),
    (entry(hosts=[]), "default", "rest", ["shared"]),
    (entry(dport=22), "nearest", None, ["lax-1", "lax-2"]),
    (entry(dport=443, protocol="udp"), "default", "rest", ["shared"]),
    (entry(dport=53), "dns", None, ["shared"]),
    (v6(dport=53, protocol="udp", dst="fd20::1"), "dns", None, ["shared"]),
    (entry(dst="10.20.3.4"), "tunnel", None, ["shared"]),
    (v6(dst="fd20::1"), "tunnel", None, ["shared"]),
    (entry(protocol="icmp", dport=...), "icmp", None, ["shared"]),
    (v6(protocol="icmp", dport=...), "icmp", None, ["shared"]),
    (v6(protocol=58, dport=...), "icmp", None, ["shared"]),
    (v6(protocol=1, dport=...), "protocol", None, ["shared"]),
    (entry(protocol=47, dport=...), "protocol", None, ["shared"]),
    (entry(client=..., src="10.1.0.9", sport=1), "default", "rest", ["shared"]),
]


@pytest.mark.parametrize(("given_", "reason", "policy", "egress"), EXPECTED)
def test_decisions(
    config: Path, tmp_path: Path, given_: dict[str, Any], reason: str, policy: str | None, egress: list[str]
) -> None:
    expect = {"policy": policy, "reason": reason}
    if len(egress) < 2:
        expect["egress"] = egress[0] if egress else "refused"
    result = judge(config, tmp_path, {**given_, "expect": expect})
    (row,) = json.loads(result.stdout)["results"]
    assert (row["reason"], row["policy"], row["egress"]) == (reason, policy, egress)
    assert row["ok"] and result.exit_code == 0
    wrong = {
        **given_,
        "expect": {"policy": None if policy else "bank", "egress": "nyc-1", "reason": "udp-off"},
    }
    result = judge(config, tmp_path, wrong)
    (row,) = json.loads(result.stdout)["results"]
    assert len(row["failures"]) == 3 and result.exit_code == 1


@pytest.mark.parametrize(
    "egress",
    [
        "lax-1",
        "203.0.113.10",
        "2001:db8:2::/64",
        "default",
        "198.51.100.1",
        "2001:db8:ffff::1",
        "2001:DB8:ffff:0::1",
        "nearest",
    ],
)
def test_ways_to_name_an_egress(config: Path, tmp_path: Path, egress: str) -> None:
    names = {"lax-1": "lax-1", "203.0.113.10": "lax-1", "2001:db8:2::/64": "lax-2", "nearest": "nearest"}
    kinds = {
        "lax-1": entry(dst="198.18.1.5"),
        "lax-2": v6(dst="2001:db8:b::5"),
        "nearest": entry(dport=22),
        "shared": entry(),
    }
    for kind, fields in kinds.items():
        result = judge(config, tmp_path, {**fields, "expect": {"egress": egress}})
        assert result.exit_code == (0 if names.get(egress, "shared") == kind else 1)


def test_what_is_not_proxied(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "off.yaml"
    other.write_text(config.read_text().replace("{tcp: true, udp: true}", "{tcp: false, udp: false}"))
    for protocol in ("tcp", "udp"):
        result = judge(other, tmp_path, entry(protocol=protocol, expect={"reason": f"{protocol}-off"}))
        assert result.exit_code == 0


def test_a_gateway_without_egress_ips_of_its_own(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("location: lax,", "location: nyc,"))
    result = judge(other, tmp_path, entry(dport=22, expect={"egress": "refused", "reason": "unavailable"}))
    assert result.exit_code == 0, result.stdout


def test_the_nearest_is_that_of_availability(config: Path) -> None:
    loaded = load(config)
    (dst,) = [policy for policy in loaded.policies if policy.name == "abroad"]
    connection = Connection(loaded.shared.ipv4, loaded.egress_ips[0].ipv4, 1, 22, 6)
    assert decide_all(loaded, connection, available={"lax-2", "nyc-1"}.__contains__).egress == ("lax-2",)
    refused = decide_all(loaded, connection, available={"nyc-1"}.__contains__)
    assert (refused.reason, refused.egress) == ("unavailable", ())
    abroad = decide_all(loaded, connection._replace(dst_port=8080), available={"nyc-1"}.__contains__)
    assert (abroad.policy, abroad.reason, abroad.egress) == (dst.name, "policy", ("nyc-1",))


def test_reasons_are_those_of_the_kernel_side() -> None:
    assert set(REASONS) <= by_name().keys()


# --- output


def test_a_failure_is_shown_with_the_reason(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    with path.open("w") as file:
        YAML().dump(
            {
                "expectations": [
                    entry(name="staff", expect={"policy": "staff", "egress": "lax-2"}),
                    entry(name="abroad", dport=8080, expect={"egress": "nyc-1"}),
                    entry(name="dns", dport=53, expect={"policy": "rest"}),
                    entry(name="fine"),
                ]
            },
            file,
        )
    result = run(config, path)
    assert result.exit_code == 1
    said = result.stdout
    assert 'policy: expected "staff", found "rest" (default)' in said
    assert "egress: expected lax-2, found shared (default)" in said
    assert (
        "egress: expected nyc-1, found refused (unavailable); nyc-1 is at nyc, and this gateway at lax"
        in said
    )
    assert 'policy: expected "rest", found none (dns)' in said
    assert "unknown: no session for 10.1.0.9" in said
    assert "dns: dns: DNS is always shared" in said
    assert said.endswith("1 of 4 expectations hold\n")
    assert "fine" not in said


def test_json(config: Path, tmp_path: Path) -> None:
    result = judge(config, tmp_path, entry(), entry(expect={"policy": None}))
    found = json.loads(result.stdout)
    assert (found["expectations"], found["failed"]) == (2, 1)
    good, bad = found["results"]
    assert (good["name"], good["line"], good["ok"], good["trace"]) == ("expectations[0]", 2, True, [])
    assert [step["outcome"] for step in bad["trace"]][-1] == "matched"
    assert {
        "policy": "off",
        "precedence": 25,
        "outcome": "disabled",
        "selector": None,
        "reason": None,
    } in bad["trace"]


# --- invalid files


def test_all_faults_at_once(config: Path, tmp_path: Path) -> None:
    text = """expectations:
  - {client: 10.1.0.9, dst: 198.18.1.5, dport: 443, protocol: tcp, expect: {policy: bnk}}
  - {client: 10.1.0.9, dst: 2001:db8::1, dport: 443, protocol: tcp, expect: {egress: lax-9}}
  - {dst: 198.18.1.5, dport: 70000, protocol: sctp, expect: {}}
  - {client: 10.1.0, dst: [x], protocol: tcp, hots: x}
  - {client: 10.1.0.9, dst: 198.18.1.5, protocol: udp, expect: {reason: becuase}}
  - {client: 10.1.0.9, src: 10.1.0.9, dst: 198.18.1.5, dport: 1, protocol: udp, expect: {policy: rest}}
  - {client: 10.1.0.9, dst: 198.18.1.5, dport: 1, protocol: udp, session: {mail: x, groups: x}, expect: {}}
  - {client: 10.1.0.9, dst: 198.18.1.5, dport: 1, protocol: 47, expect: {policy: rest}}
  - {client: 10.1.0.9, dst: 198.18.1.5, dport: 1, protocol: tcp, host: a, hosts: [b], expect: {policy: rest}}
  - {client: 10.1.0.9, dst: 198.18.1.5, dport: 1, protocol: tcp, host: "*.a", dst_country: Germania}
  - text
more: 1
"""
    result = judge(config, tmp_path, raw=text)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line.removeprefix(f"{tmp_path}/expectations.yaml:") for line in result.stderr.splitlines()]
    wanted = [
        ("2:", 'expectations[0].expect.policy: "bnk" is no policy of the configuration; expected bank'),
        ("3:", 'expectations[1].dst: "2001:db8::1" is not of the client\'s family, 10.1.0.9'),
        ("3:", 'expectations[1].expect.egress: "lax-9" is no egress; expected lax-'),
        ("4:", "expectations[2].dport: 70000 is too large"),
        ("4:", 'expectations[2].protocol: "sctp" is no protocol; expected tcp, udp, icmp'),
        ("5:", 'expectations[3].client: "10.1.0" is not an address'),
        ("5:", "expectations[3].dst: is a list"),
        ("5:", 'expectations[3]: unknown key "hots"; expected host'),
        ("5:", 'expectations[3]: the key "expect" is missing; expected what should become of it'),
        ("6:", 'expectations[4]: the key "dport" is missing'),
        ("6:", 'expectations[4].expect.reason: "becuase" is no reason'),
        ("7:", "expectations[5]: `client` and `src`; expected one of them"),
        ("8:", "expectations[6].session: mail: an unknown key"),
        ("8:", "expectations[6].session: x: `groups` is not a list"),
        ("9:", "expectations[7].dport: 1 is a port, and 47 has none"),
        ("10:", "expectations[8].hosts: stands beside `host`"),
        ("11:", 'expectations[9].host: "*.a" stands for many names'),
        ("11:", 'expectations[9].dst_country: "Germania" is no country code'),
        ("12:", "expectations[10]"),
        ("13:", 'unknown key "more"'),
    ]
    for start, said in wanted:
        assert any(line.startswith(start) and said in line for line in lines), (said, lines)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", "is empty; expected `expectations:` with a list"),
        ("# nothing\n", "is empty; expected `expectations:` with a list"),
        ("- a\n", "is no file of expectations"),
        ("expectations: {}\n", "expectations: is a group of keys; expected a list"),
        ("expectations: []\n", "is empty; expected at least one expectation"),
        ("expectation: []\n", 'the key "expectations" is missing'),
        ("expectations: [\n", "is not YAML"),
        ("expectations: []\nexpectations: []\n", "stands on line 1 already"),
    ],
)
def test_a_file_that_is_none(config: Path, tmp_path: Path, raw: str, said: str) -> None:
    result = judge(config, tmp_path, raw=raw)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr, result.stderr


def test_files_that_are_not_there(config: Path, tmp_path: Path) -> None:
    result = run(config, tmp_path / "none.yaml")
    assert result.exit_code == 2 and "does not exist; expected a file of expectations" in result.stderr
    result = run(tmp_path / "none.yaml", ROOT / "docs/examples/expectations.yaml")
    assert result.exit_code == 2 and "none.yaml" in result.stderr


def test_a_broken_database(config: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mmdb").write_bytes(b"x" * 1000)
    other = tmp_path / "enforcer.yaml"
    other.write_text(CONFIG.replace("REGIONS", str(tmp_path / "bad.mmdb")))
    result = judge(other, tmp_path, entry())
    assert result.exit_code == 2 and "not a MaxMind DB file" in result.stderr
    known = entry(src_country="US", dst_country="US")
    assert judge(other, tmp_path, known).exit_code == 0


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)
KEYS = (
    "name",
    "client",
    "src",
    "sport",
    "dst",
    "dport",
    "protocol",
    "session",
    "host",
    "hosts",
    "src_country",
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from((*KEYS, "expect")), anything, max_size=3), st.booleans())
def test_any_entry_is_judged_or_named(
    config: Path, tmp_path: Path, changes: dict[str, Any], whole: bool
) -> None:
    changed = {**entry(), **changes} if whole else changes
    path = tmp_path / "e.json"  # JSON is YAML, except for NaN and Infinity
    path.write_text(
        json.dumps({"expectations": [changed]}).replace("NaN", ".nan").replace("Infinity", ".inf")
    )
    result = run(config, path)
    assert result.exit_code in (0, 1, 2)
