"""The control socket: reads requests as they arrive and calls the handler of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enforcer.control.protocol import ControlConnection, accept, listen, report_of
from enforcer.daemon.loop import Loop
from enforcer.errors import EnforcerError

Handler = Callable[[Mapping[str, Any], ControlConnection], dict[str, Any] | None]
"""Returns the answer to a request, or None if the caller gets it later. Raises EnforcerError."""
FAILED = {"error": "the daemon failed", "hint": "See its log.", "exit_code": 1}
"""The answer after an unexpected error."""
_TICK = 1.0


class Requests:
    """The control socket and its connections."""

    def __init__(self, loop: Loop, path: Path, handlers: Mapping[str, Handler]):
        self._loop = loop
        self._path = path
        self._handlers = handlers
        self._callers: list[ControlConnection] = []
        self._server = listen(path)
        loop.watch(self._server, self._connect)
        loop.timer(self._close_late, _TICK)

    def close(self) -> None:
        """Closes the socket and the connections without a request; jobs own the others."""
        for caller in list(self._callers):
            self._hang_up(caller)
        self._loop.unwatch(self._server)
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _connect(self) -> None:
        connection = accept(self._server)
        if connection is None:
            return
        caller = ControlConnection(connection)
        self._callers.append(caller)
        self._loop.watch(caller, lambda: self._receive(caller))

    def _receive(self, caller: ControlConnection) -> None:
        request = caller.receive()
        if request is None:
            return
        self._forget(caller)
        try:
            result = self._handle(request, caller)
        except EnforcerError as error:
            result = report_of(error)
        except Exception:
            caller.answer(FAILED)
            raise
        if result is not None:
            caller.answer(result)

    def _handle(self, request: Mapping[str, Any], caller: ControlConnection) -> dict[str, Any] | None:
        name = request.get("request")
        if not isinstance(name, str) or name not in self._handlers:
            raise EnforcerError(f"unknown request {name!r}", "Daemon and command are of different versions.")
        return self._handlers[name](request, caller)

    def _close_late(self) -> float:
        for caller in [caller for caller in self._callers if caller.late]:
            self._hang_up(caller)
        return _TICK

    def _hang_up(self, caller: ControlConnection) -> None:
        self._forget(caller)
        caller.close()

    def _forget(self, caller: ControlConnection) -> None:
        self._loop.unwatch(caller)
        self._callers.remove(caller)
