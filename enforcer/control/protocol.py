"""The daemon's control socket: one JSON request and one JSON answer per connection.

A request is an object on one line: ``{"request": NAME, …}``. Only root and the daemon's own user may connect:
the socket is in a private directory, and the daemon checks the peer's user (SO_PEERCRED). The daemon reads
requests without blocking.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from enforcer.errors import EnforcerError, NotInstalledError
from enforcer.instance import Instance

PATIENCE = 60.0
QUESTIONS = frozenset({"warnings", "dns"})
"""Requests that change nothing."""
LARGEST_REQUEST = 1 << 20
# Seconds within which a client must send its request.
_HURRY = 2.0
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
# Hint of errors without an answer.
_HINT = "`enforcer status` and `enforcer sessions` show what came of it, its log says more."


class ReportedError(EnforcerError):
    """An error that another process of the enforcer reported."""

    def __init__(self, report: dict[str, Any]):
        super().__init__(report["error"], report.get("hint"))
        self.exit_code = report.get("exit_code", 1)


def report_of(error: EnforcerError) -> dict[str, Any]:
    """An error in the form of a JSON answer."""
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def listen(path: Path) -> socket.socket:
    """The daemon's listening socket."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(8)
    return server


def accept(server: socket.socket) -> socket.socket | None:
    """The next connection; None if it was closed, because another user opened it."""
    connection, _ = server.accept()
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, user, _ = _UCRED.unpack(credentials)
    if user in (0, os.geteuid()):
        return connection
    connection.close()
    return None


class ControlConnection:
    """The daemon's side of a connection: receives a request in parts, then answers it."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._connection.setblocking(False)
        self._received = b""
        self._deadline = time.monotonic() + _HURRY

    def fileno(self) -> int:
        """Readable when :meth:`receive` can proceed."""
        return self._connection.fileno()

    @property
    def late(self) -> bool:
        """Whether the time for the request has expired."""
        return time.monotonic() > self._deadline

    def receive(self) -> dict[str, Any] | None:
        """The complete request, or None yet; an empty one if it is malformed, too long or incomplete."""
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            return {}
        self._received += data
        if data and b"\n" not in data and len(self._received) <= LARGEST_REQUEST:
            return None
        if b"\n" not in self._received:
            return {}  # the client ended while sending
        try:
            request = json.loads(self._received)
        except (ValueError, RecursionError):
            return {}
        return request if isinstance(request, dict) else {}

    def has_left(self) -> bool:
        """Whether the client has closed its side after the request, which revokes the request."""
        try:
            return not self._connection.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def answer(self, result: dict[str, Any]) -> None:
        """Sends the answer and closes the connection; ignores errors, since the client may have ended."""
        try:
            self._connection.settimeout(5.0)
            self._connection.sendall(json.dumps(result).encode() + b"\n")
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def daemon_of(instance: Instance) -> Path:
    """The socket of the gateway's daemon. Raises NotInstalledError if none runs."""
    if instance.daemon_pid() is None:
        raise NotInstalledError("no daemon runs on this gateway", "Start it: enforcer run")
    return instance.control_socket


def ask(
    path: Path, request: str, *, patience: float = PATIENCE, revocable: bool = False, **content: Any
) -> dict[str, Any]:
    """The daemon's answer within ``patience`` seconds. Raises ReportedError with the daemon's error.

    Ctrl-C does not end a request that changes something, and the error says so; it ends QUESTIONS. It revokes
    a ``revocable`` request: the answer shows whether that was too late. A second Ctrl-C does not wait for the
    answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"request": request, **content}).encode() + b"\n")
        except KeyboardInterrupt:
            if request in QUESTIONS:
                raise
            raise EnforcerError("interrupted before the daemon was asked: nothing has changed") from None
        except OSError as error:
            raise _silent(error) from error
        line = _answer(connection, request, patience, revocable)
    if not line:
        raise EnforcerError("the daemon ended before it answered", "See its log, then `enforcer status`.")
    result = json.loads(line)
    if "error" in result:
        raise ReportedError(result)
    return dict(result)


def _answer(connection: socket.socket, request: str, patience: float, revocable: bool) -> bytes:
    """Reads the answer to a sent request. Closing the connection also revokes a revocable one."""
    try:
        with connection.makefile("rb") as answers:
            try:
                return answers.readline()
            except KeyboardInterrupt:
                if not revocable:
                    raise
                connection.shutdown(socket.SHUT_WR)
                return answers.readline()
    except KeyboardInterrupt:
        if request in QUESTIONS:
            raise
        fate = f"was asked to take back `{request}`" if revocable else f"goes on with `{request}`"
        raise EnforcerError(f"interrupted: the daemon {fate}", _HINT) from None
    except TimeoutError as error:
        fate = f"was asked to take back `{request}`" if revocable else f"may go on with `{request}`"
        silence = f"the daemon has not answered for {patience:.0f} s"
        raise EnforcerError(f"{silence} and {fate}", _HINT) from error
    except OSError as error:
        raise _silent(error) from error


def _silent(error: OSError) -> EnforcerError:
    return EnforcerError(
        f"the daemon does not answer: {error}", "See `enforcer status`; start it with `enforcer run`."
    )
