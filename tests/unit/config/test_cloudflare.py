"""`enforcer import cloudflare`: the policies and notes for an export; each loss has a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcer.cli.app import entry
from enforcer.config import Configuration, cloudflare, document, load
from enforcer.config.cloudflare import Imported, convert
from enforcer.config.cloudflare_yaml import render
from enforcer.config.models import Policy
from enforcer.errors import ConfigError
from enforcer.policy.language import Lists, parse

ROOT = Path(__file__).parents[3]
EXPORT = ROOT / "docs/examples/cloudflare-rules.json"
OUTPUT = ROOT / "docs/examples/cloudflare-policies.yaml"
LIST = "01302951-49f9-47c9-a400-0297e60b6a10"

HEAD = """
location: lax
interfaces: {inside: [in0], outside: [out0]}
locations:
  lax: {city: Los Angeles, country: US, latitude: 33.94, longitude: -118.41}
  nyc: {city: New York, country: US, latitude: 40.64, longitude: -73.78}
shared: {ipv4: 198.51.100.1, ipv6: "2001:db8:ffff::1"}
egress_ips:
  - {name: lax-1, location: lax, ipv4: 203.0.113.10, ipv6: "2001:db8:1::/64"}
  - {name: nyc-1, location: nyc, ipv4: 203.0.113.20, ipv6: "2001:db8:3::/64"}
geoip: {database: REGIONS}
"""


def configuration(tmp_path: Path, policies: str) -> Configuration:
    """The configuration of a file that contains the imported policies."""
    regions = tmp_path / "regions.mmdb"
    regions.touch()
    path = tmp_path / "enforcer.yaml"
    path.write_text(HEAD.replace("REGIONS", str(regions)) + policies)
    return load(path)


def rule(name: str = "r", precedence: Any = 10, **fields: Any) -> dict[str, Any]:
    base = {
        "name": name,
        "precedence": precedence,
        "enabled": True,
        "action": "egress",
        "filters": ["egress"],
    }
    return {**base, **fields}


def egress(**addresses: Any) -> dict[str, Any]:
    return {"egress": addresses}


def notes(*rules: Any) -> list[str]:
    return [str(note) for note in convert(list(rules)).notes]


def run(tmp_path: Path, content: Any, *options: str) -> Result:
    path = tmp_path / "rules.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result = CliRunner().invoke(entry, ["import", "cloudflare", str(path), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def carried(*rules: Any) -> dict[str, Any]:
    (policy,) = convert(list(rules)).policies
    return policy


# --- the example


def test_the_example_is_what_comes_of_it() -> None:
    result = CliRunner().invoke(entry, ["import", "cloudflare", str(EXPORT)])
    assert result.exit_code == 1
    assert result.stdout == OUTPUT.read_text()
    said = result.stderr.splitlines()
    assert said[0] == "Block malware: left out: not an egress rule (filter: dns; action: block)"
    assert said[1].startswith(
        "Streaming: left out: traffic: net.fqdn.content_category needs Cloudflare's catalogue"
    )
    assert said[1].endswith("(column 5)")
    assert said[2:] == [
        "Office: its schedule is left out: the policy applies at all times",
        f"fill in the list {LIST}: its values are not in the export",
        "add the egress IP of 203.0.113.10 and 2001:db8:1::/64 (name, location)",
        "add the egress IP of 203.0.113.20 and 2001:db8:3::/64 (name, location)",
        "name a MaxMind DB: geoip: {database: FILE}",
        "6 of 7 egress rules carried over, one rule of another kind left out",
    ]


def test_the_result_is_a_configuration_once_the_egress_ips_are_there(tmp_path: Path) -> None:
    config = configuration(tmp_path, OUTPUT.read_text())
    rules = {each["name"]: each for each in json.loads(EXPORT.read_text())["result"]}
    lists = Lists({LIST: ()})
    assert [policy.name for policy in config.policies] == [
        "Bank",
        "Partner API",
        "Europe",
        "Browsers by proxy endpoint",
        "Office",
        "Default egress policy",
    ]
    for policy in config.policies:
        origin = rules[policy.name]
        for key in ("traffic", "identity", "device_posture"):
            assert getattr(policy, key) == origin[key]
            assert parse(getattr(policy, key), lists) == parse(origin[key], lists)
        assert (policy.precedence, policy.enabled) == (origin["precedence"], origin["enabled"])
    assert config.resolve(config.policies[0]).fallback == "nyc-1"
    assert config.resolve(config.policies[1]).fallback == "shared"
    assert config.resolve(config.policies[2]).fallback is None
    assert config.resolve(config.policies[-1]).shared


def test_the_comment_of_a_rule_that_is_left_out_is_a_policy_when_it_is_mended(tmp_path: Path) -> None:
    text = OUTPUT.read_text()
    start = text.index("  # Left out: traffic: net.fqdn.content_category")
    lines = text[start:].splitlines()
    end = lines.index("")
    mended = [lines[0], *(line.replace("  # ", "  ", 1) for line in lines[1:end]), *lines[end:]]
    fixed = "\n".join(mended).replace("any(net.fqdn.content_category[*] in {165})", "net.dst.port == 443")
    config = configuration(tmp_path, f"{text[:start]}{fixed}\n")
    assert "Streaming" in [policy.name for policy in config.policies]


def test_json(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, json.loads(EXPORT.read_text()), "--json").stdout)
    assert [policy["name"] for policy in found["policies"]][:2] == ["Bank", "Partner API"]
    assert found["lists"] == {LIST: []}
    assert found["egress_ips"][0] == {"ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"}
    assert found["left_out"][0]["policy"]["name"] == "Streaming"
    assert {note["kind"] for note in found["notes"]} == {"other", "left out", "changed", "to do"}


# --- details


def test_exit_codes(tmp_path: Path) -> None:
    good = rule(traffic="net.dst.port == 443")
    assert run(tmp_path, {"result": [good]}).exit_code == 0
    assert run(tmp_path, [good]).exit_code == 0
    assert run(tmp_path, {"result": good}).exit_code == 0
    assert run(tmp_path, []).exit_code == 0
    other = {"name": "x", "action": "block", "filters": ["http"]}
    result = run(tmp_path, [good, other])
    assert (result.exit_code, "x: left out: not an egress rule" in result.stderr) == (0, True)
    assert run(tmp_path, [good, rule("bad", 20, traffic="nonsense")]).exit_code == 1
    assert run(tmp_path, [good, rule("late", 20, schedule={"mon": "08:00-12:00"})]).exit_code == 1


def test_stdin() -> None:
    raw = json.dumps([rule(traffic="net.dst.port == 443")])
    result = CliRunner().invoke(entry, ["import", "cloudflare", "-"], input=raw)
    assert result.exit_code == 0
    assert "traffic: 'net.dst.port == 443'" in result.stdout
    result = CliRunner().invoke(entry, ["import", "cloudflare", "-"], input="{")
    assert result.exit_code == 2
    assert result.stderr.startswith("stdin:1:2: is not JSON")


@pytest.mark.parametrize(
    "settings_",
    [None, {}, {"egress": None}, {"egress": {}}, egress(ipv4="", ipv6=""), egress(ipv4="0.0.0.0", ipv6=None)],
)
def test_the_default_egress(settings_: Any) -> None:
    assert carried(rule(rule_settings=settings_))["egress"] == "default"


def test_egress_addresses() -> None:
    assert carried(rule(rule_settings=egress(ipv4="203.0.113.10", ipv6="2001:DB8:1::/64")))["egress"] == {
        "ipv4": "203.0.113.10",
        "ipv6": "2001:db8:1::/64",
    }
    shared = egress(ipv4="203.0.113.10", ipv4_fallback="0.0.0.0", ipv6="")
    assert carried(rule(rule_settings=shared))["egress"] == {
        "ipv4": "203.0.113.10",
        "ipv4_fallback": "0.0.0.0",
    }
    host = rule(rule_settings=egress(ipv6="2001:db8:1::7/64"))
    assert carried(host)["egress"] == {"ipv6": "2001:db8:1::/64"}
    assert "r: its range 2001:db8:1::7/64 is written 2001:db8:1::/64" in notes(host)
    same = rule(rule_settings=egress(ipv4="203.0.113.10", ipv4_fallback="203.0.113.10"))
    assert carried(same)["egress"] == {"ipv4": "203.0.113.10"}
    assert "r: its fallback 203.0.113.10 is its primary address: left out" in notes(same)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        (egress(ipv4="2001:db8::1"), "is an IPv6 address"),
        (egress(ipv4="203.0.113.0/24"), "is a prefix of 256 addresses"),
        (egress(ipv4="here"), "is not an IP address"),
        (egress(ipv4=7), "rule_settings.egress.ipv4 is a number"),
        (egress(ipv6="203.0.113.10"), "is IPv4 in an IPv6 field"),
        (egress(ipv4="0.0.0.0", ipv6="2001:db8::/64"), "not one policy here"),
        ({"egress": ["x"]}, "rule_settings.egress is a list"),
        (["x"], "rule_settings is a list"),
    ],
)
def test_an_egress_that_cannot_be(settings_: Any, said: str) -> None:
    found = convert([rule(rule_settings=settings_)])
    assert found.policies == [] and not found.complete
    assert said in str(found.notes[0])


def test_settings_without_a_meaning_are_named() -> None:
    found = notes(
        rule(
            rule_settings={"block_reason": "no", "add_headers": {}, "l4override": None, **egress(ipv7="x")},
            expiration={"expires_at": "2030-01-01T00:00:00Z"},
            warning_status="unreachable",
            tags=["a"],
            updated_at="2024-01-01",
        )
    )
    assert found == [
        "r: rule_settings.block_reason has no meaning here: left out",
        "r: rule_settings.egress.ipv7 has no meaning here: left out",
        "r: its expiration is left out: the policy applies at all times",
        "r: tags has no meaning here: left out",
        'r: Cloudflare warns of it: "unreachable"',
    ]


def test_names() -> None:
    found = convert(
        [rule(" A\tb\n", 1), rule("x", 2), rule("x", 3), rule("x (2)", 4), rule("n" * 200, 5), rule("", 6)]
    )
    assert [policy["name"] for policy in found.policies] == [
        "A b",
        "x",
        "x (3)",
        "x (2)",
        "n" * 128,
        "rule 6",
    ]
    assert 'A b: its name was " A\\tb\\n"' in [str(note) for note in found.notes]
    assert 'x (3): several rules are named "x"' in [str(note) for note in found.notes]


def test_precedences() -> None:
    rules = [rule("last", None), rule("b", 10), rule("c", 11), rule("a", 5.0), rule("b2", 10), rule("z", -1)]
    found = convert(rules)
    ranks = [(policy["name"], policy["precedence"]) for policy in found.policies]
    assert ranks == [("a", 5), ("b", 10), ("b2", 11), ("c", 12), ("last", 13), ("z", 14)]
    said = [str(note) for note in found.notes]
    assert "b2: its precedence 10 is that of another rule as well: now 11" in said
    assert "c: its precedence 11 is that of another rule as well: now 12" in said
    assert "last: its precedence is missing: it comes last" in said
    far = convert([rule("a", 2**40), rule("b", 3)])
    assert [policy["precedence"] for policy in far.policies] == [10, 20]
    assert [policy["name"] for policy in far.policies] == ["b", "a"]


def test_whether_a_rule_is_enabled() -> None:
    assert carried(rule(enabled=False))["enabled"] is False
    unsaid = rule()
    del unsaid["enabled"]
    assert carried(unsaid)["enabled"] is False
    assert notes(unsaid) == ["r: `enabled` is missing: it is disabled"]


def test_deleted_rules_and_other_things() -> None:
    assert notes(rule(deleted_at="2024-01-01T00:00:00Z")) == ["r: left out: deleted at 2024-01-01T00:00:00Z"]
    assert notes("x", 7) == ["entry 1: is text, not a rule", "entry 2: is a number, not a rule"]
    assert carried(rule(filters=None))["egress"] == "default"
    assert "not an egress rule" in notes(rule(filters=["l4"]))[0]


def test_expressions_that_are_refused() -> None:
    found = convert([rule(traffic="net.dst.prot == 1", identity=7, device_posture="a\x00b")])
    said = [str(note) for note in found.notes]
    assert said[0].startswith("r: left out: traffic: net.dst.prot is no known field; expected net.dst.port")
    assert said[0].endswith("(column 1)")
    assert said[1] == "r: left out: identity is a number, not an expression"
    assert said[2] == "r: left out: device_posture: U+0000 cannot stand in an expression (column 2)"
    assert found.policies == []
    assert "  #   traffic: 'net.dst.prot == 1'" in render(found)


def test_lists_that_are_named() -> None:
    found = convert(
        [
            rule("a", 1, traffic=f"net.dst.ip in $office and any(net.fqdn.domains[*] in ${LIST})"),
            rule(
                "b", 2, traffic=f'net.fqdn.host in ${LIST.replace("-", "").upper()} or net.fqdn.host == "$x"'
            ),
            rule("c", 3, traffic="net.dst.ip in $_"),
            rule("d", 4, traffic="net.dst.ip in $gone and nonsense"),
        ]
    )
    assert found.lists == ["office", LIST]
    assert "c: left out: traffic: $_ cannot be the name of a list here" in [str(note) for note in found.notes]


def test_egress_ips_whose_other_half_is_not_said(tmp_path: Path) -> None:
    found = convert(
        [
            rule("a", 1, rule_settings=egress(ipv4="203.0.113.1", ipv6="2001:db8:1::/64")),
            rule("b", 2, rule_settings=egress(ipv4="203.0.113.1", ipv6="2001:db8:2::/64")),
            rule("c", 3, rule_settings=egress(ipv4="203.0.113.1", ipv4_fallback="203.0.113.3")),
        ]
    )
    assert found.egress_ips == [
        {"ipv4": "203.0.113.1", "ipv6": "2001:db8:1::/64"},
        {"ipv6": "2001:db8:2::/64"},
        {"ipv4": "203.0.113.3"},
    ]
    assert "add the egress IP of 203.0.113.3 (name, location, ipv6)" in [str(note) for note in found.notes]
    assert '#   - {name: egress-3, location: ?, ipv4: 203.0.113.3, ipv6: "?"}' in render(found)


# --- invalid files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ":1:1: is not JSON"),
        (b"{", ":1:2: is not JSON"),
        (b'{"result": [}\n', "is not JSON"),
        (b"\xff", ":1: byte 0xff is not UTF-8"),
        (b"[" * 200_000, "nests too deeply"),
        (b"[" + b"9" * 5000 + b"]", "a number is too long"),
        (
            b'{"success": false, "errors": [{"code": 10000, "message": "Authentication error"}]}',
            "Authentication error",
        ),
        (b'{"success": false}', "no reason given"),
        (b'{"result": null}', "has no rules"),
        (b'{"rules": []}', "has no rules"),
        (b"7", "has no rules"),
    ],
)
def test_files_without_rules(tmp_path: Path, content: bytes, said: str) -> None:
    result = run(tmp_path, content)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith(str(tmp_path / "rules.json"))


def test_no_file(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "does not exist"), (tmp_path, "is not a file")):
        result = CliRunner().invoke(entry, ["import", "cloudflare", str(path)])
        assert result.exit_code == 2 and said in result.stderr


def test_a_file_that_is_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cloudflare, "MAX_BYTES", 10)
    assert "is larger than" in run(tmp_path, b"[" + b" " * 20 + b"]").stderr


# --- arbitrary input


def check(imported: Imported) -> None:
    """The text parses as YAML to the imported policies and lists, and each policy is valid."""
    data = document.parse(render(imported), "x").data
    policies = [{"enabled": True, **policy} for policy in data["policies"]]
    assert policies == imported.policies
    assert list(data.get("lists") or ()) == imported.lists
    for policy in policies:
        Policy.model_validate(policy)
    assert len({policy["precedence"] for policy in policies}) == len(policies)
    assert len({policy["name"] for policy in policies}) == len(policies)
    assert all("\n" not in str(note) and str(note).isprintable() for note in imported.notes)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
addresses = st.sampled_from(
    ["", "0.0.0.0", "203.0.113.1", "203.0.113.2", "2001:db8:1::/64", "2001:db8::7/64", "::/0"]
)
texts = st.sampled_from(
    [
        "net.dst.port == 443",
        'net.fqdn.host == "a\\"b"',
        "net.dst.ip in $a.b\n or net.dst.ip in $a.b",
        'identity.name == "it\'s # : {x} \u2028"',
        "net.dst.ip in $x$",
        "",
        "  ",
    ]
)
rules = st.fixed_dictionaries(
    {"action": st.sampled_from(["egress", "egress", "block"])},
    optional={
        "name": st.text(max_size=10)
        | st.sampled_from(["1.5", "0x1F", "null", "~", "a: b", "- x", "y", "é"])
        | anything,
        "description": st.text(max_size=10) | anything,
        "precedence": st.integers(-1, 5) | st.integers() | anything,
        "enabled": st.booleans() | anything,
        "filters": st.just(["egress"]) | anything,
        "traffic": texts | anything,
        "identity": texts | anything,
        "device_posture": texts | anything,
        "schedule": anything,
        "rule_settings": st.fixed_dictionaries(
            {},
            optional={
                "egress": st.fixed_dictionaries(
                    {},
                    optional={
                        "ipv4": addresses | anything,
                        "ipv4_fallback": addresses | anything,
                        "ipv6": addresses | anything,
                    },
                )
                | anything,
                "block_reason": anything,
            },
        )
        | anything,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rules | anything, max_size=6))
def test_any_rules_become_policies_or_notes(found: list[Any]) -> None:
    imported = convert(found)
    check(imported)
    named = [note for note in imported.notes if note.kind in ("other", "left out") and note.rule]
    assert len(imported.policies) + len({note.rule for note in named}) <= len(found)
    json.dumps(imported.policies)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | anything.map(lambda value: json.dumps(value, allow_nan=True).encode()))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    assert run(tmp_path, content).exit_code in (0, 1, 2)


def test_errors_are_ours() -> None:
    with pytest.raises(ConfigError):
        cloudflare.read("x", b"{")


def test_lists_whose_names_differ_in_case_are_two() -> None:
    rules = [
        rule(name, number, traffic=f"net.dst.ip in ${name}") for number, name in enumerate(("Staff", "staff"))
    ]
    assert convert(rules).lists == ["Staff", "staff"]
