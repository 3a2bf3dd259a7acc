"""Validates each entry of a configuration file alone, so that one fault does not hide the next.

An invalid field is a fault. The valid fields of the same entry still take part in the checks across entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from enforcer.config import messages
from enforcer.config.document import Document, KeyPath
from enforcer.config.fields import Flag, MarkMask, Name, PrivateNetwork, type_name
from enforcer.config.models import (
    DNS,
    Configuration,
    EgressIP,
    GeoIP,
    Interfaces,
    Limits,
    Location,
    NamedList,
    Policy,
    Proxy,
    Sessions,
    Shared,
    Timers,
)
from enforcer.errors import Fault
from enforcer.policy.lists import NO_LISTS, Lists

Fields = dict[str, Any]
"""The valid fields of one entry."""

_SINGLE: dict[str, Any] = {
    "location": Name,
    "interfaces": Interfaces,
    "proxy": Proxy,
    "shared": Shared,
    "limits": Limits,
    "timers": Timers,
    "fast_path": Flag,
    "mark_mask": MarkMask,
    "geoip": GeoIP,
    "sessions": Sessions,
    "dns": DNS,
}
_LISTS: dict[str, Any] = {"egress_ips": EgressIP, "private_networks": PrivateNetwork, "policies": Policy}


@dataclass
class Draft:
    """The valid part of a file, and its faults."""

    document: Document
    name: str
    """The file's name in faults."""
    faults: list[Fault] = field(default_factory=list)
    values: Fields = field(default_factory=dict)
    """Arguments of ``Configuration``; complete only without faults."""
    interfaces: Fields = field(default_factory=dict)
    shared: Fields = field(default_factory=dict)
    locations: dict[str, Fields] = field(default_factory=dict)
    egress_ips: dict[int, Fields] = field(default_factory=dict)
    policies: dict[int, Fields] = field(default_factory=dict)
    private_networks: dict[int, Any] = field(default_factory=dict)
    geoip: Fields = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values by name; a list with a fault is empty."""

    @cached_property
    def named_lists(self) -> Lists:
        """The lists for expressions; read it after all entries are drafted."""
        return Lists(self.lists) if self.lists else NO_LISTS

    def fault(self, path: KeyPath, wrong: str, right: str) -> None:
        """Note a fault of the value at ``path``: what is wrong, and what is expected."""
        self.note(path, messages.sentence(path, self.document.value(path), wrong, right))

    def note(self, path: KeyPath, message: str, key: bool = False) -> None:
        """Note a fault at the value at ``path``, or at its key."""
        position = self.document.key_position(path) if key else self.document.position(path)
        self.faults.append(Fault(self.name, position.line, message, position.column))

    def line(self, path: KeyPath) -> int:
        """Return a value's line, for messages that refer to it."""
        return self.document.position(path).line


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _field_adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    info = model.model_fields[name]
    kind: Any = Annotated[info.annotation, info]
    return TypeAdapter(kind)


def _key_path(error_path: tuple[str | int, ...], path: KeyPath) -> KeyPath:
    # pydantic's path has the branch of a policy's `egress` union; the file has no such key.
    if path[:1] == ("policies",) and error_path[:1] == ("egress",):
        error_path = error_path[:1] + error_path[2:]
    return (*path, *error_path)


def _validate(draft: Draft, kind: Any, raw: Any, path: KeyPath) -> tuple[Any, Fields]:
    """Validate one entry; return its value (None if invalid) and the valid fields of a group of keys."""
    try:
        value = _adapter(kind).validate_python(raw)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] == "too_short" and details["input"]:
                continue  # pydantic does not count invalid entries, which have faults of their own
            fault_path = _key_path(details["loc"], path)
            draft.note(
                fault_path, messages.explain(details, fault_path), key=details["type"] == "extra_forbidden"
            )
        return None, dict(_valid_fields(kind, raw))
    return value, dict(value) if isinstance(value, BaseModel) else {}


def _valid_fields(kind: Any, raw: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(raw, dict) or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return
    for name in kind.model_fields:
        if name in raw:
            try:
                yield name, _field_adapter(kind, name).validate_python(raw[name])
            except ValidationError:
                continue


def draft(document: Document, name: str) -> Draft:
    """Validate every entry of a document alone."""
    result = Draft(document, name, list(document.faults))
    data = document.data
    known = Configuration.model_fields
    for key in data:
        if key not in known:
            result.note((key,), messages.unknown((key,)), key=True)
    for key, info in known.items():
        raw = data.get(key)
        if raw is None:
            # `policies:` with all entries commented out means no policies.
            if info.is_required():
                result.note((key,) if key in data else (), messages.missing((key,)))
        elif key in _SINGLE:
            value, fields = _validate(result, _SINGLE[key], raw, (key,))
            result.values[key] = value
            if key in ("interfaces", "shared", "geoip"):
                setattr(result, key, fields)
        elif key in _LISTS:
            _draft_list(result, key, raw, info.is_required())
        elif key == "lists":
            _draft_lists(result, raw)
        elif key == "check_source":
            _draft_check_source(result, raw)
        else:
            _draft_locations(result, raw)
    return result


def _draft_list(result: Draft, key: str, raw: Any, required: bool) -> None:
    if not isinstance(raw, list):
        result.fault((key,), f"is {type_name(raw)}", "a list")
        return
    if not raw and required:
        result.fault((key,), "is empty", "at least one entry")
    values = []
    for index, item in enumerate(raw):
        value, fields = _validate(result, _LISTS[key], item, (key, index))
        values.append(value)
        if key == "private_networks":
            if value is not None:
                result.private_networks[index] = value
        else:
            getattr(result, key)[index] = fields
    result.values[key] = tuple(values)


def _draft_check_source(result: Draft, raw: Any) -> None:
    path = ("check_source",)
    if isinstance(raw, dict):
        result.values["check_source"] = {
            name: _validate(result, Flag, item, (*path, name))[0] for name, item in raw.items()
        }
    elif isinstance(raw, bool):
        result.values["check_source"] = raw
    else:
        right = "true or false, or that for inside interfaces by name, such as {in1: false}"
        result.fault(path, f"is {type_name(raw)}", right)


def _draft_locations(result: Draft, raw: Any) -> None:
    if not isinstance(raw, dict):
        result.fault(("locations",), f"is {type_name(raw)}", "a group of keys")
        return
    if not raw:
        result.fault(("locations",), "is empty", "at least one location")
    values = {}
    for key, item in raw.items():
        _check_name(result, "locations", key)
        values[key], result.locations[key] = _validate(result, Location, item, ("locations", key))
    result.values["locations"] = values


def _draft_lists(result: Draft, raw: Any) -> None:
    if not isinstance(raw, dict):
        result.fault(("lists",), f"is {type_name(raw)}", "a group of keys")
        return
    values = {}
    for key, item in raw.items():
        _check_name(result, "lists", key)
        # `office:` with all values commented out means an empty list.
        values[key], _ = _validate(result, NamedList, [] if item is None else item, ("lists", key))
        result.lists[key] = values[key] or ()
    result.values["lists"] = values


def _check_name(result: Draft, group: str, key: str) -> None:
    try:
        _adapter(Name).validate_python(key)
    except ValidationError as error:
        context = error.errors()[0]["ctx"]
        message = messages.sentence((group,), key, context["wrong"], context["right"])
        result.note((group, key), message, key=True)
