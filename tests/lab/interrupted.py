"""A module that tests copy into the package: it ends or stops the applying process before one of its effects.

The file ``interrupt`` beside the copied package holds the number of that effect and the signal. The module
deletes the file before it sends the signal, so the next process runs undisturbed. ``effects`` lists what
the last process has reached.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enforcer.datapath import carry, fast_path, programs
from enforcer.datapath.maps import Map
from enforcer.datapath.programs import Pins
from enforcer.facts.store import Transaction
from enforcer.gateway import applier, attach, availability
from enforcer.gateway.state import State
from enforcer.kernel import addresses, announce, conntrack, links, nft, sysctl

PLACE = Path(__file__).parent.parent
AT_ONCE = -1
"""A value in place of an effect's number: before the process reads anything."""
EFFECTS: tuple[tuple[Any, str], ...] = (
    (State, "save"),
    (nft, "apply"),
    *((addresses, name) for name in ("add", "add_ranges", "remove", "remove_ranges")),
    (announce, "announce"),
    (programs, "load"),
    *((carry, name) for name in ("carry_over", "catch_up")),
    (Pins, "remove_others"),
    (availability, "refresh"),
    (fast_path, "set_enabled"),
    (Map, "put"),
    (Transaction, "finish"),
    *((attach, name) for name in ("attach", "detach")),
    (links, "set_allmulti"),
    (sysctl, "write"),
    (conntrack, "delete"),
)
_done: list[str] = []


def install() -> None:
    """Wrap the effects; to call before the process does anything."""
    assert applier.nft is nft
    (PLACE / "effects").unlink(missing_ok=True)
    for owner, name in EFFECTS:
        setattr(owner, name, _interrupted(getattr(owner, name), name))
    _interrupt(AT_ONCE)


def _interrupted(act: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(act)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        # Of the writes to maps, only the one to `settings` counts: it puts policies in force.
        if name != "put" or arguments[0].name == "settings":
            _reach(name)
        return act(*arguments, **options)

    return wrapped


def _interrupt(reached: int) -> None:
    wanted = PLACE / "interrupt"
    if wanted.exists():
        number, what = wanted.read_text().split()
        if reached == int(number):
            wanted.unlink()
            os.kill(os.getpid(), getattr(signal, what))


def _reach(name: str) -> None:
    _interrupt(len(_done))
    _done.append(name)
    (PLACE / "effects").write_text("\n".join(_done))
