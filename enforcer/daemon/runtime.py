"""The gateway in force, as the daemon holds it: state, maps, pins, facts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enforcer.daemon.session_manager import SessionManager
from enforcer.datapath import bpffs
from enforcer.datapath.held_pins import HeldObjects, HeldPins
from enforcer.datapath.maps import Maps
from enforcer.errors import ConfigError, EnforcerError, KernelError, abridged
from enforcer.facts.kernel_facts import KernelFacts, refill
from enforcer.facts.store import Store
from enforcer.gateway.desired import Desired
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.state import State
from enforcer.instance import Instance, not_installed

_log = logging.getLogger(__name__)

# Seconds after which a mount that was refused is tried again.
_MOUNT_AGAIN = 60.0
# Seconds for which the loop waits for the change lock.
_LOCK_PATIENCE = 0.2


class Runtime:
    """State, maps, pins and facts of the gateway in force. Raises EnforcerError; the owner closes it."""

    gateway: Gateway
    wanted: Desired
    maps: Maps
    tables: KernelFacts
    sessions: SessionManager
    pins: HeldPins
    _recorded: tuple[int, ...]

    def __init__(self, instance: Instance):
        self.instance = instance
        self.store = Store(instance.facts_file)
        self._held = HeldObjects()
        self._mount_after = 0.0
        try:
            self._use(*self._found())
            self.mend()
        except BaseException:
            self.store.close()
            raise

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration in force, in its JSON form."""
        return self.gateway.state.config if self.gateway.state else {}

    @property
    def session_file(self) -> Path | None:
        """The session file that the configuration names."""
        return _path(self.config.get("sessions", {}).get("file"))

    @property
    def database(self) -> Path | None:
        """The GeoIP database that the configuration names."""
        return _path(self.config.get("geoip", {}).get("database"))

    @property
    def half_done(self) -> bool:
        """Whether a process left a plan incomplete, so that the configuration in force must be restored."""
        state = State.load(self.instance.state_file)
        return state is not None and state.half_done is not None

    def activate(self) -> None:
        """Reads what another process has put in force. After an error nothing has changed here."""
        gateway, wanted, maps = self._found()
        if self.maps.sessions.info.id != maps.sessions.info.id or self.store.undone:
            # Facts that changed since the other process filled these maps are in the former maps only.
            with self.store.transaction():
                refill(maps, self.store)
            self.store.undone = 0
        before = self.maps
        self._use(gateway, wanted, maps)
        before.close()

    def after(self, error: EnforcerError) -> None:
        """Corrects the maps after a process that loads sessions failed; a ConfigError has changed nothing."""
        if error.exit_code != ConfigError.exit_code:
            self.mend()

    def mend(self) -> None:
        """Writes the store's facts into the maps: a process may have ended between writing the two."""
        with self.store.transaction():
            refill(self.maps, self.store)

    def close(self) -> None:
        """Closes the store and the descriptors of pinned objects."""
        self.store.close()
        self._held.close()

    def restore(self) -> None:
        """Restores the state file, the facts and the pins, by which other processes find the gateway.

        The daemon holds the objects themselves, so enforcement continues meanwhile. Not to be called while a
        process changes the gateway. Raises EnforcerError: then a later call has to restore the rest.
        """
        recorded = _identity(self.instance.state_file)
        if recorded != self._recorded:
            with self.instance.change_lock(_LOCK_PATIENCE):
                if self.gateway.state is not None and State.load(self.instance.state_file) is None:
                    self.gateway.save(self.gateway.state)
                    _log.warning("restored: the state file")
            self._recorded = recorded
        if self.store.restore():
            _log.warning("restored: the facts")
        self._mend_pins()

    def _mend_pins(self) -> None:
        """Pins objects again whose pin is gone, in the BPF file system that is mounted now."""
        mount = bpffs.find_bpffs() or self._mount()
        pins = self.gateway.pins_at(mount)
        if pins.directory != self.pins.directory:
            _log.warning(f"the pins are in another BPF file system now: {mount}")
            self.pins = self.gateway.pins = HeldPins(pins.directory, pins.loaded, pins.shared, self._held)
            self.maps.directory = pins.maps
        mended = self.pins.repin()
        if mended:
            _log.warning(f"restored: the pins {abridged(mended)}")

    def hold(self) -> None:
        """Opens the objects that are pinned now, after the daemon itself has attached programs."""
        self.pins.hold()

    def _mount(self) -> Path:
        """Mounts a BPF file system, with one attempt in _MOUNT_AGAIN seconds."""
        now = time.monotonic()
        if now >= self._mount_after:
            self._mount_after = now + _MOUNT_AGAIN
            try:
                return bpffs.mount_bpffs()
            except KernelError as error:
                self._refusal = error
        raise KernelError(
            "no BPF file system is mounted: enforcement depends on this daemon until one is",
            self._refusal.hint,
        )

    def _found(self) -> tuple[Gateway, Desired, Maps]:
        gateway = Gateway(self.instance)
        wanted = gateway.previous
        if wanted is None:
            raise not_installed()
        return gateway, wanted, gateway.maps()

    def _use(self, gateway: Gateway, wanted: Desired, maps: Maps) -> None:
        assert gateway.pins is not None and gateway.state is not None  # or there would be no maps
        for name in maps.names():
            getattr(maps, name)  # opens it, so that its path is not needed later
        pins = HeldPins(gateway.pins.directory, gateway.pins.loaded, gateway.pins.shared, self._held)
        pins.hold()
        self.pins = gateway.pins = pins
        self._recorded = _identity(self.instance.state_file)
        self.gateway, self.wanted, self.maps = gateway, wanted, maps
        self.tables = KernelFacts(maps, self.store)
        self.sessions = SessionManager(self.store, self.tables, maps)


def _identity(file: Path) -> tuple[int, ...]:
    """(inode, change time in ns, size), different for a replaced or rewritten file; empty without a file."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
