"""Removes everything that was ever installed; ends the daemon first."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any

from enforcer.datapath import sweep
from enforcer.errors import BusyError, EnforcerError, KernelError, PrivilegeError
from enforcer.gateway import attach, availability, repin, undo_list
from enforcer.gateway.desired import Desired
from enforcer.gateway.installed import Installed
from enforcer.gateway.nat_connections import clients, delete_matching, is_translated_to
from enforcer.gateway.state import LOST, State
from enforcer.instance import Instance
from enforcer.kernel import addresses, conntrack, filters, links, nft, sysctl

DAEMON_PATIENCE = 15.0
"""Seconds that a daemon gets to complete the work under way."""
KILLED_PATIENCE = 5.0


def tear_down(instance: Instance) -> list[str]:
    """Ends the daemon, if one runs, and removes everything; returns what was done.

    A daemon that does not end and a hung process that holds the change lock are killed.
    """
    done = []
    pid = instance.daemon_pid()
    if pid is not None:
        _end(instance, pid)
        done.append(f"ended the daemon (pid {pid})")
    with instance.change_lock(kill=True):
        return done + remove_everything(Installed(instance))


def _end(instance: Instance, pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise PrivilegeError(f"cannot end the daemon (pid {pid})", "Run as root.") from error
    except ProcessLookupError:
        return
    for patience, act in ((DAEMON_PATIENCE, instance.kill_daemon), (KILLED_PATIENCE, None)):
        deadline = time.monotonic() + patience
        while instance.daemon_pid() is not None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
        if act is not None:
            act()
    raise BusyError(
        f"the daemon (pid {pid}) does not end, although it was killed", "See `ps`, then try again."
    )


def remove_everything(installed: Installed) -> list[str]:
    """Removes everything that was ever installed; returns what was done.

    Continues after failures and raises them as one error at the end.
    """
    done: list[str] = []
    failures: list[EnforcerError] = []
    state = installed.state or State()
    ours = _own_addresses(installed)
    if installed.state is not None:
        what = state.half_done or {"since": time.time(), **State().other_side()}
        state.half_done = what | {"pid": os.getpid(), "operations": ["remove everything"]}
        state.save(installed.instance.state_file)

    def step(what: str, act: Any) -> None:
        try:
            if act():
                done.append(what)
        except EnforcerError as error:
            failures.append(error)
        except OSError as error:
            failures.append(KernelError(f"{what}: {error}"))

    # Forwarding first: where it was off before, nothing is forwarded unfiltered by the next steps.
    found = links.links()
    for entry in reversed(undo_list.sysctls(state.undo, found)):
        step(f"{entry['name'].replace('/', '.')} = {entry['was']}", lambda entry=entry: _put_back(entry))
    for name, link in found.items():
        for direction in ("ingress", "egress"):
            step(
                f"detached from {name} {direction}",
                lambda index=link.index, direction=direction: attach.detach(installed.pins, index, direction),
            )
        if undo_list.of(state.undo, "clsact", link):
            step(f"removed clsact from {name}", lambda index=link.index: filters.remove_clsact(index))
        if undo_list.of(state.undo, "allmulti", link):
            step(f"unset allmulti on {name}", lambda name=name: links.set_allmulti(name, False))
    step("detached programs whose pins were out of reach", lambda: repin.detach_unreachable(installed))
    step("removed addresses", lambda: addresses.remove(addresses.held(ours=True)))
    step("removed local ranges", lambda: addresses.remove_ranges(addresses.ranges(ours=True)))
    # The table comes after the addresses: it keeps the gateway's own services unreachable at them.
    step("removed nftables table inet enforcer", nft.remove)
    step("forgot translated connections", lambda: _delete_connections(installed, ours))
    if installed.pins is not None:
        step("removed programs and maps", installed.pins.remove)
    if LOST in state.undo or (installed.state is None and done):
        done.append(
            "left: kernel settings (forwarding, too), clsact qdiscs and allmulti as the enforcer set "
            "them; how they were before was in a state file that is lost"
        )
    if failures:
        # The state file stays for another attempt.
        raise _together(done, failures)
    installed.instance.remove()
    installed.state = None
    return done


def _known(installed: Installed) -> list[Desired]:
    """The desired state in force and that of an interrupted plan's other side."""
    return [each for each in (installed.previous, installed.unfinished) if each is not None]


def _delete_connections(installed: Installed, ours: list[availability.AddressSet]) -> int:
    """Ends clients' connections, not those that other software translates to the shared address."""
    known = _known(installed)
    shared = [each.shared for each in known]

    def chosen(entry: conntrack.Entry) -> bool:
        return any(is_translated_to(entry, some) for some in ours)

    if installed.pins is None or installed.state is None:
        return delete_matching(chosen, clients(shared, (), known, None))
    with installed.maps() as maps:
        flows: set[conntrack.Tuple] = set()
        with suppress(EnforcerError):  # the map is lost: routes decide
            keys = sweep.flows_of(maps.flows, {each.slot for each in shared})
            flows = {conntrack.Tuple.of(key) for key in keys}
        return delete_matching(chosen, clients(shared, flows, known, maps))


def _own_addresses(installed: Installed) -> list[availability.AddressSet]:
    """The addresses that connections were translated to; without a state file, those that we added."""
    known = _known(installed)
    if known:
        return [availability.AddressSet(each.ours, each) for each in known]
    held = [interface.ip for _, interface in addresses.held(ours=True)]
    return [availability.AddressSet.of(held, addresses.ranges(ours=True))]


def _put_back(entry: dict[str, str]) -> bool:
    if sysctl.found([entry["name"]]).get(entry["name"], entry["was"]) == entry["was"]:
        return False
    sysctl.write(entry["name"], entry["was"])
    return True


def _together(done: list[str], failures: list[EnforcerError]) -> EnforcerError:
    """One error for several failures; its message lists what was done too."""
    first = failures[0]
    messages = [*done, *(f"not done: {failure.message}" for failure in failures)]
    error = type(first) if isinstance(first, PrivilegeError) else KernelError
    return error("not everything could be removed\n" + "\n".join(messages), first.hint)
