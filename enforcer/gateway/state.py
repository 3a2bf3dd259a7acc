"""What was applied to a gateway: the file that the daemon and the commands read.

It lies on tmpfs beside the locks, so it ends with the kernel state that it describes. Egress IPs keep
their slot and policies their id over reloads, also after they left the file: live flows refer to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from enforcer.constants.bpf import SLOTS
from enforcer.control.worker import STATE_FORMAT
from enforcer.datapath.programs import IN_FORCE
from enforcer.errors import KernelError, LaterVersionError, PrivilegeError
from enforcer.instance import trust
from enforcer.instance.trust import NotRegularError
from enforcer.policy.rules import MAX_POLICIES

FORMAT = STATE_FORMAT
_READABLE = (1, FORMAT)
_LARGEST = 1 << 28
LAST_SLOT = SLOTS - 1
LAST_POLICY = MAX_POLICIES
LOST = {"kind": "lost"}
"""In the undo list: what came before it was in a state file that is lost."""


UNDO: Mapping[str, tuple[str, ...]] = {
    "sysctl": ("name", "was"),
    "clsact": ("interface",),
    "allmulti": ("interface",),
    "lost": (),
}
"""The kinds of entries in the undo list, and what each of them says."""
INDEX = "index"
"""What an entry about a link says besides; earlier versions noted its name alone."""
OTHER_SIDE = ("config", "slots", "layout", "layouts", "maps")
"""What :attr:`State.half_done` has of the other state, to take away what is there of it."""


@dataclass
class State:
    """The state file's content; JSON values throughout."""

    version: str = ""
    since: float = 0.0
    applied: float = 0.0
    config_file: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    layout: str = ""
    """Digest of the maps' definition and sizes."""
    programs: str = ""
    """Digest of the loaded programs' sources."""
    tables: str = ""
    """Digest of what the policy bank in force was made from."""
    loaded: str = IN_FORCE
    """Where the programs in force are pinned (enforcer/datapath/programs.py, Pins)."""
    maps: str = ""
    """Where the maps in force are pinned."""
    program_ids: dict[str, int] = field(default_factory=dict)
    """The kernel's ids of the programs in force: by them they are known when their pins are out of reach."""
    layouts: dict[str, Any] = field(default_factory=dict)
    """BCC's descriptions of the maps (enforcer/datapath/layout.py)."""
    undo: list[dict[str, str]] = field(default_factory=list)
    """What `down` puts back, oldest first."""
    half_done: dict[str, Any] | None = None
    """The plan that is under way or was not completed: since when, by which process, its operations, and the
    other side of it (OTHER_SIDE): what it is about to put in force, then what was in force before."""
    format: int = FORMAT
    """What the file was read as; it is written in this version's."""

    @property
    def foreign(self) -> list[str]:
        """Kinds in the undo list that this version does not know: a later one noted what it changed."""
        return sorted({entry["kind"] for entry in self.undo} - UNDO.keys())

    def other_side(self) -> dict[str, Any]:
        """This state as the other side of a plan."""
        return {name: getattr(self, name) for name in OTHER_SIDE}

    def save(self, path: Path) -> None:
        """Writes the file as a whole or not at all."""
        new = path.with_suffix(".new")
        # Written at every switch: neither copied before (asdict) nor indented.
        new.write_text(json.dumps({**vars(self), "format": FORMAT}, sort_keys=True))
        new.rename(path)

    @classmethod
    def load(cls, path: Path) -> State | None:
        """The state, or None if there is none, or what is there is none.

        What other versions of this format have besides is passed over. Raises LaterVersionError if a later
        version has written another format.
        """
        content = _content(path)
        if _is_later(content):
            raise LaterVersionError(
                f"this gateway's state was written by a later version of the enforcer ({_version(content)}): "
                f"{path} is of format {content['format']}, this version reads format {FORMAT}",
                "Use that version. Or begin again with this one: enforcer down, then enforcer run",
            )
        if content.get("format") not in _READABLE or not _is_sound(content):
            return None
        if content.get("layout"):
            content.setdefault("maps", f"maps-{content['layout'][:16]}")  # as earlier versions named it
        known = {field.name for field in fields(cls)}  # other versions have others
        state = cls(**{name: value for name, value in content.items() if name in known})
        state.undo = [entry for entry in state.undo if _is_entry(entry)]
        if state.half_done is not None:
            unsaid = {"since": 0.0, "pid": 0, "operations": [], **cls().other_side()}
            state.half_done = unsaid | state.half_done
        return state


def salvage(path: Path) -> None:
    """Puts in the place of a later version's file what `down` can use of it, whatever its format means.

    That is how the kernel's settings were before, and by which ids programs are known.
    """
    content = _content(path)
    if not _is_later(content):
        return
    known = {field.name for field in fields(State)}
    kept = {
        name: value
        for name, value in content.items()
        if name in known - {"format", "config", "half_done"} and _is_sound({name: value})
    }
    kept["undo"] = [entry for entry in kept.get("undo", ()) if _is_entry(entry)]
    State(**kept).save(path)


def _content(path: Path) -> dict[str, Any]:
    """What the file says; nothing where there is none, or one that something else wrote."""
    try:
        # Not strict: Instance.directory has been checked.
        content = json.loads(trust.read_file(path, _LARGEST, strict=False))
    except (FileNotFoundError, NotRegularError, ValueError, RecursionError):
        return {}  # a pipe or a device, which would be waited for, is as good as lost
    except PermissionError as error:
        raise PrivilegeError(f"cannot read {path}", "Run as root.") from error
    return content if isinstance(content, dict) else {}


def _is_later(content: Mapping[str, Any]) -> bool:
    found = content.get("format")
    return isinstance(found, int) and found > FORMAT


def _version(content: Mapping[str, Any]) -> str:
    found = content.get("version")
    return found if isinstance(found, str) and found else "unknown"


def _is_entry(entry: Any) -> bool:
    """Whether an entry of the undo list says what its kind says, as far as the kind is known."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    if entry["kind"] not in UNDO:
        return True
    said = [*map(entry.get, UNDO[entry["kind"]]), entry.get(INDEX, "")]
    return all(isinstance(value, str) for value in said)


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether each field is of its type: a file that something else wrote is as good as lost."""
    for name, default in vars(State()).items():
        value = content.get(name, default)
        kind = (int, float) if isinstance(default, float) else dict if default is None else type(default)
        if value is not default and not isinstance(value, kind):
            return False
    return True


def lost_state(path: Path) -> KernelError:
    """The error of commands that find a gateway in force without its state."""
    return KernelError(
        f"the gateway is enforced, but its state file is lost or unreadable: {path}",
        "A running daemon writes it again within seconds, see its log; else start it: enforcer run",
    )


def assign(names: Iterable[str], known: dict[str, int], last: int) -> dict[str, int]:
    """Numbers from 1 to ``last`` for the names: known ones keep theirs, new ones get one never used.

    When all are used up, numbers of names that are gone are used again. The result has all names ever
    known that still have a number. Raises ValueError if there are more than ``last`` names.
    """
    wanted = list(names)
    if len(wanted) > last:
        raise ValueError(f"{len(wanted)} names, but only {last} numbers")
    # After a change of mark_mask a known number may be too large to be told from another one's.
    numbers = {name: number for name, number in known.items() if number <= last}
    gone = sorted(set(numbers) - set(wanted), key=numbers.__getitem__)
    unused = iter(sorted(set(range(1, last + 1)) - set(numbers.values())))
    for name in wanted:
        if name in numbers:
            continue
        number = next(unused, None)
        if number is None:
            number = numbers.pop(gone.pop(0))
        numbers[name] = number
    return numbers
