"""What was applied to a gateway: the file that the daemon and the commands read.

It lies on tmpfs beside the locks, so it ends with the kernel state that it describes. Egress IPs keep
their slot and policies their id over reloads, also after they left the file: live flows refer to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from enforcer import trust
from enforcer.datapath.programs import IN_FORCE
from enforcer.errors import KernelError, PrivilegeError
from enforcer.policy.rules import MAX_POLICIES
from enforcer.trust import NotRegularError

FORMAT = 1
_LARGEST = 1 << 28
LAST_SLOT = 16383
LAST_POLICY = MAX_POLICIES
LOST = {"kind": "lost"}
"""In the undo list: what came before it was in a state file that is lost."""


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

    def other_side(self) -> dict[str, Any]:
        """This state as the other side of a plan."""
        return {name: getattr(self, name) for name in OTHER_SIDE}

    def save(self, path: Path) -> None:
        """Writes the file as a whole or not at all."""
        new = path.with_suffix(".new")
        # Written at every switch: neither copied before (asdict) nor indented.
        new.write_text(json.dumps(vars(self), sort_keys=True))
        new.rename(path)

    @classmethod
    def load(cls, path: Path) -> State | None:
        """The state, or None if there is none (or none that this version can read)."""
        try:
            # Not strict: Instance.directory has been checked.
            content = json.loads(trust.read_file(path, _LARGEST, strict=False))
        except (FileNotFoundError, NotRegularError, ValueError):
            return None  # a pipe or a device, which would be waited for, is as good as lost
        except PermissionError as error:
            raise PrivilegeError(f"cannot read {path}", "Run as root.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_sound(content):
            return None
        if content.get("layout"):
            content.setdefault("maps", f"maps-{content['layout'][:16]}")  # as earlier versions named it
        known = {field.name for field in fields(cls)}  # an earlier version had others
        return cls(**{name: value for name, value in content.items() if name in known})


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
