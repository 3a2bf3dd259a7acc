"""Reads sessions: one as JSON, and files of them in JSON Lines (one session per line).

::

    {"client": "10.0.1.2", "email": "ann@corp.example", "name": "Ann Example",
     "groups": [{"id": "g-17", "name": "staff", "email": "staff@corp.example"}],
     "saml_attributes": {"department": "ops", "role": ["admin", "dev"]},
     "device_posture": ["3f2a…"], "vnet_id": "…", "proxy_endpoint": "…", "ttl": 28800}

Only ``client`` is required. ``expires`` (RFC 3339) or ``ttl`` (seconds) ends a session; ``ttl`` counts from
the time that the caller passes: for a watched file its last change, for a command the present time. A session
without groups or posture checks has empty lists of them, which are known.

Reading a file raises ConfigError with up to twenty faults. A fault quotes only the values of known keys and
the names of unknown ones, because faults are written to the journal.
"""

from __future__ import annotations

import io
import ipaddress
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from enforcer.constants import MAPPED
from enforcer.errors import ConfigError, Fault, UntrustedError
from enforcer.facts.rows import NewSession
from enforcer.instance import trust
from enforcer.policy.facts import SAML, Facts, saml

MOST_FAULTS = 20
LARGEST_FILE = 1 << 30
LONGEST_TEXT = 1024
LONGEST_LINE = 1 << 18
_LONGEST_TTL = 100 * 366 * 86400
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_decode = json.JSONDecoder().raw_decode
_ONE_OBJECT = "expected one JSON object a line"

EMAIL, NAME, VNET, ENDPOINT = "identity.email", "identity.name", "net.vnet_id", "proxy.endpoint"
GROUPS = {"id": "identity.groups.id", "name": "identity.groups.name", "email": "identity.groups.email"}
POSTURE = "device_posture.checks.passed"

KEYS = (
    "client",
    "email",
    "name",
    "groups",
    "saml_attributes",
    "device_posture",
    "vnet_id",
    "proxy_endpoint",
    "expires",
    "ttl",
)


class _WrongError(Exception):
    """One value is wrong."""


def _wrong(value: Any, what: str, expected: str) -> _WrongError:
    try:
        text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    except RecursionError:
        text = "…"
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:200])
    return _WrongError(f"{text if len(text) <= 60 else text[:59] + '…'}: {what}; expected {expected}")


def _text(value: Any, key: str) -> str:
    if isinstance(value, str) and value and len(value) <= LONGEST_TEXT:
        # Texts may have format characters and any spaces, but no control characters and no surrogates.
        if value.isprintable() or not any(
            char < " " or "\x7f" <= char < "\xa0" or _is_surrogate(char) for char in value
        ):
            return value
        raise _wrong(value, f"a control character in `{key}`", "text without any")
    if not isinstance(value, str):
        raise _wrong(value, f"`{key}` is not text", "text in double quotes")
    if not value:
        raise _wrong('""', f"`{key}` is empty", "text, or no such key")
    raise _wrong(value, f"`{key}` has {len(value)} characters", f"at most {LONGEST_TEXT}")


def _is_surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


def _texts(value: Any, key: str, plain: bool) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(value, f"`{key}` is not a list", "a list of texts")
    if not (plain and set(map(type, value)) <= {str} and "" not in value):
        for one in value:
            _text(one, key)
    return tuple(value)


def client_of(value: Any) -> bytes:
    """Return a client's address as 16 bytes; ValueError with the reason."""
    try:
        return _client(value)
    except _WrongError as error:
        raise ValueError(str(error)) from None


def _client(value: Any) -> bytes:
    try:
        if ":" not in value:
            packed = MAPPED + socket.inet_pton(socket.AF_INET, value)
            first = packed[12]
            if 0 < first < 224 and first != 127:
                return packed
        else:
            packed = socket.inet_pton(socket.AF_INET6, value)
            if packed[:12] == MAPPED:
                raise _wrong(value, "an IPv4 address in IPv6 form", str(unpack_client(packed)))
            # Not multicast, ::, ::1 or an IPv4-compatible address.
            if packed[0] != 0xFF and any(packed[:12]):
                return packed
    except (TypeError, OSError, ValueError):
        raise _wrong(value, "`client` is no address", "one IPv4 or IPv6 address, such as 10.0.1.2") from None
    raise _wrong(value, "not an address that a client can have", "a unicast address")


def _groups(value: Any, facts: dict[str, tuple[str, ...]], plain: bool) -> None:
    if not isinstance(value, list):
        raise _wrong(
            value, "`groups` is not a list", 'a list such as [{"id": "…", "name": "…", "email": "…"}]'
        )
    found: dict[str, list[str]] = {"id": [], "name": [], "email": []}
    for group in value:
        if not isinstance(group, dict) or not group:
            raise _wrong(group, "not a group", 'an object with one or more of "id", "name" and "email"')
        for key, text in group.items():
            if key not in found:
                raise _wrong(key, "an unknown key of a group", '"id", "name" or "email"')
            if not (plain and type(text) is str and text):
                _text(text, key)
            found[key].append(text)
    for key, field in GROUPS.items():
        facts[field] = tuple(found[key])


def _saml(value: Any, facts: dict[str, tuple[str, ...]], plain: bool) -> None:
    if not isinstance(value, dict):
        raise _wrong(value, "`saml_attributes` is not an object", 'an object such as {"department": "ops"}')
    for key, texts in value.items():
        name = _text(key, "the attribute's name")
        facts[saml(name)] = (_text(texts, key),) if isinstance(texts, str) else _texts(texts, key, plain)


def _posture(value: Any, facts: dict[str, tuple[str, ...]], plain: bool) -> None:
    facts[POSTURE] = _texts(value, "device_posture", plain)


_SINGLE = {"email": EMAIL, "name": NAME, "vnet_id": VNET, "proxy_endpoint": ENDPOINT}
_SEVERAL = {"groups": _groups, "saml_attributes": _saml, "device_posture": _posture}
_NO_GROUPS: dict[str, tuple[str, ...]] = dict.fromkeys((*GROUPS.values(), POSTURE), ())


def _expires(entry: Mapping[str, Any], now: float) -> float | None:
    if "ttl" in entry:
        ttl = entry["ttl"]
        if isinstance(ttl, bool) or not isinstance(ttl, int | float):
            raise _wrong(ttl, "`ttl` is no number", "seconds, such as 3600")
        if not 0 < ttl <= _LONGEST_TTL:  # false for NaN as well
            raise _wrong(ttl, "`ttl` is out of range", f"more than 0 and at most {_LONGEST_TTL} seconds")
        if "expires" in entry:
            raise _wrong(entry["expires"], "`expires` and `ttl` together", "one of them")
        return now + ttl
    if "expires" not in entry:
        return None
    return expiry_of(entry["expires"])


def expiry_of(value: Any) -> float:
    """Return a time of RFC 3339 in Unix seconds."""
    expected = "a time as in RFC 3339, such as 2030-12-31T23:59:59Z"
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise _wrong(value, "`expires` is no time with a zone", expected)
    try:
        return datetime.fromisoformat(value.upper()).timestamp()
    except (ValueError, OverflowError):
        raise _wrong(value, "`expires` is not in the calendar", expected) from None


def read(entry: Any, now: float, *, plain: bool = False) -> tuple[NewSession | None, list[str]]:
    """Return the session of a JSON value, or None with its faults; ``ttl`` counts from ``now``.

    ``plain``: the caller knows that no text is too long or has a control character.
    """
    if not isinstance(entry, dict):
        return None, ['not a session; expected an object such as {"client": "10.0.1.2", "email": "…"}']
    facts = _NO_GROUPS.copy()
    problems: list[str] = []
    client, expires = b"", None
    for key, value in entry.items():
        try:
            if key in _SINGLE:
                if not (plain and type(value) is str and value):
                    _text(value, key)
                facts[_SINGLE[key]] = (value,)
            elif key in _SEVERAL:
                _SEVERAL[key](value, facts, plain)
            elif key == "client":
                client = _client(value)
            elif key not in ("ttl", "expires"):
                raise _wrong(key, "an unknown key", f"one of {', '.join(KEYS)}")
        except _WrongError as error:
            problems.append(str(error))
    try:
        if "client" not in entry:
            problems.append(
                '`client` is missing; expected the client\'s address, such as "client": "10.0.1.2"'
            )
        expires = _expires(entry, now)
    except _WrongError as error:
        problems.append(str(error))
    return (None, problems) if problems else (NewSession(client, facts, expires), [])


def read_file(path: Path, now: float | None = None, name: str | None = None) -> list[NewSession]:
    """Return the sessions of a file that have not expired; ConfigError.

    ``ttl`` counts from ``now``, by default from the file's last change. Faults call the file ``name``.
    """
    name = name or str(path)
    content, changed = content_of(path, name)
    lines = Lines(changed if now is None else now)
    lines.read(content)
    return [NewSession(*row[:3]) for row in united(name, lines.rows, lines.faults)]


def content_of(path: Path, name: str) -> tuple[bytes, float]:
    """Return a file's content and the time of its last change; ConfigError."""
    try:
        number = trust.open_file(path)
        with open(number, "rb") as file:  # noqa: PTH123
            status = os.fstat(number)
            if status.st_size > LARGEST_FILE:
                raise ConfigError(
                    [Fault(name, 0, f"{status.st_size} bytes; at most {LARGEST_FILE} are read")]
                )
            return file.read().removeprefix(b"\xef\xbb\xbf"), status.st_mtime
    except trust.NotRegularError as error:
        raise ConfigError([Fault(name, 0, "not a regular file; expected a file of JSON Lines")]) from error
    except OSError as error:
        raise ConfigError([Fault(name, 0, f"cannot be read: {error.strerror}")]) from error
    except UntrustedError as error:
        raise ConfigError([Fault(name, 0, f"not read: {error}")]) from error


Row = tuple[bytes, Any, float | None, int]
"""Client, facts (as they are, or in stored form), expiry, line."""


def united(name: str, rows: Sequence[Row], faults: Sequence[tuple[int, str]]) -> list[Row]:
    """Return a whole file's rows that have not expired; ConfigError for faults and duplicate clients."""
    found = [Fault(name, line, message) for line, message in faults]
    first: dict[bytes, int] = {}
    for client, _, _, line in rows:
        before = first.setdefault(client, line)
        if before != line:
            twice = f"{unpack_client(client)}: twice in this file, in line {before} also"
            found.append(Fault(name, line, f"{twice}; expected one session for an address"))
    if found:
        found.sort(key=lambda fault: fault.line)
        if len(found) > MOST_FAULTS:
            end = f"and more: only the first {MOST_FAULTS} faults are listed"
            found[MOST_FAULTS:] = [Fault(name, found[MOST_FAULTS - 1].line, end)]
        raise ConfigError(found)
    now = time.time()
    return [row for row in rows if row[2] is None or row[2] > now]


class Lines:
    """Reads lines of a file: ``rows`` has the sessions, ``faults`` the pairs of line number and message."""

    def __init__(self, now: float, first: int = 1, keep: Callable[[Facts], Any] = lambda facts: facts):
        self.now = now
        self.first = first
        self.keep = keep
        self.rows: list[Row] = []
        self.faults: list[tuple[int, str]] = []

    def read(self, content: bytes) -> None:
        """Read all lines; stop when there are more than MOST_FAULTS faults."""
        rows, keep = self.rows, self.keep
        # Line by line: a line is processed while it is in the processor's cache.
        for number, raw in enumerate(io.BytesIO(content), self.first):
            session: NewSession | None = None
            problems: list[str] = []
            try:
                line = raw.decode().strip()
                if not line:
                    continue
                session, problems = self._line(line)
            except UnicodeDecodeError:
                problems = ["not UTF-8; expected JSON Lines in UTF-8"]
            if session is not None:
                rows.append((session.client, keep(session.facts), session.expires, number))
                continue
            self.faults += [(number, problem) for problem in problems]
            if len(self.faults) > MOST_FAULTS:
                return

    def _line(self, line: str) -> tuple[NewSession | None, list[str]]:
        if len(line) > LONGEST_LINE:
            return None, [f"a line of {len(line)} characters; expected at most {LONGEST_LINE}"]
        try:
            entry, end = _decode(line)
        except json.JSONDecodeError as error:
            return None, [f"not JSON: {error.msg} in column {error.colno}; {_ONE_OBJECT}"]
        except (ValueError, RecursionError):
            return None, [f"JSON that cannot be read; {_ONE_OBJECT}"]
        if end != len(line):
            return None, [f"more than one value in a line, in column {end + 1}; {_ONE_OBJECT}"]
        # JSON has no raw control characters below U+0020; what remains in ASCII is U+007F and escapes.
        plain = len(line) <= LONGEST_TEXT and line.isascii() and "\\" not in line and "\x7f" not in line
        return read(entry, self.now, plain=plain)


def unpack_client(client: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of 16 bytes; ten times as fast as with numpy."""
    return ipaddress.IPv4Address(client[12:]) if client[:12] == MAPPED else ipaddress.IPv6Address(client)


def shown(facts: Facts) -> dict[str, Any]:
    """Return facts as a session's JSON value, with every key.

    Facts keep ids, names and e-mail addresses of groups in separate lists. If the lists have different
    lengths, each value is shown as a group of its own.
    """
    lists = {key: facts.get(field, ()) for key, field in GROUPS.items()}
    kept = {key: values for key, values in lists.items() if values}
    if len({len(values) for values in kept.values()}) <= 1:
        groups = [dict(zip(kept, row, strict=True)) for row in zip(*kept.values(), strict=True)]
    else:
        groups = [{key: value} for key, values in kept.items() for value in values]
    attributes = {
        field[len(SAML) + 2 : -2]: values[0] if len(values) == 1 else list(values)
        for field, values in facts.items()
        if field.startswith(f"{SAML}[")
    }
    return {
        "email": next(iter(facts.get(EMAIL, ())), None),
        "name": next(iter(facts.get(NAME, ())), None),
        "groups": groups,
        "saml_attributes": attributes,
        "device_posture": list(facts.get(POSTURE, ())),
        "vnet_id": next(iter(facts.get(VNET, ())), None),
        "proxy_endpoint": next(iter(facts.get(ENDPOINT, ())), None),
    }
