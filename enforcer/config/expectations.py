"""Reads a file of expectations for `enforcer policy test`: connections with their expected egress.

::

    expectations:
      - name: accounting reaches the bank
        client: 10.1.0.9
        dst: 198.51.100.7
        dport: 443
        protocol: tcp
        session: {email: ann@corp.example, groups: [{name: Finance}]}
        expect: {policy: bank, egress: lax-1}

docs/policy-test.md describes the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from enforcer.config import document, messages
from enforcer.config.document import Document, KeyPath
from enforcer.config.fields import Title, type_name
from enforcer.config.models import Configuration
from enforcer.constants import EPHEMERAL_PORT, ICMP, ICMPV6, TCP, UDP
from enforcer.errors import ConfigError, Fault
from enforcer.policy import values
from enforcer.policy.decision import REASONS, SHARED
from enforcer.policy.error import WrongValueError
from enforcer.policy.facts import NOTHING, Connection, Facts, host_facts, region_facts

NEAREST, REFUSED, DEFAULT = "nearest", "refused", "default"
_PROTOCOLS = {"tcp": TCP, "udp": UDP}

Region = tuple[str | None, str | None]
FindRegion = Callable[[IPv4Address | IPv6Address], Region]
ReadSession = Callable[[dict[str, Any]], tuple[Facts | None, list[str]]]
"""Returns the facts of a session in JSON form (with its client), or its faults."""


def _wrong(wrong: str, right: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", "{wrong}; expected {right}", {"wrong": wrong, "right": right})


def _address(value: object) -> IPv4Address | IPv6Address:
    right = "one IPv4 or IPv6 address, such as 10.1.0.9"
    try:
        if isinstance(value, str) and "%" not in value:
            return ip_address(value)
    except ValueError:
        pass
    raise _wrong("is not an address" if isinstance(value, str) else f"is {type_name(value)}", right)


def _text_as(read: Callable[[str], str], optional: bool = False) -> PlainValidator:
    def validate(value: object) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, str):
            raise _wrong(f"is {type_name(value)}", f'text (quote it: "{value}")')
        try:
            return read(value)
        except WrongValueError as error:
            raise _wrong(error.wrong, error.right) from None

    return PlainValidator(validate)


def _protocol(value: object) -> str | int:
    known = value in ("tcp", "udp", "icmp") if isinstance(value, str) else False
    if known or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255):
        return value  # type: ignore[return-value]
    raise _wrong("is no protocol", "tcp, udp, icmp, or a number from 0 to 255")


Address = Annotated[IPv4Address | IPv6Address, PlainValidator(_address)]
Port = Annotated[int, Field(strict=True, ge=0, le=0xFFFF)]
Country = Annotated[str | None, _text_as(values.country, optional=True)]
Continent = Annotated[str | None, _text_as(values.continent, optional=True)]
Host = Annotated[str, _text_as(values.host)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Expected(_Model):
    """The expected decision; at least one key."""

    policy: Title | None = None
    """Name of the deciding policy; null: no policy matches."""
    egress: str | None = None
    """Name, IPv4 address or IPv6 range of an egress IP; shared or default; nearest; refused."""
    reason: str | None = None
    """The reason, as `enforcer explain` shows it."""


class Entry(_Model):
    """One expectation of the file."""

    name: Title | None = None
    """Name of the expectation, for messages."""
    client: Address | None = None
    """The client's address."""
    src: Address | None = None
    """The same as `client`."""
    sport: Port = EPHEMERAL_PORT
    """The client's port."""
    dst: Address
    """The origin's address."""
    dport: Port | None = None
    """The origin's port; TCP and UDP need one."""
    protocol: Annotated[str | int, PlainValidator(_protocol)]
    """Tcp, udp, icmp, or a number."""
    session: dict[str, Any] | None = None
    """The client's session, in the keys of `enforcer session add`; absent: it has none."""
    host: Host | None = None
    """The name that the client has asked for."""
    hosts: tuple[Host, ...] | None = None
    """Several names that share the address."""
    src_country: Country = None
    """The client's country; absent: the database of the configuration decides."""
    src_continent: Continent = None
    """The client's continent; absent: the database of the configuration decides."""
    dst_country: Country = None
    """The origin's country; absent: the database of the configuration decides."""
    dst_continent: Continent = None
    """The origin's continent; absent: the database of the configuration decides."""
    expect: Expected
    """What should become of it."""

    def region(self, side: Literal["src", "dst"]) -> Region | None:
        """Return the region that the entry gives, or None."""
        keys = (f"{side}_country", f"{side}_continent")
        if not self.model_fields_set & set(keys):
            return None
        country, continent = (getattr(self, key) for key in keys)
        return country, continent


@dataclass(frozen=True)
class Expectation:
    """A valid expectation."""

    name: str
    line: int
    connection: Connection
    """The connection, with the regions that the file gives; see ``known``."""
    known: Mapping[str, bool]
    """For ``src`` and ``dst``: whether the file gives the region."""
    policy: str | None
    checks_policy: bool
    egress: str | None
    """SHARED, NEAREST, REFUSED or an egress IP's name; None: not checked."""
    reason: str | None

    def located(self, find: FindRegion) -> Connection:
        """Return the connection, with regions from ``find`` where the file gives none."""
        found = self.connection
        if not self.known["src"]:
            found = found._replace(source_region=region_facts("src", *find(found.src)))
        if not self.known["dst"]:
            found = found._replace(destination_region=region_facts("dst", *find(found.dst)))
        return found


class _Reader:
    """Reads one file and notes every fault."""

    def __init__(self, found: Document, name: str, config: Configuration, read_session: ReadSession):
        self.document = found
        self.name = name
        self.config = config
        self.read_session = read_session
        self.faults = list(found.faults)
        self.names = {egress.name: egress.name for egress in config.egress_ips}
        for egress in config.egress_ips:
            self.names |= {str(egress.ipv4): egress.name, str(egress.ipv6): egress.name}
        self.names |= {SHARED: SHARED, DEFAULT: SHARED, NEAREST: NEAREST, REFUSED: REFUSED}
        self.names |= {str(config.shared.ipv4): SHARED, str(config.shared.ipv6): SHARED}

    def note(self, path: KeyPath, message: str, key: bool = False) -> None:
        """Note a fault at the value at ``path``, or at its key."""
        position = self.document.key_position(path) if key else self.document.position(path)
        self.faults.append(Fault(self.name, position.line, message, position.column))

    def fault(self, path: KeyPath, wrong: str, right: str) -> None:
        """Note a fault of the value at ``path``: what is wrong, and what is expected."""
        self.note(path, messages.sentence(path, self.document.value(path), wrong, right))

    def read(self) -> list[Expectation]:
        """Return all expectations without a fault."""
        data = self.document.data
        for key in data:
            if key != "expectations":
                self.note((key,), f'unknown key "{key}"; expected only `expectations`', key=True)
        entries = data.get("expectations")
        if "expectations" not in data:
            self.note((), 'the key "expectations" is missing; expected a list of connections')
        elif not isinstance(entries, list):
            self.fault(("expectations",), f"is {type_name(entries)}", "a list")
        elif not entries:
            self.fault(("expectations",), "is empty", "at least one expectation")
        else:
            found = [self.entry(index, raw) for index, raw in enumerate(entries)]
            return [each for each in found if each is not None]
        return []

    def entry(self, index: int, raw: Any) -> Expectation | None:
        """Return one expectation, or None after noting its faults."""
        path = ("expectations", index)
        before = len(self.faults)
        try:
            entry = _ADAPTER.validate_python(raw)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                at = (*path, *details["loc"])
                self.note(at, _explain(details, at), key=details["type"] == "extra_forbidden")
            return None
        client = self.client(path, entry)
        session = NOTHING
        if client is not None and entry.session is not None:
            session = self.session((*path, "session"), client, entry.session)
        self.check_ports(path, entry)
        if entry.host is not None and entry.hosts is not None:
            at = (*path, "hosts")
            self.note(at, f"{messages.dotted(at)}: stands beside `host`; expected one of them", key=True)
        expected = self.expected((*path, "expect"), entry.expect)
        if len(self.faults) > before or client is None:
            return None
        return Expectation(
            name=entry.name or messages.dotted(path),
            line=self.document.position(path).line,
            connection=_connection(entry, client, session),
            known={side: entry.region(side) is not None for side in ("src", "dst")},
            policy=entry.expect.policy,
            checks_policy="policy" in entry.expect.model_fields_set,
            egress=expected,
            reason=entry.expect.reason,
        )

    def client(self, path: KeyPath, entry: Entry) -> IPv4Address | IPv6Address | None:
        """Return the client's address, from `client` or `src`."""
        given = [each for each in (entry.client, entry.src) if each is not None]
        if len(given) != 1:
            what = "`client` and `src`" if given else 'the key "client" is missing'
            right = "one of them" if given else "the client's address"
            self.note(path, f"{messages.dotted(path)}: {what}; expected {right}")
            return None
        if given[0].version != entry.dst.version:
            self.fault((*path, "dst"), f"is not of the client's family, {given[0]}", "two addresses of one")
        return given[0]

    def session(self, path: KeyPath, client: IPv4Address | IPv6Address, raw: dict[str, Any]) -> Facts:
        """Return the facts of the client's session."""
        facts, problems = self.read_session({**raw, "client": str(client)})
        for problem in problems:
            self.note(path, f"{messages.dotted(path)}: {problem}")
        return facts if facts is not None else NOTHING

    def check_ports(self, path: KeyPath, entry: Entry) -> None:
        """Note missing ports of TCP and UDP, and ports of other protocols."""
        ported = entry.protocol in (*_PROTOCOLS, *_PROTOCOLS.values())
        if ported and entry.dport is None:
            self.note(
                path, f'{messages.dotted(path)}: the key "dport" is missing; expected the origin\'s port'
            )
        for key in ("dport", "sport"):
            if not ported and key in entry.model_fields_set:
                self.fault((*path, key), f"is a port, and {entry.protocol} has none", "no such key")

    def expected(self, path: KeyPath, expected: Expected) -> str | None:
        """Return the name of the expected egress; note names that the configuration does not have."""
        if not expected.model_fields_set:
            self.note(path, f"{messages.dotted(path)}: is empty; expected policy, egress or reason")
        policies = [policy.name for policy in self.config.policies]
        if expected.policy is not None and expected.policy not in policies:
            right = messages.nearest(expected.policy, policies) if policies else "null: there are none"
            self.fault((*path, "policy"), "is no policy of the configuration", right)
        if expected.reason is not None and expected.reason not in REASONS:
            self.fault((*path, "reason"), "is no reason", messages.nearest(expected.reason, REASONS))
        if expected.egress is None:
            return None
        egress = _canonical(expected.egress)
        if egress not in self.names:
            words = (*(egress.name for egress in self.config.egress_ips), SHARED, NEAREST, REFUSED)
            self.fault((*path, "egress"), "is no egress", messages.nearest(expected.egress, words))
        return self.names.get(egress)


def _canonical(text: str) -> str:
    """Return an address or range in canonical form, any other text unchanged."""
    for read in (ip_address, ip_network):
        with suppress(ValueError):
            return str(read(text))
    return text


_ADAPTER: TypeAdapter[Entry] = TypeAdapter(Entry)


def _connection(entry: Entry, client: IPv4Address | IPv6Address, session: Facts) -> Connection:
    protocol = entry.protocol
    if isinstance(protocol, str):
        protocol = _PROTOCOLS.get(protocol) or (ICMP if client.version == 4 else ICMPV6)
    ported = protocol in _PROTOCOLS.values()
    hosts = entry.hosts if entry.hosts is not None else (entry.host,) if entry.host else ()
    return Connection(
        src=client,
        dst=entry.dst,
        src_port=entry.sport if ported else 0,
        dst_port=entry.dport or 0,
        protocol=protocol,
        source_region=region_facts("src", *(entry.region("src") or (None, None))),
        destination_region=region_facts("dst", *(entry.region("dst") or (None, None))),
        client=session,
        hosts=tuple(map(host_facts, hosts)),
    )


def _explain(error: ErrorDetails, path: KeyPath) -> str:
    """Return the message for one of pydantic's errors."""
    model: type[BaseModel] = Expected if "expect" in path[2:-1] else Entry
    key, where = str(path[-1]), messages.dotted(path[:-1])
    if error["type"] == "missing":
        what = (model.model_fields[key].description or "a value").split("\n", 1)[0].rstrip(".")
        return f'{where}: the key "{key}" is missing; expected {what[0].lower()}{what[1:]}'
    if error["type"] == "extra_forbidden":
        return f'{where}: unknown key "{key}"; expected {messages.nearest(key, model.model_fields)}'
    return messages.explain(error, path)


# Messages about configuration files, and the ones for files of expectations.
_REWORDED = {
    "does not exist": "does not exist; expected a file of expectations",
    "is empty": "is empty; expected `expectations:` with a list",
    "is no configuration": "is no file of expectations; expected `expectations:` with a list",
}


def _read(path: Path) -> Document:
    try:
        return document.read(path)
    except ConfigError as error:
        raise ConfigError(list(_reworded(error.faults))) from None


def _reworded(faults: tuple[Fault, ...]) -> Iterator[Fault]:
    for fault in faults:
        new = next((text for start, text in _REWORDED.items() if fault.message.startswith(start)), None)
        yield Fault(fault.file, fault.line, new or fault.message, fault.column)


def load(path: Path, config: Configuration, read_session: ReadSession) -> list[Expectation]:
    """Read a file of expectations about a configuration; ConfigError with every fault in it."""
    reader = _Reader(_read(path), str(path), config, read_session)
    found = reader.read()
    if reader.faults:
        raise ConfigError(reader.faults)
    return found
