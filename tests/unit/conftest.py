"""Fails unit tests that make or enter a network namespace: `make test-unit` must run without one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_MAKES_ONE = re.compile(r"\b(unshare|nsenter)\b|\bip\b.* (-batch|netns (add|exec))\b")
_NAMED = re.compile(r"(/var)?/run/netns/|/proc/[^/]+/ns/net$")
_seen: list[str] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        line = arguments[1] if isinstance(arguments[1], str) else " ".join(map(os.fsdecode, arguments[1]))
        if _MAKES_ONE.search(line):
            _seen.append(line)
    elif event == "open" and _NAMED.match(str(arguments[0])) and Path(arguments[0]).exists():
        _seen.append(arguments[0])


sys.addaudithook(_listen)


@pytest.fixture(autouse=True)
def no_namespace() -> Iterator[None]:
    """Fails a test that makes or enters a network namespace."""
    _seen.clear()
    yield
    assert not _seen, f"in a network namespace, so of tests/kernel or tests/lab: {_seen}"
