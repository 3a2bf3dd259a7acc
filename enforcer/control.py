"""The daemon's control socket: one JSON request a connection, one JSON answer.

Only root may connect (the socket's mode), and only from this machine.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from enforcer.errors import EnforcerError

PATIENCE = 60.0


class ReportedError(EnforcerError):
    """An error that another process of the enforcer reported."""

    def __init__(self, report: dict[str, Any]):
        super().__init__(report["error"], report.get("hint"))
        self.exit_code = report.get("exit_code", 1)


def report_of(error: EnforcerError) -> dict[str, Any]:
    """An error as a JSON answer."""
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def listen(path: Path) -> socket.socket:
    """The daemon's listening socket."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(8)
    return server


def read_request(connection: socket.socket) -> str:
    """The request's name; empty if there is none within a second."""
    connection.settimeout(1.0)
    try:
        request = json.loads(connection.makefile("rb").readline(65536))
    except (OSError, ValueError):
        return ""
    return str(request.get("request", "")) if isinstance(request, dict) else ""


def answer(connection: socket.socket, result: dict[str, Any]) -> None:
    """The answer; a caller that went away misses it."""
    try:
        connection.settimeout(5.0)
        connection.sendall(json.dumps(result).encode() + b"\n")
    except OSError:
        pass


def ask(path: Path, request: str) -> dict[str, Any]:
    """Asks the daemon and waits for its answer. Raises ReportedError with the daemon's error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"request": request}).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise EnforcerError(
                f"the daemon does not answer: {error}", "See `enforcer status`; start it with `enforcer run`."
            ) from error
    if not line:
        raise EnforcerError("the daemon ended before it answered", "See its log, then `enforcer status`.")
    result = json.loads(line)
    if "error" in result:
        raise ReportedError(result)
    return dict(result)
