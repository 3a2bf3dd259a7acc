"""The message of a command whose daemon does not answer in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.control import protocol
from enforcer.errors import EnforcerError


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[list[bytes]]:
    """The data that a daemon without answers receives until the connection closes; its socket is "silent"."""
    found: list[bytes] = []

    def listen() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1000):
                found.append(data)
            found.append(b"")

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "silent"))
        server.listen()
        listening = threading.Thread(target=listen)
        listening.start()
        yield found
        listening.join(10)


@pytest.mark.parametrize(
    ("revocable", "fate"),
    [(True, "was asked to take back `session load`"), (False, "may go on with `session load`")],
)
def test_the_daemon_does_not_answer_in_time(
    tmp_path: Path, heard: list[bytes], revocable: bool, fate: str
) -> None:
    with pytest.raises(EnforcerError) as error:
        protocol.ask(tmp_path / "silent", "session load", patience=0.6, revocable=revocable, file="f")
    assert error.value.message == f"the daemon has not answered for 1 s and {fate}"
    assert error.value.hint and "enforcer status" in error.value.hint
    # Closing the connection revokes the request.
    for _ in range(100):
        if heard[-1:] == [b""]:
            break
        threading.Event().wait(0.05)
    assert heard[-1] == b"" and b"session load" in heard[0]
