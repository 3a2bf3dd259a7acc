"""Rules of Cloudflare Gateway, as its API gives them, as policies of the configuration file.

What is read is the answer of ``GET /accounts/{account_id}/gateway/rules``: ``{"result": [...]}``, the list
alone, or one rule. Whatever cannot be carried over is a :class:`Note`; nothing is dropped without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Interface, ip_interface
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from enforcer.config import messages
from enforcer.config.fields import Name, type_name
from enforcer.config.models import Policy, PolicyEgress
from enforcer.errors import ConfigError, Fault
from enforcer.instance import trust
from enforcer.policy.expression import TextIn, TextMatches, comparisons
from enforcer.policy.facts import dimension
from enforcer.policy.language import ExpressionError, Lists, parse
from enforcer.policy.lists import uuid

MAX_BYTES = 64 << 20
_HIGHEST = 0xFFFFFFFF  # precedence
_STEP = 10

Changed = Callable[[str], None]
"""Notes what of a rule is not as it was."""

EXPRESSIONS = ("traffic", "identity", "device_posture")

_READ = frozenset(
    {
        *EXPRESSIONS,
        *("name", "description", "precedence", "enabled", "action", "filters", "rule_settings", "deleted_at"),
    }
)
_ABOUT_THE_RECORD = frozenset(
    {
        *("id", "created_at", "updated_at", "version", "account_tag"),
        *("source_account", "read_only", "sharable", "not_sharable"),
    }
)
_NOTHING: tuple[Any, ...] = (None, False, "", 0, [], {})
"""What the API gives for settings that nobody has made."""
_REFERENCE = re.compile(
    r"""r(?P<hashes>\#{0,255})"[\s\S]*?"(?P=hashes) | "(?:[^"\\]|\\[\s\S])*" | \$(?P<name>[\w.-]+)""",
    re.VERBOSE,
)

_LIST_NAME: TypeAdapter[str] = TypeAdapter(Name)

Kind = Literal["other", "left out", "changed", "to do"]


@dataclass(frozen=True)
class Note:
    """One thing that is not as it was.

    ``other`` is a rule of another kind than egress, ``left out`` an egress rule, ``changed`` something of
    an egress rule; ``to do`` is what the configuration file needs besides.
    """

    kind: Kind
    rule: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}" if self.rule else self.message


@dataclass
class Item:
    """One egress rule as a policy; ``refused`` says why it can only stand in the file as a comment."""

    policy: dict[str, Any]
    description: str = ""
    refused: str | None = None


@dataclass
class Imported:
    """All that an export has for the configuration file."""

    items: list[Item] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    """Names of the lists that the policies refer to; their values are not in the export."""
    egress_ips: list[dict[str, str]] = field(default_factory=list)
    """Addresses that policies name, as far as they are seen to belong together."""
    needs_geoip: bool = False
    """Whether a policy asks for countries or continents, which need `geoip`."""
    notes: list[Note] = field(default_factory=list)

    @property
    def policies(self) -> list[dict[str, Any]]:
        """Those that were carried over."""
        return [item.policy for item in self.items if item.refused is None]

    @property
    def complete(self) -> bool:
        """Whether every egress rule was carried over as it was."""
        return not any(note.kind in ("left out", "changed") for note in self.notes)


class _Refused(Exception):
    """The rule cannot be a policy; the message says why."""


def read(name: str, raw: bytes) -> Any:
    """Decode an export; ConfigError with one fault, at ``name``."""
    if len(raw) > MAX_BYTES:
        raise _fault(name, f"is larger than {MAX_BYTES >> 20} MiB; expected the Gateway rules API's answer")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _fault(name, f"byte 0x{raw[error.start]:02x} is not UTF-8; expected JSON", line) from None
    except json.JSONDecodeError as error:
        raise _fault(name, f"is not JSON: {error.msg}", error.lineno, error.colno) from None
    except (RecursionError, ValueError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise _fault(name, f"is not JSON that can be read: {why}") from None


def read_file(path: Path) -> Any:
    """Read and decode an export; ConfigError with one fault."""
    name = str(path)
    try:
        raw = trust.read_file(path, MAX_BYTES, strict=False)
    except trust.NotRegularError:
        raise _fault(name, "is not a file; expected JSON") from None
    except FileNotFoundError:
        raise _fault(name, "does not exist; expected JSON of the Gateway rules API") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _fault(name, f"cannot be read: {reason}") from None
    return read(name, raw)


def _fault(name: str, message: str, line: int = 0, column: int = 0) -> ConfigError:
    return ConfigError([Fault(name, line, message, column)])


def rules_of(document: Any, name: str) -> list[Any]:
    """The rules in an answer of the API; ConfigError if there are none to be found."""
    if isinstance(document, dict) and document.get("success") is False:
        errors = document.get("errors")
        said = [
            str(error["message"])
            for error in (errors if isinstance(errors, list) else ())
            if isinstance(error, dict) and "message" in error
        ]
        raise _fault(name, f"is the API's refusal: {_plain('; '.join(said)) or 'no reason given'}")
    rules = document.get("result") if isinstance(document, dict) and "result" in document else document
    if isinstance(rules, dict) and ("action" in rules or "filters" in rules):
        rules = [rules]
    if not isinstance(rules, list):
        raise _fault(name, 'has no rules; expected {"result": [...]}, or a list of rules')
    return rules


def convert(rules: Iterable[Any]) -> Imported:
    """Make policies of the egress rules, in ascending precedence."""
    result = Imported()
    egress = []
    for position, rule in enumerate(rules, 1):
        if not isinstance(rule, dict):
            result.notes.append(Note("left out", f"entry {position}", f"is {type_name(rule)}, not a rule"))
            continue
        label = _label(rule, position)
        kind = _other_kind(rule)
        if kind is None:
            egress.append((label, rule))
        else:
            result.notes.append(Note("other", label, f"left out: {kind}"))
    lists = _references(rule for _, rule in egress)
    known = Lists(dict.fromkeys(lists, ()))
    for label, rule in egress:
        _convert_rule(label, rule, known, result)
    _make_names_unique(result)
    _order(result)
    result.lists = _references(result.policies)
    result.egress_ips = list(_egress_ips(result.policies))
    result.needs_geoip = any(_asks_for_regions(policy, known) for policy in result.policies)
    _note_what_is_missing(result)
    return result


def _label(rule: dict[str, Any], position: int) -> str:
    name = rule.get("name")
    text = _title(name) if isinstance(name, str) else ""
    return text or f"rule {position}"


def _plain(text: str) -> str:
    """Make text of anybody's fit for one line."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _title(text: str) -> str:
    return _plain(text)[:128].strip()


def _other_kind(rule: dict[str, Any]) -> str | None:
    """Say what a rule is that is not for egress."""
    action, filters = rule.get("action"), rule.get("filters")
    names = filters if isinstance(filters, list) else [filters] if filters else []
    if action == "egress" and all(name == "egress" for name in names):
        return f"deleted at {_plain(str(rule['deleted_at']))}" if rule.get("deleted_at") else None
    shown = ", ".join(_plain(str(name)) for name in names) or "no filter"
    return f"not an egress rule (filter: {shown}; action: {_plain(str(action))})"


def _references(rules: Iterable[dict[str, Any]]) -> list[str]:
    """Names of lists in the rules' expressions; a UUID is one list however it is written."""
    found: dict[str, str] = {}
    for rule in rules:
        for key in EXPRESSIONS:
            for name in _names(rule.get(key)):
                found.setdefault(uuid(name) or name, name)
    return list(found.values())


def _names(text: Any) -> Iterator[str]:
    for match in _REFERENCE.finditer(text) if isinstance(text, str) else ():
        if match["name"]:
            yield match["name"]


def _convert_rule(label: str, rule: dict[str, Any], lists: Lists, result: Imported) -> None:
    notes: list[Note] = []

    def changed(message: str) -> None:
        notes.append(Note("changed", label, message))

    policy: dict[str, Any] = {"name": label}
    if label != rule.get("name"):
        changed(f"its name was {_shown(rule.get('name'))}")
    description = rule.get("description")
    item = Item(policy, _plain(description) if isinstance(description, str) else "")
    policy["precedence"] = _precedence(rule)
    if policy["precedence"] is None:
        changed(f"its precedence is {_shown(rule.get('precedence'))}: it comes last")
    policy["enabled"] = rule.get("enabled") is True
    if not isinstance(rule.get("enabled"), bool):
        changed(f"`enabled` is {_shown(rule.get('enabled'))}: it is disabled")
    problems = []
    for key in EXPRESSIONS:
        try:
            text = _expression(key, rule.get(key), lists)
        except _Refused as refused:
            problems.append(str(refused))
            text = rule[key] if isinstance(rule[key], str) else ""
        if text:
            policy[key] = text
    try:
        policy["egress"] = _egress(rule.get("rule_settings"), changed)
    except _Refused as refused:
        problems.append(str(refused))
    _note_others(rule, changed)
    result.items.append(item)
    if problems:
        item.refused = "; ".join(problems)
        notes = [Note("left out", label, f"left out: {problem}") for problem in problems]
    result.notes += notes


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    return _plain(json.dumps(value, default=str))[:80]


def _precedence(rule: dict[str, Any]) -> int | None:
    value = rule.get("precedence")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _expression(key: str, text: Any, lists: Lists) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _Refused(f"{key} is {type_name(text)}, not an expression")
    for index, char in enumerate(text, 1):
        if not char.isprintable() and not char.isspace():
            raise _Refused(f"{key}: U+{ord(char):04X} cannot stand in an expression (column {index})")
    for name in _names(text):
        try:
            _LIST_NAME.validate_python(name)
        except ValidationError:
            raise _Refused(f"{key}: ${name} cannot be the name of a list here") from None
    try:
        parse(text, lists)
    except ExpressionError as error:
        raise _Refused(f"{key}: {error.message} (column {error.column})") from None
    return text if text.strip() else ""


def _egress(settings: Any, changed: Changed) -> dict[str, str] | str:
    """Give a policy's `egress`; absent settings and empty addresses are the default egress."""
    if settings is None:
        return "default"
    if not isinstance(settings, dict):
        raise _Refused(f"rule_settings is {type_name(settings)}")
    for key, value in settings.items():
        if key != "egress" and value not in _NOTHING:
            changed(f"rule_settings.{_plain(key)} has no meaning here: left out")
    egress = settings.get("egress")
    if egress is None:
        return "default"
    if not isinstance(egress, dict):
        raise _Refused(f"rule_settings.egress is {type_name(egress)}")
    found = {}
    for key, value in egress.items():
        if value is None or value == "":
            continue
        if key not in PolicyEgress.model_fields:
            changed(f"rule_settings.egress.{_plain(key)} has no meaning here: left out")
        elif not isinstance(value, str):
            raise _Refused(f"rule_settings.egress.{key} is {type_name(value)}, not an address")
        else:
            found[key] = value.strip()
    return _addresses(found, changed)


def _addresses(found: dict[str, str], changed: Changed) -> dict[str, str] | str:
    if found.get("ipv4") == "0.0.0.0":
        del found["ipv4"]
        if "ipv6" in found:
            raise _Refused("IPv4 leaves from the shared address and IPv6 from a range: not one policy here")
    if not found.keys() & {"ipv4", "ipv6"}:
        if found.get("ipv4_fallback", "0.0.0.0") != "0.0.0.0":
            changed(f"its fallback {_plain(found['ipv4_fallback'])} has no primary address: left out")
        return "default"
    if "ipv6" in found:
        _clear_host_bits(found, changed)
    try:
        checked = PolicyEgress.model_validate(found)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        way = ("rule_settings", "egress", *details["loc"])
        raise _Refused(_plain(messages.explain(details, way))) from None
    if checked.ipv4_fallback is not None and checked.ipv4_fallback == checked.ipv4:
        changed(f"its fallback {checked.ipv4_fallback} is its primary address: left out")
        checked = checked.model_copy(update={"ipv4_fallback": None})
    return {key: str(value) for key, value in checked if value is not None}


def _clear_host_bits(found: dict[str, str], changed: Changed) -> None:
    try:
        interface = ip_interface(found["ipv6"])
    except ValueError:
        return
    if isinstance(interface, IPv6Interface) and interface.ip != interface.network.network_address:
        changed(f"its range {found['ipv6']} is written {interface.network}")
        found["ipv6"] = str(interface.network)


def _note_others(rule: dict[str, Any], changed: Changed) -> None:
    for key in sorted(rule.keys() - _READ - _ABOUT_THE_RECORD):
        value = rule[key]
        if value in _NOTHING:
            continue
        if key in ("schedule", "expiration"):
            changed(f"its {key} is left out: the policy applies at all times")
        elif key == "warning_status":
            changed(f"Cloudflare warns of it: {_shown(value)}")
        else:
            changed(f"{_plain(key)} has no meaning here: left out")


def _make_names_unique(result: Imported) -> None:
    taken = {item.policy["name"] for item in result.items}
    seen: set[str] = set()
    for item in result.items:
        name = unique = item.policy["name"]
        number = 2
        while unique in seen or (unique != name and unique in taken):
            ending = f" ({number})"
            unique = f"{name[: 128 - len(ending)].strip()}{ending}"
            number += 1
        seen.add(unique)
        if unique != name:
            item.policy["name"] = unique
            result.notes.append(Note("changed", unique, f'several rules are named "{name}"'))


def _order(result: Imported) -> None:
    """Sort by precedence and make equal ones different, as little as will do."""
    last = max((item.policy["precedence"] or 0 for item in result.items), default=0)
    result.items.sort(key=lambda item: last + 1 if (rank := item.policy["precedence"]) is None else rank)
    before = -1
    for item in result.items:
        rank = item.policy["precedence"]
        item.policy["precedence"] = max(last + 1 if rank is None else rank, before + 1)
        before = item.policy["precedence"]
        if rank is not None and rank != before:
            message = f"its precedence {rank} is that of another rule as well: now {before}"
            result.notes.append(Note("changed", item.policy["name"], message))
    if before > _HIGHEST:
        for index, item in enumerate(result.items, 1):
            item.policy["precedence"] = index * _STEP
        message = f"precedences reach beyond {_HIGHEST:,}: all are given again, in steps of {_STEP}"
        result.notes.append(Note("changed", None, message))
    for item in result.items:
        Policy.model_validate(item.policy if item.refused is None else item.policy | {"egress": "default"})


def _egress_ips(policies: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Pair addresses and ranges that stand in one policy; the rest has its other half yet to be named."""
    egresses = [policy["egress"] for policy in policies if isinstance(policy["egress"], dict)]
    seen: set[str] = set()
    for egress in egresses:
        pair = {key: egress[key] for key in ("ipv4", "ipv6") if key in egress}
        if len(pair) == 2 and not seen & set(pair.values()):
            seen |= set(pair.values())
            yield pair
    for egress in egresses:
        for key, value in egress.items():
            if value not in seen and value != "0.0.0.0":
                seen.add(value)
                yield {"ipv6" if key == "ipv6" else "ipv4": value}


def _asks_for_regions(policy: dict[str, Any], lists: Lists) -> bool:
    tests = (
        test
        for key in EXPRESSIONS
        for test in comparisons(parse(policy.get(key, ""), lists))
        if isinstance(test, TextIn | TextMatches)
    )
    return any(dimension(test.field) in ("source_region", "destination_region") for test in tests)


def _note_what_is_missing(result: Imported) -> None:
    for name in result.lists:
        result.notes.append(Note("to do", None, f"fill in the list {name}: its values are not in the export"))
    for egress in result.egress_ips:
        needs = "name, location" + "".join(f", {key}" for key in ("ipv4", "ipv6") if key not in egress)
        result.notes.append(
            Note("to do", None, f"add the egress IP of {' and '.join(egress.values())} ({needs})")
        )
    if result.needs_geoip:
        result.notes.append(Note("to do", None, "name a MaxMind DB: geoip: {database: FILE}"))


def summary(result: Imported) -> str:
    """Say in one line how much was carried over."""
    others = sum(note.kind == "other" for note in result.notes)
    rules = "one rule of another kind" if others == 1 else f"{others:,} rules of other kinds"
    carried = f"{len(result.policies):,} of {len(result.items):,} egress rules carried over"
    return f"{carried}, {rules} left out" if others else carried
