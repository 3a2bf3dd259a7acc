"""Invalidates the fast-path entries for the command `enforcer relearn`."""

from __future__ import annotations

from enforcer.datapath import fast_entries, fast_path
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance, not_installed


def invalidate_entries(instance: Instance) -> int | None:
    """Invalidates all fast-path entries; returns the number of flows that had some, None if the path is off.

    The daemon does the same after kernel events. Raises NotInstalledError.
    """
    if not instance.state_file.exists():
        raise not_installed()  # before a lock file is created
    with instance.change_lock(), Gateway(instance).maps() as maps:
        flows = fast_entries.count_fast(maps)
        return flows if fast_path.invalidate(maps) else None
