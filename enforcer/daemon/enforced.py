"""What is enforced just now, as the daemon knows it: taken up at the start and after each reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enforcer.daemon.sessions import Attendance
from enforcer.datapath.maps import Maps
from enforcer.desired import Desired
from enforcer.errors import ConfigError, EnforcerError
from enforcer.facts.inforce import InForce, refill
from enforcer.facts.store import Store
from enforcer.gateway import Gateway
from enforcer.instance import Instance, not_installed
from enforcer.state import State


class Enforced:
    """The gateway's state, its maps and its facts. Raises EnforcerError; closed with :meth:`close`."""

    gateway: Gateway
    wanted: Desired
    maps: Maps
    tables: InForce
    attendance: Attendance

    def __init__(self, instance: Instance, say: Callable[[str], None]):
        self.instance = instance
        self.store = Store(instance.facts_file)
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

    def take_up(self) -> None:
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
        """Ends the connection to the store."""
        self.store.close()

    def _found(self) -> tuple[Gateway, Desired, Maps]:
        gateway = Gateway(self.instance)
        wanted = gateway.previous
        if wanted is None:
            raise not_installed()
        return gateway, wanted, gateway.maps()

    def _use(self, gateway: Gateway, wanted: Desired, maps: Maps) -> None:
        self.gateway, self.wanted, self.maps = gateway, wanted, maps
        self.tables = InForce(maps, self.store)
        self.attendance = Attendance(self.store, self.tables, maps, self._say)


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
