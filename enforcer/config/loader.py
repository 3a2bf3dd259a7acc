"""From a file to a :class:`Configuration`, or to all that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from enforcer.config import checks, document
from enforcer.config.draft import draft
from enforcer.config.models import Configuration
from enforcer.errors import ConfigError, Fault
from enforcer.kernel.links import Link
from enforcer.policy.rules import TooManyRulesError


def load(path: Path, *, interfaces: Mapping[str, Link] | None = None, strict: bool = False) -> Configuration:
    """Read and check a configuration file; ConfigError with every fault in it.

    ``interfaces`` are those that exist, by name; None leaves them unchecked. ``strict`` is that of
    enforcer/instance/trust.py, for a file that is to be applied.
    """
    found = draft(document.read(path, strict=strict), str(path))
    checks.check(found, interfaces)
    if found.faults:
        raise ConfigError(found.faults)
    configuration = Configuration(**found.values)
    try:
        warnings = list(checks.warnings(found, configuration))
    except TooManyRulesError as error:
        position = found.document.key_position(("policies",))
        raise ConfigError([Fault(str(path), position.line, f"policies: {error}", position.column)]) from None
    notes = [(found.document.key_position(way), message) for way, message in warnings]
    configuration._warnings = tuple(Fault(str(path), at.line, message, at.column) for at, message in notes)
    return configuration
