"""The exception classes of all errors that commands report.

Errors of libraries are mapped to these where they enter (BCC's bare ``Exception``, pyroute2's
``NetlinkError``, ``OSError`` of bpf(2)), so that a command shows one message that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

Thing = TypeVar("Thing")


class EnforcerError(Exception):
    """An error that a command reports; ``exit_code`` is the exit code of the process."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Fault:
    """One fault in a configuration file.

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
    """A configuration file has faults; all of them, in the file's order."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]):
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.line, fault.column)))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class UsageError(EnforcerError):
    """A command was called with wrong or inconsistent arguments."""

    exit_code = 2


class PrivilegeError(EnforcerError):
    """The process lacks a capability that the operation needs."""


class KernelError(EnforcerError):
    """The kernel refused an operation, or lacks a feature; the message names it."""


class LostPinError(KernelError):
    """A map or program in force is unreachable: its pin was removed or is in another file system."""


class BusyError(EnforcerError):
    """Another process holds what the operation needs: a lock, a queue's number, a filter's priority."""


class LockedError(EnforcerError):
    """Another process holds the change lock."""


class NotInstalledError(EnforcerError):
    """Nothing is enforced on this gateway."""


class SourceError(EnforcerError):
    """The installed C sources lack a definition that Python reads from them."""


class LayoutError(EnforcerError):
    """A pinned map does not have the layout that this version uses."""


class LaterVersionError(EnforcerError):
    """A later version wrote the gateway's state in a format that this version cannot read."""


class UntrustedError(EnforcerError):
    """Another user may have prepared a file or directory; it was neither used nor changed."""


def abridged(things: Collection[Thing], shown: int = 3, text: Callable[[Thing], object] = str) -> str:
    """The first ``shown`` things, each formatted by ``text``, and the number of further ones."""
    more = len(things) - shown
    return ", ".join(str(text(thing)) for thing in islice(things, shown)) + (
        f" and {more:,} more" if more > 0 else ""
    )
