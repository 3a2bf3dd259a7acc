"""The state file: what was applied to a gateway, for the daemon and the commands.

It is on tmpfs beside the locks, so it disappears at a reboot with the kernel state that it describes. Egress
IPs keep their slot and policies their id across reloads, also after the file names them no more: live flows
refer to them.
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
"""Entry of the undo list: the earlier entries were lost with their state file."""


UNDO: Mapping[str, tuple[str, ...]] = {
    "sysctl": ("name", "was"),
    "clsact": ("interface",),
    "allmulti": ("interface",),
    "lost": (),
}
"""The kinds of undo entries and the keys of each."""
INDEX = "index"
"""Additional key of entries about a link: its index; earlier versions noted the name alone."""
OTHER_SIDE = ("config", "slots", "layout", "layouts", "maps")
"""The fields of the other state that :attr:`State.half_done` keeps, to remove what is installed of it."""


@dataclass
class State:
    """The content of the state file, as JSON values."""

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
    """Digest of the inputs of the policy bank in force."""
    loaded: str = IN_FORCE
    """Where the programs in force are pinned (enforcer/datapath/programs.py, Pins)."""
    maps: str = ""
    """Where the maps in force are pinned."""
    program_ids: dict[str, int] = field(default_factory=dict)
    """Kernel ids of the programs in force; they identify the programs while the pins are unreachable."""
    layouts: dict[str, Any] = field(default_factory=dict)
    """BCC's descriptions of the maps (enforcer/datapath/layout.py)."""
    undo: list[dict[str, str]] = field(default_factory=list)
    """The changes that `down` reverts, oldest first."""
    half_done: dict[str, Any] | None = None
    """The plan under way or interrupted: since, pid, operations, and its other side (OTHER_SIDE): the state
    to put in force, or after the switch the former one."""
    format: int = FORMAT
    """The format in which the file was read; :meth:`save` writes this version's format."""

    @property
    def foreign(self) -> list[str]:
        """Unknown kinds in the undo list, noted by a later version."""
        return sorted({entry["kind"] for entry in self.undo} - UNDO.keys())

    def other_side(self) -> dict[str, Any]:
        """This state's fields OTHER_SIDE."""
        return {name: getattr(self, name) for name in OTHER_SIDE}

    def save(self, path: Path) -> None:
        """Replaces the file atomically."""
        new = path.with_suffix(".new")
        # Written at every switch: not copied first (asdict) and not indented, for speed.
        new.write_text(json.dumps({**vars(self), "format": FORMAT}, sort_keys=True))
        new.rename(path)

    @classmethod
    def load(cls, path: Path) -> State | None:
        """The state, or None if the file is missing or malformed.

        Unknown keys are ignored. Raises LaterVersionError if a later version wrote another format.
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
            content.setdefault("maps", f"maps-{content['layout'][:16]}")  # the name in earlier versions
        known = {field.name for field in fields(cls)}  # other versions write other keys
        state = cls(**{name: value for name, value in content.items() if name in known})
        state.undo = [entry for entry in state.undo if _is_entry(entry)]
        if state.half_done is not None:
            unsaid = {"since": 0.0, "pid": 0, "operations": [], **cls().other_side()}
            state.half_done = unsaid | state.half_done
        return state


def salvage(path: Path) -> None:
    """Replaces a later version's file by the parts that `down` can use.

    These are the original sysctls and the ids of the programs.
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
    """The parsed file; empty if it is missing, not a regular file, or not a JSON object."""
    try:
        # strict=False: Instance.directory has been checked.
        content = json.loads(trust.read_file(path, _LARGEST, strict=False))
    except (FileNotFoundError, NotRegularError, ValueError, RecursionError):
        return {}  # a pipe or device, which would block, counts as lost
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
    """Whether an undo entry has the keys of its kind; entries of unknown kinds pass."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    if entry["kind"] not in UNDO:
        return True
    said = [*map(entry.get, UNDO[entry["kind"]]), entry.get(INDEX, "")]
    return all(isinstance(value, str) for value in said)


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether each field has its type; a file written by something else counts as lost."""
    for name, default in vars(State()).items():
        value = content.get(name, default)
        kind = (int, float) if isinstance(default, float) else dict if default is None else type(default)
        if value is not default and not isinstance(value, kind):
            return False
    return True


def lost_state(path: Path) -> KernelError:
    """The error for a gateway that is in force without its state file."""
    return KernelError(
        f"the gateway is enforced, but its state file is lost or unreadable: {path}",
        "A running daemon writes it again within seconds, see its log; else start it: enforcer run",
    )


def assign(names: Iterable[str], known: dict[str, int], last: int) -> dict[str, int]:
    """Assigns numbers from 1 to ``last``: known names keep theirs, new names get unused ones.

    When all are used, numbers of removed names are reused, lowest first. The result includes removed names
    that keep a number. Raises ValueError if there are more than ``last`` names.
    """
    wanted = list(names)
    if len(wanted) > last:
        raise ValueError(f"{len(wanted)} names, but only {last} numbers")
    # After a change of mark_mask a known number may exceed the mask.
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
