"""Entries of the undo list (enforcer/gateway/state.py): what was changed, and how it was before.

An entry about a link has the link's index: the link may have another name later, and another link its name.
Earlier versions noted names alone; such an entry is about the link that has the name at present.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from enforcer.gateway.state import INDEX, UNDO
from enforcer.kernel import sysctl
from enforcer.kernel.links import Link

Entry = dict[str, str]
Links = Mapping[str, Link]


def setting(name: str, was: str, found: Links) -> Entry:
    """The entry of a kernel setting; of an interface's with that one's index."""
    entry = {"kind": "sysctl", "name": name, "was": was}
    link = found.get(sysctl.interface_of(name) or "")
    return entry | {INDEX: str(link.index)} if link else entry


def done_to(kind: str, link: Link) -> Entry:
    """The entry of what is done to a link."""
    return {"kind": kind, "interface": link.name, INDEX: str(link.index)}


def of(entries: Iterable[Entry], kind: str, link: Link) -> list[Entry]:
    """Those that say that this was done to this link."""
    return [
        entry
        for entry in entries
        if entry["kind"] == kind
        and (entry[INDEX] == str(link.index) if INDEX in entry else entry["interface"] == link.name)
    ]


def at_present(entries: Iterable[Entry], found: Links) -> list[Entry]:
    """The entries under the present names of their links, without those of links that are gone."""
    return _named(entries, found, found.keys())


def relisted(entries: Iterable[Entry], listed: Collection[str], found: Links) -> list[Entry]:
    """The same, but a link in no list keeps the name under which it was noted: it may be listed by that."""
    return _named(entries, found, listed)


def fresh(entries: Iterable[Entry], more: Iterable[Entry], found: Links) -> list[Entry]:
    """Those of ``more`` that are to be noted; what is noted already stays as first found."""
    noted = [_what(entry) for entry in at_present(entries, found)]
    return [entry for entry in more if _what(entry) not in noted]


def sysctls(entries: Iterable[Entry], found: Links) -> list[Entry]:
    """The entries of sysctls, under the present names."""
    return [entry for entry in at_present(entries, found) if entry["kind"] == "sysctl"]


def noted_as(entries: Iterable[Entry], found: Links) -> tuple[tuple[str, str], ...]:
    """The links by their present name, each with another name under which a setting of it is noted."""
    names = _names(found)
    noted = (entry for entry in entries if entry["kind"] == "sysctl" and entry.get(INDEX) in names)
    pairs = {(names[entry[INDEX]], sysctl.interface_of(entry["name"])) for entry in noted}
    return tuple(sorted((now, before) for now, before in pairs if before not in (None, now)))


def _names(found: Links) -> dict[str, str]:
    return {str(link.index): name for name, link in found.items()}


def _named(entries: Iterable[Entry], found: Links, chosen: Collection[str]) -> list[Entry]:
    """The entries, those of links that are gone left out; the chosen links' under the present names."""
    names, result = _names(found), []
    for entry in entries:
        if entry["kind"] not in UNDO or INDEX not in entry:
            result.append(entry)
        elif entry[INDEX] in names:
            name = names[entry[INDEX]]
            result.append(_under(entry, name) if name in chosen else entry)
    return result


def _under(entry: Entry, name: str) -> Entry:
    """The entry under another name of its link."""
    if entry["kind"] == "sysctl":
        return entry | {"name": sysctl.of_interface(entry["name"], name)}
    return entry | {"interface": name}


def _what(entry: Entry) -> Entry:
    """What an entry is about."""
    return {key: value for key, value in entry.items() if key not in ("was", INDEX)}
