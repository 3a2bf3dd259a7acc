"""Forgetting by hand what the fast path has learnt."""

from __future__ import annotations

from enforcer.datapath import fast_entries, fast_path
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance, not_installed


def invalidate_entries(instance: Instance) -> int | None:
    """Invalidates all fast-path entries; returns how many flows were on the fast path, or None if it is off.

    The daemon does the same at events, and needn't be asked. Raises NotInstalledError.
    """
    if not instance.state_file.exists():
        raise not_installed()  # and no lock is made for what isn't there
    with instance.change_lock(), Gateway(instance).maps() as maps:
        flows = fast_entries.count_fast(maps)
        return flows if fast_path.invalidate(maps) else None
