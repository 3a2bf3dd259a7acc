"""Imports the BCC package that this package hides."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parents[1]


@functools.cache
def bcc() -> Any:
    """BCC, imported at the first call: a process that only replays saves the compiler's memory and time."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "bcc"}
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != _HERE]
    try:
        found = importlib.import_module("bcc")
    finally:
        sys.path[:] = path
        sys.modules.update(ours)
    return found
