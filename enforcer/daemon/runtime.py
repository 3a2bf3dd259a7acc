"""What is enforced just now, as the daemon knows it: taken up at the start and after each reload."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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

# A mount that was refused is tried again after so many seconds.
_PATIENCE = 60.0
# Seconds that the loop waits for a process that is changing the gateway.
_LOCK_PATIENCE = 0.2


class Runtime:
    """The gateway's state, its maps and its facts. Raises EnforcerError; closed with :meth:`close`."""

    gateway: Gateway
    wanted: Desired
    maps: Maps
    tables: KernelFacts
    sessions: SessionManager
    pins: HeldPins
    _recorded: tuple[int, ...]

    def __init__(self, instance: Instance, say: Callable[[str], None]):
        self.instance = instance
        self.store = Store(instance.facts_file)
        self._held = HeldObjects()
        self._mount_after = 0.0
        self._say = say
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
        """The database of places that the configuration names."""
        return _path(self.config.get("geoip", {}).get("database"))

    @property
    def half_done(self) -> bool:
        """Whether a plan was not completed: what is in force is to be put back."""
        state = State.load(self.instance.state_file)
        return state is not None and state.half_done is not None

    def activate(self) -> None:
        """What another process has put in force. After an error all is as before, for another try."""
        gateway, wanted, maps = self._found()
        if self.maps.sessions.info.id != maps.sessions.info.id or self.store.undone:
            # Other maps: what changed between their filling and now is in the old ones.
            with self.store.change():
                refill(maps, self.store)
            self.store.undone = 0
        before = self.maps
        self._use(gateway, wanted, maps)
        before.close()

    def after(self, error: EnforcerError) -> None:
        """A process that loaded sessions failed; a file that is wrong has changed nothing."""
        if error.exit_code != ConfigError.exit_code:
            self.mend()

    def mend(self) -> None:
        """Makes the maps what the store says: a process may have ended between writing these and it."""
        with self.store.change():
            refill(self.maps, self.store)

    def close(self) -> None:
        """Ends the connection to the store, and holds no pinned object any more."""
        self.store.close()
        self._held.close()

    def restore(self) -> None:
        """Restores the files by which commands and other processes find the gateway.

        Pins, the state file and the facts; what is in force is held here and goes on meanwhile. Not while a
        process changes the gateway. Raises EnforcerError: what is lost stays lost for now.
        """
        recorded = _identity(self.instance.state_file)
        if recorded != self._recorded:
            with self.instance.change_lock(_LOCK_PATIENCE):
                if self.gateway.state is not None and State.load(self.instance.state_file) is None:
                    self.gateway.save(self.gateway.state)
                    self._say("put back: the state file")
            self._recorded = recorded
        if self.store.restore():
            self._say("put back: the facts")
        self._mend_pins()

    def _mend_pins(self) -> None:
        """Pins again what is not pinned any more, in the BPF file system that is found now."""
        mount = bpffs.find_bpffs() or self._mount()
        pins = self.gateway.pins_at(mount)
        if pins.directory != self.pins.directory:
            self._say(f"the pins are in another file system now: {mount}")
            self.pins = self.gateway.pins = HeldPins(pins.directory, pins.loaded, pins.shared, self._held)
            self.maps.directory = pins.maps
        mended = self.pins.repin()
        if mended:
            self._say(f"put back: the pins {abridged(mended)}")

    def hold(self) -> None:
        """Holds what is pinned now: the daemon itself has attached something."""
        self.pins.hold()

    def _mount(self) -> Path:
        """A new BPF file system, if it is allowed; asked for once in a while."""
        now = time.monotonic()
        if now >= self._mount_after:
            self._mount_after = now + _PATIENCE
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
        for name in gateway.state.layouts:
            if not name.endswith("_inner"):
                getattr(maps, name)  # opened: no path is needed any more
        pins = HeldPins(gateway.pins.directory, gateway.pins.loaded, gateway.pins.shared, self._held)
        pins.hold()
        self.pins = gateway.pins = pins
        self._recorded = _identity(self.instance.state_file)
        self.gateway, self.wanted, self.maps = gateway, wanted, maps
        self.tables = KernelFacts(maps, self.store)
        self.sessions = SessionManager(self.store, self.tables, maps, self._say)


def _identity(file: Path) -> tuple[int, ...]:
    """Another one whenever the file is another, or is written to; nothing if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
