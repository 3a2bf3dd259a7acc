"""Entries of the undo list (enforcer/gateway/state.py): what was changed, and the original value.

An entry about a link has the link's index, because links may be renamed and names reused. Earlier versions
noted names alone; such an entry is about the link that has the name at present.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from enforcer.gateway.state import INDEX, UNDO
from enforcer.kernel import sysctl
from enforcer.kernel.links import Link

Entry = dict[str, str]
Links = Mapping[str, Link]


def setting(name: str, was: str, found: Links) -> Entry:
    """The entry of a sysctl; an interface's sysctl has the interface's index."""
    entry = {"kind": "sysctl", "name": name, "was": was}
    link = found.get(sysctl.interface_of(name) or "")
    return entry | {INDEX: str(link.index)} if link else entry


def done_to(kind: str, link: Link) -> Entry:
    """The entry of a change made to a link."""
    return {"kind": kind, "interface": link.name, INDEX: str(link.index)}


def of(entries: Iterable[Entry], kind: str, link: Link) -> list[Entry]:
    """The entries of this kind about this link."""
    return [
        entry
        for entry in entries
        if entry["kind"] == kind
        and (entry[INDEX] == str(link.index) if INDEX in entry else entry["interface"] == link.name)
    ]


def at_present(entries: Iterable[Entry], found: Links) -> list[Entry]:
    """The entries with the present names of their links, without those of removed links."""
    return _named(entries, found, found.keys())


def relisted(entries: Iterable[Entry], listed: Collection[str], found: Links) -> list[Entry]:
    """As :func:`at_present`, but unlisted links keep their noted name, which may be a listed name."""
    return _named(entries, found, listed)


def fresh(entries: Iterable[Entry], more: Iterable[Entry], found: Links) -> list[Entry]:
    """The entries of ``more`` that are not noted yet: the first noted value is the original one."""
    noted = [_what(entry) for entry in at_present(entries, found)]
    return [entry for entry in more if _what(entry) not in noted]


def sysctls(entries: Iterable[Entry], found: Links) -> list[Entry]:
    """The entries of sysctls with the present names of their links."""
    return [entry for entry in at_present(entries, found) if entry["kind"] == "sysctl"]


def noted_as(entries: Iterable[Entry], found: Links) -> tuple[tuple[str, str], ...]:
    """(present name, noted name) of links that were renamed after a sysctl of theirs was noted."""
    names = _names(found)
    noted = (entry for entry in entries if entry["kind"] == "sysctl" and entry.get(INDEX) in names)
    pairs = {(names[entry[INDEX]], sysctl.interface_of(entry["name"])) for entry in noted}
    return tuple(sorted((now, before) for now, before in pairs if before not in (None, now)))


def _names(found: Links) -> dict[str, str]:
    return {str(link.index): name for name, link in found.items()}


def _named(entries: Iterable[Entry], found: Links, chosen: Collection[str]) -> list[Entry]:
    """The entries without those of removed links; ``chosen`` links get their present names."""
    names, result = _names(found), []
    for entry in entries:
        if entry["kind"] not in UNDO or INDEX not in entry:
            result.append(entry)
        elif entry[INDEX] in names:
            name = names[entry[INDEX]]
            result.append(_under(entry, name) if name in chosen else entry)
    return result


def _under(entry: Entry, name: str) -> Entry:
    """The entry with another name of its link."""
    if entry["kind"] == "sysctl":
        return entry | {"name": sysctl.of_interface(entry["name"], name)}
    return entry | {"interface": name}


def _what(entry: Entry) -> Entry:
    """The entry without its value and index: what it is about."""
    return {key: value for key, value in entry.items() if key not in ("was", INDEX)}
