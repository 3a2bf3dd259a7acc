"""A file's values as far as each is valid by itself, so that one fault does not hide the next.

Each entry is validated alone. What is wrong with it is a fault; what is right with it (every valid field of
an entry that has a faulty one) still takes part in the checks across entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from enforcer.config import messages
from enforcer.config.document import Document, Way
from enforcer.config.fields import MarkMask, Name, PrivateNetwork, Switch, type_name
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
    "fast_path": Switch,
    "mark_mask": MarkMask,
    "geoip": GeoIP,
    "sessions": Sessions,
    "dns": DNS,
}
_LISTS: dict[str, Any] = {"egress_ips": EgressIP, "private_networks": PrivateNetwork, "policies": Policy}


@dataclass
class Draft:
    """What a file says, as far as it is valid."""

    document: Document
    name: str
    """The file's, for faults."""
    faults: list[Fault] = field(default_factory=list)
    values: Fields = field(default_factory=dict)
    """The whole entries, as ``Configuration`` takes them; complete only if there are no faults."""
    interfaces: Fields = field(default_factory=dict)
    shared: Fields = field(default_factory=dict)
    locations: dict[str, Fields] = field(default_factory=dict)
    egress_ips: dict[int, Fields] = field(default_factory=dict)
    policies: dict[int, Fields] = field(default_factory=dict)
    private_networks: dict[int, Any] = field(default_factory=dict)
    geoip: Fields = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values by name; a list with a fault in it has none."""

    @cached_property
    def named_lists(self) -> Lists:
        """The lists for expressions to use; asked for when all entries are there."""
        return Lists(self.lists) if self.lists else NO_LISTS

    def fault(self, way: Way, wrong: str, right: str) -> None:
        """Note what is wrong with the value at ``way``."""
        self.note(way, messages.sentence(way, self.document.value(way), wrong, right))

    def note(self, way: Way, message: str, key: bool = False) -> None:
        """Note a fault at the value at ``way``, or at its key."""
        position = self.document.key_position(way) if key else self.document.position(way)
        self.faults.append(Fault(self.name, position.line, message, position.column))

    def line(self, way: Way) -> int:
        """Give the line of a value, to refer to it."""
        return self.document.position(way).line


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _field_adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    info = model.model_fields[name]
    kind: Any = Annotated[info.annotation, info]
    return TypeAdapter(kind)


def _way(error_way: tuple[str | int, ...], way: Way) -> Way:
    # pydantic names the branch of a policy's `egress` that it took; the file has no such key.
    if way[:1] == ("policies",) and error_way[:1] == ("egress",):
        error_way = error_way[:1] + error_way[2:]
    return (*way, *error_way)


def _validate(draft: Draft, kind: Any, raw: Any, way: Way) -> tuple[Any, Fields]:
    """Validate one entry; the value (None if faulty) and its valid fields if it is a group of keys."""
    try:
        value = _adapter(kind).validate_python(raw)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] == "too_short" and details["input"]:
                continue  # pydantic does not count entries that are wrong, which are reported by themselves
            fault_way = _way(details["loc"], way)
            draft.note(
                fault_way, messages.explain(details, fault_way), key=details["type"] == "extra_forbidden"
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
    """Validate every entry of a document by itself."""
    result = Draft(document, name, list(document.faults))
    data = document.data
    known = Configuration.model_fields
    for key in data:
        if key not in known:
            result.note((key,), messages.unknown((key,)), key=True)
    for key, info in known.items():
        raw = data.get(key)
        if raw is None:
            # `policies:` with everything under it commented out is as good as no policies.
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
    way = ("check_source",)
    if isinstance(raw, dict):
        result.values["check_source"] = {
            name: _validate(result, Switch, item, (*way, name))[0] for name, item in raw.items()
        }
    elif isinstance(raw, bool):
        result.values["check_source"] = raw
    else:
        right = "true or false, or that for inside interfaces by name, such as {in1: false}"
        result.fault(way, f"is {type_name(raw)}", right)


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
        # `office:` with everything under it commented out is as good as an empty list.
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
