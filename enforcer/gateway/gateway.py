"""The façade of one gateway's kernel state: read it, apply a plan, remove everything.

All calls act in the network namespace of the calling process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from enforcer.gateway import (
    applier,
    read_actual,
    teardown,
)
from enforcer.gateway.actual import Actual
from enforcer.gateway.desired import Desired
from enforcer.gateway.installed import Installed
from enforcer.gateway.operations import (
    Operation,
)
from enforcer.gateway.state import State

if TYPE_CHECKING:
    from enforcer.gateway.bank_switch import BankContents


class Gateway(Installed):
    """The installed gateway and the operations on it."""

    def actual(self, wanted: Desired, *, upgrade: bool = True) -> Actual:
        """Reads the kernel's state, see :func:`enforcer.gateway.read_actual.read_actual`."""
        return read_actual.read_actual(self, wanted, upgrade=upgrade)

    def hooked(self, wanted: Desired) -> bool:
        """Whether the pinned programs are attached to the interfaces that exist."""
        return read_actual.is_hooked(self, wanted)

    def apply(
        self,
        operations: Iterable[Operation],
        wanted: Desired,
        contents: BankContents | None,
        state: State,
        *,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Executes a plan, see :func:`enforcer.gateway.applier.apply`."""
        applier.apply(self, operations, wanted, contents, state, progress=progress)

    def down(self) -> list[str]:
        """Removes everything that was ever installed; returns what was done. Raises EnforcerError."""
        return teardown.remove_everything(self)
