"""The one tree of errors that a user can meet.

Errors of lower libraries are mapped to these at the border (BCC's bare ``Exception``, pyroute2's
``NetlinkError``, ``OSError`` of bpf(2)), so that a command shows one message which says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

Thing = TypeVar("Thing")


class EnforcerError(Exception):
    """Anything that a command reports and exits for; ``exit_code`` is the process's."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a configuration file.

    ``line`` and ``column`` count from 1; ``line`` 0 is the file as a whole.
    """

    file: str
    line: int
    message: str
    column: int = 0

    def __str__(self) -> str:
        where = (
            self.file + (f":{self.line}" if self.line else "") + (f":{self.column}" if self.column else "")
        )
        return f"{where}: {self.message}"


class ConfigError(EnforcerError):
    """The configuration file is wrong; every fault found, in the order of the file."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]):
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.line, fault.column)))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class UsageError(EnforcerError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class PrivilegeError(EnforcerError):
    """The caller lacks a capability that the operation needs."""


class KernelError(EnforcerError):
    """The kernel refused an operation, or lacks a feature; the message names it."""


class LostPinError(KernelError):
    """A map or program in force cannot be reached: its pin was removed, or is in another file system."""


class BusyError(EnforcerError):
    """Another process is this gateway's daemon, or changes the gateway just now."""


class LockedError(EnforcerError):
    """Another process changes the gateway at this moment."""


class NotInstalledError(EnforcerError):
    """Nothing is enforced on this gateway (no state to show or take away)."""


class SourceError(EnforcerError):
    """The installed C sources lack a definition that Python reads from them."""


class LayoutError(EnforcerError):
    """Pinned maps are not of the layout that this version of the program uses."""


class LaterVersionError(EnforcerError):
    """The gateway's state was written by a later version, in a way that this one cannot read."""


class UntrustedError(EnforcerError):
    """A file or directory that another user may have prepared; nothing of it was used or changed."""


def abridged(things: Collection[Thing], shown: int = 3, text: Callable[[Thing], object] = str) -> str:
    """The first ``shown`` of some things, each as ``text`` gives it, and how many more there are."""
    more = len(things) - shown
    return ", ".join(str(text(thing)) for thing in islice(things, shown)) + (
        f" and {more:,} more" if more > 0 else ""
    )
