"""Models: resolution of policies, the JSON round trip, the schema and the sample."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from somelinks import some_links

from enforcer.config import SHARED, Configuration, Policy, load, schema
from enforcer.config.document import parse
from enforcer.config.schema import render
from enforcer.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"
SAMPLE = DOCS / "enforcer.sample.yaml"


@pytest.fixture(scope="module")
def sample() -> Configuration:
    return load(SAMPLE, interfaces=some_links("in0", "out0"))


def test_the_sample_is_accepted_without_warnings(sample: Configuration) -> None:
    assert sample.warnings == ()
    assert [policy.name for policy in sample.ordered_policies()] == [
        "bank",
        "office web",
        "payroll",
        "trial",
        "partners",
        "rest",
    ]


def test_the_sample_shows_every_key_and_the_defaults(sample: Configuration) -> None:
    data = YAML(typ="safe", pure=True).load(SAMPLE)
    assert set(data) == set(Configuration.model_fields)
    for name in ("proxy", "limits", "mark_mask", "geoip", "sessions", "dns"):
        assert getattr(sample, name) == Configuration.model_fields[name].default


def test_the_committed_schema_is_current() -> None:
    committed = (DOCS / "enforcer.schema.json").read_text(encoding="utf-8")
    assert committed == render(), "run: python -m enforcer.config > docs/enforcer.schema.json"


def test_the_schema_accepts_the_sample_and_refuses_what_is_wrong() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    data = YAML(typ="safe", pure=True).load(SAMPLE)
    validator.validate(data)
    for key, value in [
        ("location", 5),
        ("limits", {"connections_per_origin": 64513}),
        ("mark_mask", "ffff"),
        ("egress_ips", []),
        ("lists", {"a": [True]}),
        ("geoip", {"database": "relative"}),
        ("dns", {"when_down": "hold"}),
        ("colour", "red"),
        ("policies", [{"name": "a", "precedence": 1, "egress": "shared"}]),
        ("policies", [{"name": "a", "precedence": 1, "egress": 5}]),
        ("policies", [{"name": "a", "precedence": 1, "egress": {"ip": "203.0.113.10"}}]),
    ]:
        assert not validator.is_valid({**data, key: value}), key


def test_json_there_and_back(sample: Configuration) -> None:
    text = json.dumps(sample.model_dump(mode="json"))
    again = Configuration.model_validate_json(text)
    assert again == sample
    assert again.model_dump_json() == sample.model_dump_json()
    assert Configuration.model_validate(json.loads(text)) == sample


def test_models_are_frozen(sample: Configuration) -> None:
    with pytest.raises(ValueError, match="frozen"):
        sample.location = "nyc"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("egress", "expected"),
    [
        ("default", (True, None, None, None)),
        (None, (True, None, None, None)),
        ("nyc-1", (False, "nyc-1", "nyc-1", None)),
        ({"ipv4": "203.0.113.10"}, (False, "lax-1", "lax-1", None)),
        ({"ipv6": "2001:db8:1::/64"}, (False, "lax-1", "lax-1", None)),
        ({"ipv4": "203.0.113.10", "ipv6": "2001:db8:3::/64"}, (False, "lax-1", "nyc-1", None)),
        ({"ipv4": "203.0.113.10", "ipv4_fallback": "203.0.113.20"}, (False, "lax-1", "lax-1", "nyc-1")),
        ({"ipv6": "2001:db8:1::/64", "ipv4_fallback": "0.0.0.0"}, (False, "lax-1", "lax-1", SHARED)),
    ],
)
def test_what_a_policy_resolves_to(
    sample: Configuration, egress: object, expected: tuple[object, ...]
) -> None:
    policy = Policy.model_validate({"name": "x", "precedence": 1, "egress": egress})
    found = sample.resolve(policy)
    assert (found.shared, found.primary4, found.primary6, found.fallback) == expected


def test_an_address_that_nobody_owns(sample: Configuration) -> None:
    policy = Policy.model_validate({"name": "x", "precedence": 1, "egress": {"ipv4": "203.0.113.99"}})
    with pytest.raises(KeyError):
        sample.resolve(policy)
    with pytest.raises(KeyError):
        sample.egress_ip("nobody")
    assert str(sample.egress_ip("lax-2").ipv4) == "203.0.113.11"


@pytest.mark.parametrize("mask", [0xFFFF, "0xffff", "0XFFFF0000", 0xFF000000])
def test_masks(sample: Configuration, mask: object) -> None:
    data = sample.model_dump(mode="json") | {"mark_mask": mask}
    assert Configuration.model_validate(data).mark_mask == (
        mask if isinstance(mask, int) else int(str(mask), 16)
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("NO", "NO"),
        ("true", True),
        ("~", None),
        ("017", 17),
        ("0o17", 15),
        ("0xff", 255),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("1.5", 1.5),
        ("-1e3", -1000.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("1.2.3.4", "1.2.3.4"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2020-01-01", "2020-01-01"),
        ("'5'", "5"),
        ("9" * 50, int("9" * 50)),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert parse(f"a: {text}", "x").data == {"a": value}


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "replace")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_document_or_a_fault(text: str) -> None:
    try:
        parse(text, "x")
    except ConfigError as error:
        assert error.faults


@pytest.mark.parametrize("seed", range(150))
def test_a_mutated_sample_is_accepted_or_a_fault(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    text = SAMPLE.read_text(encoding="utf-8")
    for _ in range(source.randrange(1, 4)):
        start = source.randrange(len(text))
        end = start + source.choice((0, 1, 1, 3, 10))
        middle = source.choice(
            ("", ":", " ", "\n", "- ", "{", "]", "'", '"', "&a ", "*a", "\t", "é", "#", "0", "x", "!")
        )
        text = text[:start] + middle + text[end:]
    file = tmp_path / "mutated.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        assert isinstance(load(file), Configuration)
    except ConfigError as error:
        assert error.faults
        assert all(fault.message for fault in error.faults)
