"""Builds descriptions of interfaces for tests without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enforcer.kernel.links import Link


def some_links(*plain: str, **others: Mapping[str, Any]) -> dict[str, Link]:
    """Ethernet interfaces that are up, by name; ``others`` have fields that differ."""
    usual = {"header": 14, "up": True, "mtu": 1500, "allmulti": False, "addresses": ()}
    fields: dict[str, Mapping[str, Any]] = {name: {} for name in plain} | others
    return {
        name: Link(**{"name": name, "index": index, **usual, **changed})
        for index, (name, changed) in enumerate(fields.items(), 1)
    }
